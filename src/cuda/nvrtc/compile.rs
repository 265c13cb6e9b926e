//! Compiling a source for a target.

use std::fmt;

use super::api::{BUILTIN_OPERATION_FAILURE, COMPILATION, INVALID_OPTION};
use super::log;
use super::{KernelResources, Nvrtc, NvrtcError, Source, Target, Version};

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What to compile to.
    pub target: Target,
    /// Macros, as (name, value).
    pub defines: Vec<(String, String)>,
    /// Keep source lines in the image, for profilers and the interpreter.
    pub lineinfo: bool,
    /// Further arguments, such as `--maxrregcount=64`.
    pub flags: Vec<String>,
    /// What errors call the result, such as the kernel variant's name; the source's name when empty.
    pub label: String,
}

impl Options {
    /// Options with nothing but a target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            defines: Vec::new(),
            lineinfo: false,
            flags: Vec::new(),
            label: String::new(),
        }
    }

    /// Defines a macro.
    #[must_use]
    pub fn define(mut self, name: &str, value: impl ToString) -> Self {
        self.defines.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Keeps source lines in the image.
    #[must_use]
    pub fn lineinfo(mut self) -> Self {
        self.lineinfo = true;
        self
    }

    /// Sets what errors call the result.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// The compiler's arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--gpu-architecture={}", self.target),
            "--std=c++17".to_owned(),
            // The result depends on the given texts alone, not on files in the working directory.
            "--no-source-include".to_owned(),
        ];
        if let Target::Cubin(_) = self.target {
            arguments.push("--ptxas-options=-v".to_owned());
        }
        if self.lineinfo {
            arguments.push("--generate-line-info".to_owned());
        }
        for (name, value) in &self.defines {
            arguments.push(format!("--define-macro={name}={value}"));
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }
}

/// A compiled translation unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What the driver loads.
    pub image: Image,
    /// The compiler's messages.
    pub log: String,
    /// What each kernel and each function that was not inlined needs, in the compiler's order; empty for PTX, which
    /// the driver has yet to assemble.
    pub resources: Vec<KernelResources>,
    /// Whether it was read from the disk cache.
    pub from_cache: bool,
}

impl Compiled {
    /// The resources of a kernel, by its symbol.
    pub fn kernel(&self, symbol: &str) -> Option<&KernelResources> {
        self.resources
            .iter()
            .find(|kernel| kernel.is_entry && kernel.name == symbol)
    }
}

/// Code that the driver can load.
#[derive(Clone, PartialEq, Eq)]
pub enum Image {
    /// Machine code, an ELF file.
    Cubin(Vec<u8>),
    /// PTX text.
    Ptx(String),
}

/// Shows the kind and the size; the bytes would bury everything else.
impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Image::Cubin(bytes) => write!(f, "Cubin({} bytes)", bytes.len()),
            Image::Ptx(text) => write!(f, "Ptx({} bytes)", text.len()),
        }
    }
}

impl Nvrtc {
    /// Compiles a source.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::UnsupportedArch`] when this version does not know the target, [`NvrtcError::Compile`] with the
    /// log when it rejects the source or an option, [`NvrtcError::Builtins`] when its second half is missing.
    pub fn compile(&self, source: &Source<'_>, options: &Options) -> Result<Compiled, NvrtcError> {
        if !self.archs.contains(&options.target.arch().number) {
            return Err(NvrtcError::UnsupportedArch {
                target: options.target,
                version: self.version,
                supported: self.archs.clone(),
            });
        }
        let mut arguments = options.arguments();
        if self.version >= Version::WITH_CACHE {
            arguments.push("--no-cache".to_owned());
        }
        let program = self.api.program(source.name, source.text, source.headers)?;
        let code = program.compile(&arguments)?;
        let log = program.log()?;
        match code {
            COMPILATION | INVALID_OPTION => {
                let label = match options.label.as_str() {
                    "" => source.name,
                    label => label,
                };
                return Err(NvrtcError::Compile {
                    label: label.to_owned(),
                    version: self.version,
                    arguments,
                    log,
                });
            }
            BUILTIN_OPERATION_FAILURE => {
                return Err(NvrtcError::Builtins {
                    path: self.path().to_owned(),
                    log,
                });
            }
            code => self.api.check("nvrtcCompileProgram", code)?,
        }
        let image = match options.target {
            Target::Cubin(_) => Image::Cubin(program.cubin()?),
            Target::Ptx(_) => Image::Ptx(program.ptx()?),
        };
        Ok(Compiled {
            image,
            resources: log::resources(&log),
            log,
            from_cache: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_arguments_in_order() {
        let options = Options::new(Target::Cubin(90.into()))
            .define("HEAD_DIM", 64)
            .define("EMPTY", "")
            .flag("--maxrregcount=64")
            .lineinfo()
            .label("no argument");
        assert_eq!(
            options.arguments(),
            [
                "--gpu-architecture=sm_90",
                "--std=c++17",
                "--no-source-include",
                "--ptxas-options=-v",
                "--generate-line-info",
                "--define-macro=HEAD_DIM=64",
                "--define-macro=EMPTY=",
                "--maxrregcount=64",
            ]
        );
        let options = Options::new(Target::Ptx(80.into()));
        assert_eq!(
            options.arguments(),
            [
                "--gpu-architecture=compute_80",
                "--std=c++17",
                "--no-source-include"
            ]
        );
    }
}
