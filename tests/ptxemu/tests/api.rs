//! The public interface, end to end on a small kernel.

use ptxemu::{Dim3, Fault, FaultKind, Launch, Memory, Module, Options, Report};

/// `out[i] = in[i] + in[i]` for `i < n`.
const DOUBLE: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.visible .entry double_it(.param .u64 p_in, .param .u64 p_out, .param .u32 p_n)
.maxntid 64, 1, 1
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<6>;
    .reg .f32 %f<3>;
    ld.param.u64 %rd1, [p_in];
    ld.param.u64 %rd2, [p_out];
    ld.param.u32 %r1, [p_n];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r5, %r3, %r4, %r2;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    add.f32 %f2, %f1, %f1;
    st.global.f32 [%rd5], %f2;
$done:
    ret;
}
"#;

fn double(n: u32, allocated: usize) -> (Vec<f32>, Result<Report, Fault>) {
    let module = Module::parse(DOUBLE).unwrap();
    let kernel = module.kernel("double_it").unwrap();
    assert_eq!(kernel.max_threads, Some(64));
    assert_eq!(
        kernel.params.iter().map(|p| p.offset).collect::<Vec<_>>(),
        [0, 8, 16]
    );
    assert_eq!(kernel.param_bytes, 20);
    let memory = Memory::new();
    let (input, output) = (memory.alloc(allocated * 4), memory.alloc(allocated * 4));
    let values: Vec<u8> = (0..allocated)
        .flat_map(|i| (i as f32).to_le_bytes())
        .collect();
    memory.write(input, &values).unwrap();
    let mut params = Vec::new();
    params.extend(input.to_le_bytes());
    params.extend(output.to_le_bytes());
    params.extend(n.to_le_bytes());
    let launch = Launch::new(n.div_ceil(64), Dim3::new(64, 1, 1), &params);
    let result = ptxemu::launch(&module, kernel, &launch, &memory, &Options::default());
    let mut bytes = vec![0; allocated * 4];
    memory.read(output, &mut bytes).unwrap();
    let out = bytes
        .chunks_exact(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    (out, result)
}

#[test]
fn a_kernel_runs_and_is_counted() {
    let (out, report) = double(100, 100);
    assert!(out.iter().enumerate().all(|(i, &x)| x == 2.0 * i as f32));
    assert!(report.unwrap().warp_instructions >= 4 * 15);
}

#[test]
fn a_fault_names_the_place() {
    let fault = double(101, 100).1.unwrap_err();
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    for part in ["double_it", "warp 1", "lane 4", "ld.global.f32"] {
        assert!(fault.message.contains(part), "{part} is not in: {fault}");
    }
}
