//! Kernels in PTX, by hand: no compiler is needed to test the driver.

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, LaunchConfig,
    result::{self, function, module, occupancy},
    sys::{self, CUfunction_attribute},
};
use std::{
    ffi::{CString, c_int, c_void},
    sync::Arc,
};

/// `add(out, in, n, value)`: `out[i] = in[i] + value` for `i < n`. No bounds beyond `n` are checked.
pub const ADD: &str = "
.version 8.0
.target sm_75
.address_size 64

.visible .entry add(
    .param .u64 add_param_0,
    .param .u64 add_param_1,
    .param .u32 add_param_2,
    .param .f32 add_param_3
)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;

    ld.param.u64 %rd1, [add_param_0];
    ld.param.u64 %rd2, [add_param_1];
    ld.param.u32 %r1, [add_param_2];
    ld.param.f32 %f1, [add_param_3];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd4, %rd5;
    ld.global.f32 %f2, [%rd6];
    add.f32 %f3, %f2, %f1;
    add.s64 %rd7, %rd3, %rd5;
    st.global.f32 [%rd7], %f3;
$done:
    ret;
}
";

/// `bounded()` does nothing, in blocks of at most 64 threads and with 1024 bytes of static shared memory.
pub const BOUNDED: &str = "
.version 8.0
.target sm_75
.address_size 64

.visible .entry bounded()
.maxntid 64, 1, 1
{
    .shared .align 4 .b8 buffer[1024];
    ret;
}
";

/// `race()`: every thread writes its own index to the same place in shared memory.
pub const RACE: &str = "
.version 8.0
.target sm_75
.address_size 64

.visible .entry race()
{
    .shared .align 4 .b8 place[4];
    .reg .b32 %r<3>;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, place;
    st.shared.u32 [%r2], %r1;
    ret;
}
";

/// `count()` adds 1 to the module's variable `counter`, which starts at 5.
pub const COUNT: &str = "
.version 8.0
.target sm_75
.address_size 64

.global .align 4 .u32 counter = 5;

.visible .entry count()
{
    .reg .b32 %r<3>;
    ld.global.u32 %r1, [counter];
    add.s32 %r2, %r1, 1;
    st.global.u32 [counter], %r2;
    ret;
}
";

/// `clustered()` does nothing, in clusters of two blocks.
pub const CLUSTERED: &str = "
.version 8.0
.target sm_90
.address_size 64

.visible .entry clustered()
.explicitcluster
.reqnctapercluster 2, 1, 1
{
    ret;
}
";

/// A kernel and the module it keeps loaded.
#[derive(Clone)]
pub struct Kernel {
    pub function: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: handles are valid on every thread (here and below).
unsafe impl Send for Kernel {}
// SAFETY: the driver takes care of concurrent calls (here and below).
unsafe impl Sync for Kernel {}
// SAFETY: as above.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A loaded module.
pub struct Module {
    pub handle: sys::CUmodule,
    context: Arc<CudaContext>,
}

impl Module {
    pub fn load(context: &Arc<CudaContext>, ptx: &str) -> Result<Arc<Module>, DriverError> {
        context.bind_to_thread()?;
        let ptx = CString::new(ptx).expect("no zero byte");
        // SAFETY: a terminated string.
        let handle = unsafe { module::load_data(ptx.as_ptr().cast()) }?;
        let context = Arc::clone(context);
        Ok(Arc::new(Module { handle, context }))
    }

    pub fn kernel(self: &Arc<Module>, name: &str) -> Result<Kernel, DriverError> {
        let name = CString::new(name).expect("no zero byte");
        // SAFETY: the module is loaded.
        let function = unsafe { module::get_function(self.handle, name) }?;
        Ok(Kernel {
            function,
            _module: Arc::clone(self),
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: unloaded once; tests that destroyed its context meanwhile get an error, and ignore it.
        let _ = self
            .context
            .bind_to_thread()
            .and_then(|()| unsafe { module::unload(self.handle) });
    }
}

impl Kernel {
    pub fn set(&self, attribute: CUfunction_attribute, value: i32) -> Result<(), DriverError> {
        // SAFETY: the module is loaded.
        unsafe { function::set_function_attribute(self.function, attribute, value) }
    }

    pub fn get(&self, attribute: CUfunction_attribute) -> Result<i32, DriverError> {
        // SAFETY: the module is loaded.
        unsafe { function::get_function_attribute(self.function, attribute) }
    }

    pub fn occupancy(&self, threads: c_int, shared: usize) -> Result<c_int, DriverError> {
        // SAFETY: the module is loaded.
        unsafe { occupancy::max_active_block_per_multiprocessor(self.function, threads, shared) }
    }

    /// # Safety
    /// `params` point to the kernel's arguments; in the interpreter, wrong ones are noticed.
    pub unsafe fn launch(
        &self,
        stream: &CudaStream,
        shape: LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        let (grid, block, shared) = (shape.grid_dim, shape.block_dim, shape.shared_mem_bytes);
        // SAFETY: the caller's promise.
        unsafe {
            result::launch_kernel(
                self.function,
                grid,
                block,
                shared,
                stream.cu_stream(),
                params,
            )
        }
    }
}

/// The add kernel.
pub fn add_kernel(context: &Arc<CudaContext>) -> Result<Kernel, DriverError> {
    Module::load(context, ADD)?.kernel("add")
}

/// The kernel without arguments.
pub fn bounded_kernel(context: &Arc<CudaContext>) -> Result<Kernel, DriverError> {
    Module::load(context, BOUNDED)?.kernel("bounded")
}

/// Launches `out[i] = input[i] + value` over the whole input.
pub fn add(
    stream: &CudaStream,
    kernel: &Kernel,
    out: &mut CudaSlice<f32>,
    input: &CudaSlice<f32>,
    value: f32,
) -> Result<(), DriverError> {
    let count = input.len() as u32;
    let (out, _written) = out.device_ptr_mut(stream);
    let (input, _read) = input.device_ptr(stream);
    let mut params = [
        pointer(&out),
        pointer(&input),
        pointer(&count),
        pointer(&value),
    ];
    // SAFETY: the kernel's parameters; tests that break its bounds do so on purpose, in the interpreter.
    unsafe { kernel.launch(stream, shape(count.div_ceil(64).max(1), 64), &mut params) }
}

/// The add kernel with ones to add to and a place for the sums, on the default stream of the first device.
pub struct Adder {
    pub stream: Arc<CudaStream>,
    pub kernel: Kernel,
    pub input: CudaSlice<f32>,
    pub out: CudaSlice<f32>,
}

impl Adder {
    /// As many ones, and room for that many sums.
    pub fn new(ones: usize, sums: usize) -> Result<Adder, DriverError> {
        let stream = CudaContext::new(0)?.default_stream();
        Ok(Adder {
            kernel: add_kernel(stream.context())?,
            input: stream.clone_htod(&vec![1f32; ones])?,
            out: stream.alloc_zeros(sums)?,
            stream,
        })
    }

    /// Adds 1 to the ones.
    pub fn add(&mut self) -> Result<(), DriverError> {
        add(&self.stream, &self.kernel, &mut self.out, &self.input, 1.0)
    }
}

/// A launch argument.
pub fn pointer<T>(value: &T) -> *mut c_void {
    (&raw const *value).cast_mut().cast()
}

/// A grid and a block of one dimension.
pub fn shape(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    }
}
