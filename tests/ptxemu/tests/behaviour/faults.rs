//! Every kind of fault that is not about races or copies.

use ptxemu::FaultKind::*;
use ptxemu::{Dim3, FaultKind, Launch, Memory, Module, Options};

use crate::bench::{LOAD, STORE, block, warp};

#[test]
fn out_of_bounds() {
    warp("ld.global.u32 %r0, [%in+128];")
        .faults(OutOfBounds, "offset 128 of the 128-byte allocation input");
    warp("ld.global.u32 %r0, [%in+126];").faults(OutOfBounds, "input");
    warp("st.global.u32 [%in+-4], %tid;").faults(OutOfBounds, "write of 4 bytes");
    warp("ld.global.u32 %r0, [16];").faults(OutOfBounds, "0x10");
    warp(".shared .b32 s[4]; ld.shared.u32 %r0, [s+16];")
        .faults(OutOfBounds, "the block has 16 bytes");
    warp(".local .b32 l[4]; st.local.u32 [l+16], 0;").faults(OutOfBounds, "local");
    warp("ld.param.u64 %rd0, [p_out+8];").faults(OutOfBounds, "parameter offset 16");
}

#[test]
fn misaligned() {
    warp("ld.global.u32 %r0, [%in+2];").faults(Misaligned, "offset 2");
    warp("ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%in+8];").faults(Misaligned, "16 bytes");
    warp(".shared .align 16 .b8 s[16]; st.shared.u64 [s+4], 0;").faults(Misaligned, "shared 0x4");
    warp(".local .align 8 .b8 l[16]; st.local.u32 [l+2], 0;").faults(Misaligned, "0x2");
    warp("atom.global.add.u32 %r0, [%in+1], 1;").faults(Misaligned, "atomic");
}

#[test]
fn use_after_free() {
    let module = warp("ld.global.u32 %r0, [%in+8];").parse();
    let memory = Memory::new();
    let (input, output) = (memory.alloc(64), memory.alloc(64));
    memory.free(input).unwrap();
    let params: Vec<u8> = [input, output]
        .iter()
        .flat_map(|a| a.to_le_bytes())
        .collect();
    let launch = Launch::new(1, 32, &params);
    let fault = ptxemu::launch(
        &module,
        module.kernel("k").unwrap(),
        &launch,
        &memory,
        &Options::default(),
    );
    let fault = fault.unwrap_err();
    assert_eq!(fault.kind, UseAfterFree, "{fault}");
    assert!(
        fault.message.contains("offset 8 of the freed 64-byte"),
        "{fault}"
    );
}

#[test]
fn uninitialised() {
    warp("ld.global.u32 %r0, [%out];")
        .faults(Uninitialised, "offset 0 of the 128-byte allocation output");
    warp(".shared .b32 s[4]; ld.shared.u32 %r0, [s+4];").faults(Uninitialised, "shared 0x4");
    warp("setp.eq.u32 %p0, %tid, 0; @!%p0 bra $e; st.global.u8 [%out], 1; ld.global.u16 %h0, [%out]; $e:")
        .faults(Uninitialised, "offset 1");
    let mut bench = warp("ld.global.u32 %r0, [%out]; mov.u32 %r0, 3;");
    bench.options.check_uninitialised = false;
    bench.run();
}

#[test]
fn divergent_barriers() {
    let split = "setp.lt.u32 %p0, %tid, 5;";
    warp(&format!("{split} @%p0 bra $e; bar.sync 0; $e:")).faults(DivergentBarrier, "0xffffffe0");
    warp(&format!("{split} @%p0 barrier.sync.aligned 0;")).faults(DivergentBarrier, "bar");
    let load = ".shared .align 16 .b8 s[128]; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [s];";
    warp(&format!("{split} @%p0 bra $e; {load} $e:")).faults(DivergentBarrier, "whole warp");
    let mma = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r0,%r1,%r2,%r3}, {%r4,%r5,%r6,%r7}, {%r8,%r9}, {%r0,%r1,%r2,%r3};";
    warp(&format!("{split} @%p0 {mma}")).faults(DivergentBarrier, "mma");
    // Without .aligned, lanes may arrive apart.
    let body = format!(
        "{split} @%p0 bra $a; barrier.sync 0; bra $e; $a: barrier.sync 0; $e: mov.u32 %r0, 1;{STORE}"
    );
    assert_eq!(warp(&body).run(), vec![1; 32]);
}

#[test]
fn member_masks() {
    warp("shfl.sync.bfly.b32 %r0, %tid, 1, 31, 0xffff;").faults(Membermask, "leaves the lane out");
    warp("bar.warp.sync 1;").faults(Membermask, "leaves the lane out");
    warp("shl.b32 %r1, 1, %tid; vote.sync.any.pred %p0, %p1, %r1;")
        .faults(Membermask, "but 0x00000001 in lane 0");
    let body =
        "setp.lt.u32 %p0, %tid, 8; @!%p0 bra $e; shfl.sync.idx.b32 %r0, %tid, 9, 31, 0xff; $e:";
    warp(body).faults(Membermask, "reads lane 9");
}

#[test]
fn deadlocks() {
    let body = "setp.eq.u32 %p0, %warp, 0; @%p0 bra $e; bar.sync 1, 64; $e:";
    block(64, body).faults(Deadlock, "warp 1 lanes 0xffffffff: waits in barrier 1");
    let body = "setp.eq.u32 %p0, %tid, 0; @%p0 bra $a; bar.warp.sync 0xffffffff; bra $e;\n\
                $a: shfl.sync.idx.b32 %r0, %tid, 0, 31, 0xffffffff; $e:";
    warp(body).faults(Deadlock, "waits for lanes");
    let body = ".shared .align 8 .b64 m; setp.ne.u32 %p0, %tid, 0; @%p0 bra $e;\n\
                mbarrier.init.shared.b64 [m], 2; mbarrier.arrive.shared.b64 %rd0, [m];\n\
                $wait: mbarrier.try_wait.parity.shared.b64 %p1, [m], 0; @!%p1 bra $wait; $e:";
    warp(body).faults(Deadlock, "polls");
}

#[test]
fn a_barrier_does_not_wait_for_exited_threads() {
    let body = format!("setp.eq.u32 %p0, %warp, 0; @%p0 exit; bar.sync 0; mov.u32 %r0, 4;{STORE}");
    assert_eq!(block(64, &body).run()[32..], [4; 32]);
}

#[test]
fn endless_loops() {
    warp("$l: bra $l;").faults(StepLimit, "instructions");
}

#[test]
fn traps_and_operands() {
    warp("setp.eq.u32 %p0, %tid, 9; @%p0 trap;").faults(Trap, "lane 9");
    warp("brkpt;").faults(Trap, "lane 0");
    warp("bar.sync 16;").faults(IllegalOperand, "no barrier 16");
    warp("bar.sync 1, 33;").faults(IllegalOperand, "multiple of 32");
    block(
        64,
        "setp.eq.u32 %p0, %warp, 0; @%p0 bra $a; bar.sync 1, 64; bra $e; $a: bar.sync 1, 96; $e:",
    )
    .faults(IllegalOperand, "threads here");
    let body = "setp.lt.u32 %p0, %tid, 20; setp.ge.u32 %p1, %tid, 32; or.pred %p0, %p0, %p1;\n\
                @%p0 barrier.sync 1, 64;";
    block(96, body).faults(IllegalOperand, "84 threads at barrier 1");
    let local = ".local .align 16 .b32 l[4]; mov.u64 %rd0, l; cvta.local.u64 %rd0, %rd0;";
    warp(&format!("{local} atom.add.u32 %r0, [%rd0], 1;"))
        .faults(IllegalOperand, "an atomic on local");
    warp("ldmatrix.sync.aligned.m8n8.x1.b16 {%r0}, [%in];")
        .faults(IllegalOperand, "a matrix outside shared memory");
    let module = ".const .b32 c = 1;";
    warp("mov.u64 %rd0, c; st.global.u32 [%rd0], 2;")
        .module(module)
        .faults(IllegalOperand, "constant");
    warp("mov.u64 %rd0, p_in; cvta.param.u64 %rd0, %rd0; st.u32 [%rd0], 2;")
        .faults(IllegalOperand, "parameter");
    warp("$t: .branchtargets $a; brx.idx %tid, $t; $a:").faults(Unsupported, "different ways");
}

#[test]
fn invalid_launches() {
    let bench = warp(&format!("{LOAD}{STORE}"));
    let invalid = |change: &dyn Fn(&mut Launch<'_>), part: &str| {
        let module = bench.parse();
        let memory = Memory::new();
        let params = [0; 16];
        let mut launch = Launch::new(1, 32, &params);
        change(&mut launch);
        let kernel = module.kernel("k").unwrap();
        let fault =
            ptxemu::launch(&module, kernel, &launch, &memory, &Options::default()).unwrap_err();
        assert_eq!(fault.kind, InvalidLaunch, "{fault}");
        assert!(fault.message.contains(part), "{fault}");
    };
    invalid(&|l| l.block = Dim3::new(32, 33, 1), "(32,33,1)");
    invalid(&|l| l.block = Dim3::new(0, 1, 1), "(0,1,1)");
    invalid(&|l| l.grid = Dim3::new(1, 0, 1), "grid");
    invalid(&|l| l.grid = Dim3::new(1, 65536, 1), "grid");
    invalid(
        &|l| l.params = &[0; 15],
        "15 bytes of parameters, 16 needed",
    );
    invalid(&|l| l.dynamic_shared_bytes = 228 * 1024, "shared memory");
    invalid(&|l| l.cluster = Dim3::new(2, 1, 1), "clusters of (2,1,1)");
    let mut directives = warp("");
    directives.directives = ".reqntid 64, 1, 1";
    directives.faults(InvalidLaunch, "(64,1,1)");
    directives.directives = ".maxntid 16, 1, 1";
    directives.faults(InvalidLaunch, "1 to 16 threads");
    directives.directives = ".explicitcluster";
    directives.faults(InvalidLaunch, "must be launched with clusters");
    directives.directives = ".explicitcluster .reqnctapercluster 2, 1, 1";
    let other = directives.grid(4).cluster(4);
    other.faults(InvalidLaunch, "compiled for (2,1,1)");
    let mut old = warp("");
    old.options.sm = 80;
    old.faults(InvalidLaunch, "sm_90");
}

#[test]
fn a_fault_names_the_place() {
    let body =
        ".loc 1 77 0\nsetp.lt.u32 %p0, %tid, 40; @%p0 bra $e; ld.global.u32 %r0, [%out+4096]; $e:";
    let fault = block(64, body).grid(3).launch().1.unwrap_err();
    for part in [
        "kernel k block (0,0,0) warp 1 lane 8 (thread 40)",
        "(source line 77)",
        "ld.global.u32 %r0, [%out+4096]",
    ] {
        assert!(fault.message.contains(part), "{part:?} is not in: {fault}");
    }
}

#[test]
fn parse_errors_name_the_line() {
    let text = ".version 8.0\n.target sm_80\n.visible .entry k() {\n  ret;\n  tex.1d.v4.f32.f32 {%f1}, [t, {%f2}];\n}\n";
    let error = Module::parse(text).err().unwrap();
    assert_eq!(
        (error.line, error.text.as_str()),
        (5, "tex.1d.v4.f32.f32 {%f1}, [t, {%f2}]")
    );
    assert!(
        Module::parse(".entry k() { bra $nowhere; }")
            .err()
            .unwrap()
            .message
            .contains("$nowhere")
    );
    assert!(Module::parse(".entry k() { ret").is_err());
}

#[test]
fn kinds_print_as_words() {
    assert_eq!(
        FaultKind::UnwaitedCopy.to_string(),
        "asynchronous copy not waited for"
    );
}
