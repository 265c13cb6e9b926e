//! The report's numbers.

use crate::bench::{LOAD, STORE, block, warp};

#[test]
fn instructions_by_class() {
    let body = "add.u32 %r1, %tid, 1; fma.rn.f32 %f0, %f1, %f2, %f3; cvt.rn.f32.u32 %f0, %r1; mov.u32 %r2, %r1;\n\
                ld.global.u32 %r0, [%in]; bar.sync 0; setp.lt.u32 %p0, %tid, 8; @%p0 add.u32 %r1, %r1, 1;\n\
                setp.gt.u32 %p0, %tid, 99; @%p0 add.u32 %r1, %r1, 1; vote.sync.any.pred %p1, %p0, 0xffffffff;";
    let report = warp(body).report();
    let c = report.classes;
    assert_eq!((c.integer, c.float, c.convert, c.global), (4, 1, 1, 1));
    // Two parameters; four special registers and the move; the two returns are one.
    assert_eq!(
        (c.other_memory, c.moves, c.barrier, c.warp, c.control),
        (2, 5, 1, 1, 1)
    );
    assert_eq!(report.warp_instructions, 17);
    assert_eq!(report.lane_instructions, 16 * 32 + 8);
    assert_eq!(report.divergent_instructions, 0);
}

#[test]
fn divergence() {
    let body = "setp.lt.u32 %p0, %tid, 8; @%p0 bra $a; add.u32 %r1, %tid, 1; bra $e; $a: add.u32 %r1, %tid, 2; $e:";
    assert_eq!(warp(body).report().divergent_instructions, 3);
}

#[test]
fn sectors_and_distinct_bytes() {
    let report = warp(&format!("{LOAD}{LOAD}{STORE}")).report();
    let input = &report.traffic[0];
    assert_eq!(input.label, "input");
    let read = input.read;
    assert_eq!((read.requests, read.bytes, read.sectors), (2, 256, 8));
    assert_eq!((read.distinct_bytes, read.distinct_sectors), (128, 4));
    assert_eq!(input.written.bytes, 0);
    assert_eq!(report.traffic[1].written.sectors, 4);
    assert_eq!(report.traffic_at(input.base + 100), Some(input));

    // Every lane in a sector of its own.
    let body = "mul.wide.u32 %rd0, %tid, 32; add.u64 %rd0, %in, %rd0; ld.global.u16 %h0, [%rd0+6];";
    let report = warp(body).input(vec![0; 256]).report();
    let read = report.traffic[0].read;
    assert_eq!(
        (
            read.bytes,
            read.sectors,
            read.distinct_bytes,
            read.distinct_sectors
        ),
        (64, 32, 64, 32)
    );

    // Lanes alternate between two sectors.
    let body = "and.b32 %r1, %tid, 1; mul.wide.u32 %rd0, %r1, 64; add.u64 %rd0, %in, %rd0; ld.global.u32 %r2, [%rd0];";
    let read = warp(body).report().traffic[0].read;
    assert_eq!((read.sectors, read.distinct_sectors), (2, 2));

    // Backwards, and two sectors straddled by nobody.
    let body = "sub.u32 %r1, 31, %tid; mul.wide.u32 %rd0, %r1, 16; add.u64 %rd0, %in, %rd0; ld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd0];";
    let read = warp(body).input(vec![0; 128]).report().traffic[0].read;
    assert_eq!(
        (read.sectors, read.distinct_sectors, read.distinct_bytes),
        (16, 16, 512)
    );
}

#[test]
fn atomics_read_and_write() {
    let report = warp("red.global.add.u32 [%out], 1;").output(1, 0).report();
    let traffic = &report.traffic[0];
    assert_eq!((traffic.read.requests, traffic.written.requests), (1, 1));
    assert_eq!(
        (traffic.written.bytes, traffic.written.distinct_bytes),
        (128, 4)
    );
}

#[test]
fn bank_conflicts_name_the_instruction() {
    let body = ".shared .b32 s[1024]; mul.lo.u32 %r1, %tid, 64; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; st.shared.u32 [%r2], 0;\n\
                bar.warp.sync 0xffffffff; ld.shared.u32 %r0, [s];";
    let report = block(32, body).report();
    // A stride of 16 words hits two banks: sixteen passes.
    assert_eq!(report.shared.requests, 2);
    assert_eq!(
        (report.shared.wavefronts, report.shared.extra_wavefronts),
        (17, 15)
    );
    assert_eq!(report.bank_conflicts.len(), 1);
    assert!(report.bank_conflicts[0].text.starts_with("st.shared.u32"));
    assert_eq!(report.bank_conflicts[0].extra_wavefronts, 15);
}

#[test]
fn copies_count_as_reads() {
    let body = ".shared .align 16 .b8 s[512]; mul.wide.u32 %rd1, %tid, 16; add.u64 %rd1, %in, %rd1; shl.b32 %r1, %tid, 4;\n\
                mov.u32 %r2, s; add.u32 %r2, %r2, %r1; cp.async.cg.shared.global [%r2], [%rd1], 16; cp.async.wait_all;";
    let report = warp(body).input(vec![1; 128]).report();
    let read = report.traffic[0].read;
    assert_eq!(
        (read.requests, read.bytes, read.sectors, read.distinct_bytes),
        (1, 512, 16, 512)
    );
    assert_eq!(report.classes.async_copy, 2);
}
