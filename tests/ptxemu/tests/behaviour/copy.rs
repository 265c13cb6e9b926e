//! `cp.async`.

use ptxemu::FaultKind::*;

use crate::bench::{Bench, STORE, warp};

/// Each lane copies `bytes` of its own with `copy`, waits with `wait`, and reads the first word.
fn copied(copy: &str, wait: &str) -> Bench {
    let body = format!(
        ".shared .align 16 .b8 s[512]; mul.wide.u32 %rd1, %tid, 16; add.u64 %rd1, %in, %rd1;\n\
         shl.b32 %r1, %tid, 4; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; mov.u32 %r9, 6; mov.u32 %r8, 0;\n\
         setp.lt.u32 %p0, %tid, 16;\n\
         {copy}\n{wait}\n ld.shared.u32 %r0, [%r2]; {STORE}"
    );
    warp(&body).input((0..128).map(|i| i * 0x1_0001 + 5).collect())
}

fn first_words() -> Vec<u32> {
    (0..32).map(|i| i * 4 * 0x1_0001 + 5).collect()
}

const COMMIT: &str = "cp.async.commit_group;";

#[test]
fn sizes_and_hints() {
    for copy in [
        "cp.async.ca.shared.global [%r2], [%rd1], 4;",
        "cp.async.ca.shared.global [%r2], [%rd1], 8;",
        "cp.async.ca.shared::cta.global [%r2], [%rd1], 16;",
        "cp.async.cg.shared.global [%r2], [%rd1], 16;",
        "cp.async.cg.shared.global.L2::128B [%r2], [%rd1], 16;",
        "cp.async.ca.shared.global.L2::cache_hint [%r2], [%rd1], 8, %rd9;",
        "cp.async.cg.shared.global [%r2], [%rd1], 16, 16;",
    ] {
        for wait in [
            "cp.async.wait_all;",
            "cp.async.commit_group; cp.async.wait_group 0;",
        ] {
            assert_eq!(copied(copy, wait).run(), first_words(), "{copy} {wait}");
        }
    }
}

#[test]
fn short_sources_are_filled_with_zeros() {
    let copy = "cp.async.cg.shared.global [%r2], [%rd1], 16, %r9;";
    assert_eq!(copied(copy, "cp.async.wait_all;").run(), first_words());
    let second = copied(copy, "cp.async.wait_all; add.u32 %r2, %r2, 4;").run();
    let expected: Vec<u32> = (0..32)
        .map(|i| ((i * 4 + 1) * 0x1_0001 + 5) & 0xffff)
        .collect();
    assert_eq!(second, expected);
    let none = copied(
        "cp.async.cg.shared.global [%r2], [%rd1], 16, %r8;",
        "cp.async.wait_all;",
    );
    assert_eq!(none.run(), vec![0; 32]);
    let ignored = copied(
        "cp.async.cg.shared.global [%r2], [%rd1], 16, %p0;",
        "cp.async.wait_all;",
    );
    let expected: Vec<u32> = first_words()
        .into_iter()
        .enumerate()
        .map(|(i, w)| if i < 16 { 0 } else { w })
        .collect();
    assert_eq!(ignored.run(), expected);
}

#[test]
fn a_copy_of_nothing_may_point_anywhere() {
    let copy = "mov.u64 %rd1, 0; cp.async.cg.shared.global [%r2], [%rd1], 16, %r8;";
    assert_eq!(copied(copy, "cp.async.wait_all;").run(), vec![0; 32]);
}

#[test]
fn groups_complete_in_order() {
    let copies = format!(
        "cp.async.ca.shared.global [%r2], [%rd1], 4; {COMMIT}\n\
         cp.async.ca.shared.global [%r2+4], [%rd1], 4; {COMMIT}"
    );
    let wait = "cp.async.wait_group 1; ld.shared.u32 %r7, [%r2]; cp.async.wait_all;";
    assert_eq!(copied(&copies, wait).run(), first_words());
    let early = wait.replace("[%r2]", "[%r2+4]");
    copied(&copies, &early).faults(UnwaitedCopy, "ld.shared.u32 %r7");
}

#[test]
fn a_read_before_the_wait_is_a_fault() {
    let copy = format!("cp.async.ca.shared.global [%r2], [%rd1], 4; {COMMIT}");
    copied(&copy, "").faults(UnwaitedCopy, "destination of a pending copy");
    copied(&copy, "cp.async.wait_group 1;").faults(UnwaitedCopy, "ld.shared.u32");
    copied(&copy, "st.shared.u32 [%r2], 1;").faults(UnwaitedCopy, "write");
    copied(
        "cp.async.ca.shared.global [%r2], [%rd1], 4;",
        "cp.async.wait_group 0;",
    )
    .faults(UnwaitedCopy, "ld.shared.u32");
}

#[test]
fn an_exit_with_copies_pending_is_a_fault() {
    let body = ".shared .align 16 .b8 s[16]; cp.async.ca.shared.global [s], [%in], 4;";
    let mut bench = warp(&format!(
        "setp.ne.u32 %p0, %tid, 0; @%p0 bra $end; {body} $end:"
    ));
    bench.faults(UnwaitedCopy, "exit");
    bench.body = "cp.async.commit_group;".to_owned();
    bench.run();
}

#[test]
fn another_lane_needs_a_barrier_after_the_wait() {
    let copy = "cp.async.ca.shared.global [%r2], [%rd1], 4;";
    let wait = "cp.async.wait_all; xor.b32 %r2, %r2, 16;";
    copied(copy, wait).faults(SharedRace, "write by lane 1 of warp 0");
    let wait = "cp.async.wait_all; bar.warp.sync 0xffffffff; xor.b32 %r2, %r2, 16;";
    let expected: Vec<u32> = (0..32).map(|i: u32| (i ^ 1) * 4 * 0x1_0001 + 5).collect();
    assert_eq!(copied(copy, wait).run(), expected);
}

#[test]
fn bounds_and_alignment() {
    let wait = "cp.async.wait_all;";
    copied("cp.async.cg.shared.global [%r2+8], [%rd1], 16;", wait).faults(Misaligned, "shared");
    copied("cp.async.cg.shared.global [%r2], [%rd1+4], 16;", wait).faults(Misaligned, "source");
    copied("cp.async.cg.shared.global [%r2+496], [%rd1], 16;", wait)
        .faults(OutOfBounds, "512 bytes");
    copied("cp.async.cg.shared.global [%r2], [%rd1+496], 16;", wait).faults(OutOfBounds, "input");
    copied(
        "mov.u32 %r9, 17; cp.async.cg.shared.global [%r2], [%rd1], 16, %r9;",
        wait,
    )
    .faults(IllegalOperand, "17");
}
