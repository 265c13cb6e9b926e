//! Reading what `--ptxas-options=-v` prints about each kernel.
//!
//! For each kernel the assembler prints a line that begins with `ptxas info    : Compiling entry function`, then its
//! `Function properties` and a line of what it uses; functions that were not inlined have only the properties.

/// What the assembler says a kernel needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// The symbol.
    pub name: String,
    /// Whether it can be launched. Of a function that was not inlined, which is not an entry, the assembler tells the
    /// stack and the spills alone; the rest is counted in the kernels that call it and is 0 here.
    pub is_entry: bool,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes per thread written to local memory because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes per thread read back from there.
    pub spill_load_bytes: u32,
    /// Stack bytes per thread: spills, and arrays that are indexed at run time.
    pub stack_bytes: u32,
    /// Static shared memory per block, in bytes.
    pub shared_bytes: u32,
    /// Constant memory, in bytes, over all banks. The assembler is silent about the kernel parameters on sm_90 and
    /// later.
    pub constant_bytes: u32,
    /// Barriers per block.
    pub barriers: u32,
}

/// Reads the resources out of a compiler's log, in the order printed.
pub(super) fn resources(log: &str) -> Vec<KernelResources> {
    let mut resources: Vec<KernelResources> = Vec::new();
    for line in log.lines() {
        let Some((_, message)) = line
            .strip_prefix("ptxas")
            .and_then(|line| line.split_once([':', '.']))
        else {
            continue;
        };
        let message = message.trim();
        if let Some(rest) = message.strip_prefix("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            resources.push(KernelResources {
                name: name.to_owned(),
                is_entry: true,
                ..KernelResources::default()
            });
        } else if let Some(name) = message.strip_prefix("Function properties for ") {
            if resources.last().is_none_or(|last| last.name != name) {
                resources.push(KernelResources {
                    name: name.to_owned(),
                    ..KernelResources::default()
                });
            }
        } else if let Some(kernel) = resources.last_mut() {
            read_quantities(message, kernel);
        }
    }
    resources
}

/// Reads a line such as `Used 19 registers, used 1 barriers, 512 bytes smem, 364 bytes cmem[0]`.
fn read_quantities(message: &str, kernel: &mut KernelResources) {
    for part in message.split(',') {
        let part = part.trim();
        let part = part
            .strip_prefix("Used ")
            .or_else(|| part.strip_prefix("used "))
            .unwrap_or(part);
        let Some((amount, what)) = part.split_once(' ') else {
            continue;
        };
        let Ok(amount) = amount.parse::<u32>() else {
            continue;
        };
        match what {
            "registers" => kernel.registers = amount,
            "barriers" => kernel.barriers = amount,
            "bytes stack frame" => kernel.stack_bytes = amount,
            "bytes spill stores" => kernel.spill_store_bytes = amount,
            "bytes spill loads" => kernel.spill_load_bytes = amount,
            "bytes cumulative stack size" => {
                kernel.stack_bytes = kernel.stack_bytes.max(amount);
            }
            "bytes smem" => kernel.shared_bytes = amount,
            bank if bank.starts_with("bytes cmem[") => {
                kernel.constant_bytes = kernel.constant_bytes.saturating_add(amount);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NVRTC 13.5 printed for sm_75 (12.9 prints the same lines), shortened.
    const LOG: &str = "\
t.cu(15): warning #177-D: variable \"q\" was declared but never referenced
  extern \"C\" __global__ void unused_var(){ int q=3; }
                                               ^

Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"

ptxas warning : Value of threads per SM for entry two is out of range. .minnctapersm will be ignored
ptxas info    : 0 bytes gmem, 256 bytes cmem[3]
ptxas info    : Compiling entry function 'two' for 'sm_75'
ptxas info    : Function properties for two
ptxas         .     64 bytes stack frame, 104 bytes spill stores, 120 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 80 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compile time = 11.583 ms
ptxas info    : Compiling entry function 'one' for 'sm_75'
ptxas info    : Function properties for one
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, used 1 barriers, 512 bytes smem, 364 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 4.404 ms
ptxas info    : Function properties for _Z6helperfi
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
";

    #[test]
    fn kernels_and_functions_are_told_apart() {
        let two = KernelResources {
            name: "two".to_owned(),
            is_entry: true,
            registers: 64,
            spill_store_bytes: 104,
            spill_load_bytes: 120,
            stack_bytes: 80,
            shared_bytes: 0,
            constant_bytes: 364,
            barriers: 1,
        };
        let one = KernelResources {
            name: "one".to_owned(),
            is_entry: true,
            registers: 19,
            shared_bytes: 512,
            constant_bytes: 372,
            barriers: 1,
            ..KernelResources::default()
        };
        let helper = KernelResources {
            name: "_Z6helperfi".to_owned(),
            spill_store_bytes: 8,
            spill_load_bytes: 12,
            stack_bytes: 16,
            ..KernelResources::default()
        };
        assert_eq!(resources(LOG), [two, one, helper]);
    }

    #[test]
    fn logs_without_kernels_have_no_resources() {
        assert_eq!(resources(""), []);
        assert_eq!(resources("ptxas info    : 0 bytes gmem\nptxas\nptxas:"), []);
    }

    #[test]
    fn amounts_that_are_not_numbers_are_passed_over() {
        let log = "ptxas info    : Compiling entry function 'k' for 'sm_90'\n\
                   ptxas info    : Used many registers, 99999999999 bytes smem, 7 bytes new_memory, ,";
        let expected = KernelResources {
            name: "k".to_owned(),
            is_entry: true,
            ..KernelResources::default()
        };
        assert_eq!(resources(log), [expected]);
    }
}
