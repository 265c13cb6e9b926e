//! The parameter structs have the same layout on both sides.

use std::fmt::Write;

use attention_rollout::cuda::kernel::LAYOUTS;

use crate::lab::Lab;

/// Compiles a kernel that writes the size of every struct and the offset of every field, and compares.
pub fn check(lab: &Lab) -> Result<(), String> {
    let mut text =
        String::from("#include \"params.cuh\"\nextern \"C\" __global__ void probe(u32 *out) {\n");
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
    let got = lab.probe(&text, &[], expected.len())?;
    for ((what, host), device) in expected.iter().zip(got) {
        if *host != device as usize {
            return Err(format!("{what}: host {host}, device {device}"));
        }
    }
    Ok(())
}
