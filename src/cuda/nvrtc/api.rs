//! The functions of an NVRTC library, and safe calls of them.

use std::error::Error as _;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fmt;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use super::error::NvrtcError;
use super::version::Version;

/// `nvrtcResult` of a call that worked.
const SUCCESS: c_int = 0;
/// `NVRTC_ERROR_INVALID_OPTION`.
pub(super) const INVALID_OPTION: c_int = 5;
/// `NVRTC_ERROR_COMPILATION`.
pub(super) const COMPILATION: c_int = 6;
/// `NVRTC_ERROR_BUILTIN_OPERATION_FAILURE`.
pub(super) const BUILTIN_OPERATION_FAILURE: c_int = 7;

/// `nvrtcProgram`.
type ProgramHandle = *mut std::ffi::c_void;

/// Declares the table of functions and how it is filled from a library.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// Looks up every function in a library.
            ///
            /// # Safety
            ///
            /// The library's functions of these names have the signatures of NVRTC, and are called only while the
            /// library is loaded.
            unsafe fn resolve(library: &Library, path: &Path) -> Result<Self, NvrtcError> {
                $(
                    // SAFETY: the caller vouches for the signature and for the library's lifetime.
                    let $field = unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol)
                    };
                    let $field = *$field.map_err(|_| NvrtcError::MissingSymbol {
                        path: path.to_owned(),
                        symbol: $symbol,
                    })?;
                )*
                Ok(Self { $($field),* })
            }
        }
    };
}

functions! {
    version = "nvrtcVersion": fn(*mut c_int, *mut c_int) -> c_int;
    num_supported_archs = "nvrtcGetNumSupportedArchs": fn(*mut c_int) -> c_int;
    supported_archs = "nvrtcGetSupportedArchs": fn(*mut c_int) -> c_int;
    error_string = "nvrtcGetErrorString": fn(c_int) -> *const c_char;
    create_program = "nvrtcCreateProgram": fn(
        *mut ProgramHandle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ) -> c_int;
    destroy_program = "nvrtcDestroyProgram": fn(*mut ProgramHandle) -> c_int;
    compile_program = "nvrtcCompileProgram": fn(ProgramHandle, c_int, *const *const c_char) -> c_int;
    ptx_size = "nvrtcGetPTXSize": fn(ProgramHandle, *mut usize) -> c_int;
    ptx = "nvrtcGetPTX": fn(ProgramHandle, *mut c_char) -> c_int;
    cubin_size = "nvrtcGetCUBINSize": fn(ProgramHandle, *mut usize) -> c_int;
    cubin = "nvrtcGetCUBIN": fn(ProgramHandle, *mut c_char) -> c_int;
    log_size = "nvrtcGetProgramLogSize": fn(ProgramHandle, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog": fn(ProgramHandle, *mut c_char) -> c_int;
}

/// An open library.
pub(super) struct Api {
    functions: Functions,
    path: PathBuf,
    /// Keeps the functions valid. Never dropped: see [`Nvrtc`](super::Nvrtc).
    _library: ManuallyDrop<Library>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Opens a library by its absolute path, or by its bare name on the loader path.
    pub fn open(file: &OsStr) -> Result<Self, NvrtcError> {
        // SAFETY: loading runs the library's initialisers. The file was named by the user or is where NVIDIA's
        // installers put NVRTC, whose initialisers have no requirements.
        let library = unsafe { Library::new(file) }.map_err(|error| NvrtcError::Open {
            path: file.into(),
            // The error itself says that opening failed, its source why.
            reason: error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        let library = ManuallyDrop::new(library);
        // SAFETY: the names are NVRTC's own, the signatures are those of nvrtc.h (the same from version 11.2 to 13),
        // and the library is never unloaded.
        let functions = unsafe { Functions::resolve(&library, Path::new(file)) }?;
        let path = if Path::new(file).is_absolute() {
            file.into()
        } else {
            mapped_file(functions.version as usize).unwrap_or_else(|| file.into())
        };
        Ok(Self {
            functions,
            path,
            _library: library,
        })
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's version.
    pub fn version(&self) -> Result<Version, NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers that live through the call.
        let code = unsafe { (self.functions.version)(&mut major, &mut minor) };
        self.check("nvrtcVersion", code)?;
        Ok(Version {
            major: u32::try_from(major).unwrap_or(0),
            minor: u32::try_from(minor).unwrap_or(0),
        })
    }

    /// The architectures the library compiles for, ascending.
    pub fn supported_archs(&self) -> Result<Vec<u32>, NvrtcError> {
        let mut count = 0;
        // SAFETY: the pointer is to an integer that lives through the call.
        let code = unsafe { (self.functions.num_supported_archs)(&mut count) };
        self.check("nvrtcGetNumSupportedArchs", code)?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the array holds the number of entries that the library has just said it writes.
        let code = unsafe { (self.functions.supported_archs)(archs.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", code)?;
        let mut archs: Vec<u32> = archs
            .into_iter()
            .filter_map(|arch| u32::try_from(arch).ok())
            .collect();
        archs.sort_unstable();
        Ok(archs)
    }

    /// Makes a program of a source and its headers, given as (name, contents).
    pub fn program(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
    ) -> Result<Program<'_>, NvrtcError> {
        let text = c_string(text, || format!("the source {name}"))?;
        let program_name = c_string(name, || "the source's name".to_owned())?;
        let mut header_names = Vec::with_capacity(headers.len());
        let mut header_texts = Vec::with_capacity(headers.len());
        for (header, contents) in headers {
            header_names.push(c_string(header, || "a header's name".to_owned())?);
            header_texts.push(c_string(contents, || format!("the header {header}"))?);
        }
        let name_pointers = pointers(&header_names);
        let text_pointers = pointers(&header_texts);
        let mut handle = ptr::null_mut();
        // SAFETY: the strings and the two arrays of `headers.len()` pointers live through the call; NVRTC copies them.
        let code = unsafe {
            (self.functions.create_program)(
                &mut handle,
                text.as_ptr(),
                program_name.as_ptr(),
                count(headers.len())?,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        Ok(Program { api: self, handle })
    }

    /// Turns a result code into an error.
    pub fn check(&self, function: &'static str, code: c_int) -> Result<(), NvrtcError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: any code may be asked about; the answer is a static string or null.
        let message = unsafe { (self.functions.error_string)(code) };
        let message = if message.is_null() {
            "unknown".to_owned()
        } else {
            // SAFETY: not null, so a static string that ends in a zero byte.
            let message = unsafe { CStr::from_ptr(message) };
            message.to_string_lossy().into_owned()
        };
        Err(NvrtcError::Call {
            function,
            code,
            message,
        })
    }
}

/// Opens a library and keeps it, for one that will ask for it by its bare name: the loader gives out what is open
/// already, wherever it lies. NVRTC so finds its builtins in its own directory, to which not every wheel of it points.
/// What cannot be opened is missed by the library that needs it, which says so.
pub(super) fn keep_open(file: &Path) {
    // SAFETY: loading runs the library's initialisers. It lies beside the NVRTC that is opened next and has its
    // builtins' name; they have no requirements.
    if let Ok(library) = unsafe { Library::new(file) } {
        std::mem::forget(library);
    }
}

/// A program; destroyed on drop.
pub(super) struct Program<'a> {
    api: &'a Api,
    handle: ProgramHandle,
}

impl Program<'_> {
    /// Compiles. The result is NVRTC's code, unchecked, since the log is wanted of a failure too.
    pub fn compile(&self, arguments: &[String]) -> Result<c_int, NvrtcError> {
        let arguments = arguments
            .iter()
            .map(|argument| c_string(argument, || "a compiler argument".to_owned()))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = pointers(&arguments);
        let count = count(pointers.len())?;
        // SAFETY: the handle is that of a live program; the array holds `count` strings, which live through the call.
        Ok(unsafe { (self.api.functions.compile_program)(self.handle, count, pointers.as_ptr()) })
    }

    /// The compiler's log.
    pub fn log(&self) -> Result<String, NvrtcError> {
        let functions = &self.api.functions;
        let log = self.fetch(
            ("nvrtcGetProgramLogSize", functions.log_size),
            ("nvrtcGetProgramLog", functions.log),
        )?;
        Ok(text(log))
    }

    /// The PTX text.
    pub fn ptx(&self) -> Result<String, NvrtcError> {
        let functions = &self.api.functions;
        let ptx = self.fetch(
            ("nvrtcGetPTXSize", functions.ptx_size),
            ("nvrtcGetPTX", functions.ptx),
        )?;
        Ok(text(ptx))
    }

    /// The machine code.
    pub fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let functions = &self.api.functions;
        self.fetch(
            ("nvrtcGetCUBINSize", functions.cubin_size),
            ("nvrtcGetCUBIN", functions.cubin),
        )
    }

    /// Fetches one of the results, each of which has a function for its size and one for its bytes.
    fn fetch(
        &self,
        (size_name, size_of): (
            &'static str,
            unsafe extern "C" fn(ProgramHandle, *mut usize) -> c_int,
        ),
        (bytes_name, bytes_of): (
            &'static str,
            unsafe extern "C" fn(ProgramHandle, *mut c_char) -> c_int,
        ),
    ) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the handle is that of a live program, the pointer to an integer that lives through the call.
        let code = unsafe { size_of(self.handle, &mut size) };
        self.api.check(size_name, code)?;
        let mut bytes = vec![0; size];
        if size > 0 {
            // SAFETY: the buffer holds the number of bytes that the library has just said it writes.
            let code = unsafe { bytes_of(self.handle, bytes.as_mut_ptr().cast()) };
            self.api.check(bytes_name, code)?;
        }
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is that of a live program, which nothing uses afterwards. A failure would leave nothing
        // to be done about it.
        unsafe { (self.api.functions.destroy_program)(&mut self.handle) };
    }
}

/// A text as C wants it; `what` names it in the error.
fn c_string(text: &str, what: impl FnOnce() -> String) -> Result<CString, NvrtcError> {
    CString::new(text).map_err(|_| NvrtcError::ZeroByte { what: what() })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

fn count(length: usize) -> Result<c_int, NvrtcError> {
    c_int::try_from(length).map_err(|_| NvrtcError::Call {
        function: "nvrtcCompileProgram",
        code: INVALID_OPTION,
        message: format!("{length} headers or arguments are too many"),
    })
}

/// A text that NVRTC wrote, without its final zero byte.
fn text(bytes: Vec<u8>) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The file that an address of this process was loaded from, where the system keeps such a list.
fn mapped_file(address: usize) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        // start-end permissions offset device inode path
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let path = &rest[rest.find('/')?..];
        (start..end).contains(&address).then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_address_of_this_program_is_this_program() {
        let address = the_file_of_an_address_of_this_program_is_this_program as fn() as usize;
        assert_eq!(mapped_file(address), std::env::current_exe().ok());
        assert_eq!(mapped_file(0), None);
    }

    #[test]
    fn a_library_that_is_not_nvrtc_is_refused() {
        let error = Api::open(OsStr::new("libm.so.6")).unwrap_err();
        assert!(matches!(
            error,
            NvrtcError::MissingSymbol {
                symbol: "nvrtcVersion",
                ..
            }
        ));
    }

    #[test]
    fn texts_of_the_compiler_end_at_their_zero_byte() {
        assert_eq!(text(b"log\0".to_vec()), "log");
        assert_eq!(text(b"log".to_vec()), "log");
        assert_eq!(text(Vec::new()), "");
    }
}
