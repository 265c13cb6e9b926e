//! The parameter structs have the same layout on both sides.

use std::fmt::Write;

use attention_rollout::cuda::kernel::LAYOUTS;
use ptxemu::{Launch, Memory};

use crate::lab::Lab;

/// Compiles a kernel that writes the size of every struct and the offset of every field, and compares.
pub fn check(lab: &Lab) -> Result<(), String> {
    let mut text =
        String::from("#include \"params.cuh\"\nextern \"C\" __global__ void layouts(u32 *out) {\n");
    let mut expected = Vec::new();
    for layout in LAYOUTS {
        let name = layout.name;
        writeln!(text, "  *out++ = sizeof({name});").unwrap();
        expected.push((name.to_owned(), layout.bytes));
        for (field, offset) in layout.fields {
            writeln!(
                text,
                "  *out++ = u32(u64(&static_cast<{name} *>(nullptr)->{field}));"
            )
            .unwrap();
            expected.push((format!("{name}.{field}"), *offset));
        }
    }
    text.push_str("}\n");
    let module = lab.compile("layouts.cu", &text, &[], 75)?;
    let kernel = module.kernel("layouts").ok_or("layouts is missing")?;
    let memory = Memory::new();
    let out = memory.alloc(4 * expected.len());
    let globals = module.allocate_globals(&memory);
    let params = out.to_le_bytes();
    let mut launch = Launch::new(1, 1, &params);
    launch.globals = &globals;
    ptxemu::launch(
        &module,
        kernel,
        &launch,
        &memory,
        &ptxemu::Options::default(),
    )
    .map_err(|fault| fault.to_string())?;
    let mut got = vec![0u32; expected.len()];
    memory
        .read(out, bytemuck::cast_slice_mut(&mut got))
        .map_err(|error| error.to_string())?;
    for ((what, host), device) in expected.iter().zip(got) {
        if *host != device as usize {
            return Err(format!("{what}: host {host}, device {device}"));
        }
    }
    Ok(())
}
