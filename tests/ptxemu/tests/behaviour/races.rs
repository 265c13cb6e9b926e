//! What orders accesses, and what does not.

use ptxemu::FaultKind::*;

use crate::bench::{STORE, block, warp};

/// Each thread writes its word of shared memory and, after `between`, reads its neighbour's.
fn exchange(threads: u32, neighbour: u32, between: &str) -> crate::bench::Bench {
    let body = format!(
        ".shared .b32 s[64]; shl.b32 %r1, %tid, 2; mov.u32 %r2, s; add.u32 %r2, %r2, %r1;\n\
         st.shared.u32 [%r2], %tid; {between}\n\
         xor.b32 %r3, %r1, {}; mov.u32 %r4, s; add.u32 %r4, %r4, %r3; ld.shared.u32 %r0, [%r4];{STORE}",
        neighbour * 4
    );
    let mut bench = block(threads, &body);
    bench.options.check_uninitialised = false;
    bench
}

#[test]
fn shared_reads_need_a_barrier() {
    exchange(64, 1, "").faults(
        SharedRace,
        "read of shared 0x4 is not ordered after a write by lane 1 of warp 0",
    );
    exchange(64, 32, "bar.warp.sync 0xffffffff;").faults(SharedRace, "not ordered after a read");
    exchange(64, 32, "membar.cta;").faults(SharedRace, "not ordered after a read");
    exchange(64, 1, "shfl.sync.idx.b32 %r9, %tid, 0, 31, 0xffffffff;")
        .faults(SharedRace, "bar.warp.sync");
    let expected: Vec<u32> = (0..64).map(|i| i ^ 1).collect();
    assert_eq!(exchange(64, 1, "bar.warp.sync 0xffffffff;").run(), expected);
    for seed in 0..5 {
        let mut bench = exchange(64, 32, "bar.sync 0;");
        bench.options.seed = seed;
        assert_eq!(bench.run()[0], 32);
    }
}

#[test]
fn partial_warp_barriers_order_their_lanes_only() {
    let halves = "and.b32 %r5, %lane, 16; setp.eq.u32 %p0, %r5, 0; selp.b32 %r6, 0xffff, 0xffff0000, %p0;\n\
                  bar.warp.sync %r6;";
    let split = "and.b32 %r5, %lane, 16; setp.eq.u32 %p0, %r5, 0; @%p0 bra $low; bar.warp.sync 0xffff0000; bra $on;\n\
                 $low: bar.warp.sync 0xffff; $on:";
    exchange(32, 1, split).run();
    exchange(32, 16, split).faults(SharedRace, "lane 16 of warp 0");
    // The member mask must be the same in all lanes that execute together.
    exchange(32, 1, halves).faults(Membermask, "0xffff0000");
}

#[test]
fn a_named_barrier_orders_only_who_takes_part() {
    // Warps 0 and 1 meet; warp 2 does not.
    let body = |reader: u32| {
        format!(
            ".shared .b32 s[32]; shl.b32 %r1, %lane, 2; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; mov.u32 %r0, 0;\n\
             setp.eq.u32 %p0, %warp, 0; @%p0 st.shared.u32 [%r2], %tid;\n\
             setp.eq.u32 %p1, %warp, 2; @%p1 bra $skip; bar.sync 1, 64; $skip:\n\
             setp.eq.u32 %p2, %warp, {reader}; @%p2 ld.shared.u32 %r0, [%r2];{STORE}"
        )
    };
    block(96, &body(1)).run();
    block(96, &body(2)).faults(SharedRace, "write by lane 0 of warp 0");
}

#[test]
fn writes_after_reads_and_writes() {
    let body = ".shared .b32 s; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [s], 1; bar.sync 0;\n\
                ld.shared.u32 %r0, [s]; BETWEEN setp.eq.u32 %p1, %tid, 40; @%p1 st.shared.u32 [s], 2;";
    block(64, &body.replace("BETWEEN", "")).faults(SharedRace, "not ordered after a read");
    block(64, &body.replace("BETWEEN", "bar.sync 0;")).run();
    warp(".shared .b32 s; st.shared.u32 [s], 1;")
        .faults(SharedRace, "not ordered after a write by lane 0");
    warp(".shared .b32 s; st.shared.u32 [s], %tid;").faults(SharedRace, "write");
}

#[test]
fn bytes_of_one_word_do_not_conflict() {
    let body = format!(
        ".shared .align 4 .b8 s[32]; mov.u32 %r1, s; add.u32 %r1, %r1, %tid; st.shared.u8 [%r1], %tid;\n\
         bar.warp.sync 0xffffffff; ld.shared.u8 %r0, [s+9];{STORE}"
    );
    assert_eq!(warp(&body).run(), vec![9; 32]);
}

#[test]
fn atomics_do_not_race_with_each_other_only() {
    let start = ".shared .b32 s; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0;";
    block(64, &format!("{start} red.shared.add.u32 [s], 1;")).run();
    block(
        64,
        &format!("{start} red.shared.add.u32 [s], 1; ld.shared.u32 %r0, [s];"),
    )
    .faults(SharedRace, "write");
    block(
        64,
        &format!("{start} red.shared.add.u32 [s], 1; ld.volatile.shared.u32 %r0, [s];"),
    )
    .run();
    block(
        64,
        &format!("{start} red.shared.add.u32 [s], 1; @%p0 st.shared.u32 [s], 5;"),
    )
    .faults(SharedRace, "write");
}

#[test]
fn global_races_within_a_block() {
    let body = |between: &str| {
        format!(
            "mul.wide.u32 %rd0, %tid, 4; add.u64 %rd0, %out, %rd0; st.global.u32 [%rd0], %tid; {between}\n\
             xor.b32 %r1, %tid, 33; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd1, %out, %rd1; ld.global.u32 %r0, [%rd1];"
        )
    };
    for between in ["", "membar.gl;", "bar.warp.sync 0xffffffff;"] {
        let mut bench = block(64, &body(between));
        bench.options.check_uninitialised = false;
        bench.faults(GlobalRace, "not ordered after a read by lane 1 of warp 0");
    }
    block(64, &body("bar.sync 0;")).run();
    let mut unchecked = block(64, &body("membar.gl;"));
    unchecked.options.check_races = false;
    unchecked.options.check_uninitialised = false;
    unchecked.run();
}

#[test]
fn global_races_between_blocks() {
    let write = "st.global.u32 [%out], %tid;";
    let one = |op: &str| format!("setp.ne.u32 %p0, %tid, 0; @%p0 bra $e; {op} $e:");
    for threads in [1, 2, 3] {
        let race = |op: &str, part: &str| {
            let mut bench = warp(&one(op)).grid(40).output(64, 7);
            bench.options.threads = threads;
            bench.faults(GlobalRace, part);
        };
        race(
            write,
            "not ordered after a write by block or cluster 0, warp 0, lane 0",
        );
        race(
            "ld.global.u32 %r0, [%out]; st.global.u32 [%out+4], 1; ld.global.u32 %r0, [%out+4];",
            "offset 4",
        );
        race(
            "setp.eq.u32 %p1, %cta, 9; @%p1 st.global.u32 [%out], 2; ld.global.u32 %r0, [%out];",
            "not ordered",
        );
        race(
            "setp.eq.u32 %p1, %cta, 39; ld.global.u32 %r0, [%out]; @%p1 st.global.u32 [%out], 2;",
            "several blocks",
        );
    }
    warp(&one("red.global.add.u32 [%out], 1;"))
        .grid(40)
        .output(64, 7)
        .run();
    warp(&one(
        "red.global.add.u32 [%out], 1; ld.global.u32 %r0, [%out];",
    ))
    .grid(4)
    .output(64, 7)
    .faults(GlobalRace, "");
}

/// The last block to arrive sums what all have written.
fn last_block(fence: &str, after: &str) -> crate::bench::Bench {
    let body = format!(
        "setp.ne.u32 %p0, %tid, 0; @%p0 bra $e; mul.wide.u32 %rd0, %cta, 4; add.u64 %rd1, %out, %rd0;\n\
         add.u32 %r1, %cta, 1; st.global.u32 [%rd1+8], %r1; {fence} atom.global.inc.u32 %r2, [%out], 7;\n\
         setp.ne.u32 %p1, %r2, 7; @%p1 bra $e; {after} mov.u32 %r3, 0; mov.u32 %r4, 0; add.u64 %rd2, %out, 8;\n\
         $l: ld.global.u32 %r5, [%rd2]; add.u32 %r3, %r3, %r5; add.u64 %rd2, %rd2, 4; add.u32 %r4, %r4, 1;\n\
         setp.lt.u32 %p2, %r4, 8; @%p2 bra $l; st.global.u32 [%out+4], %r3; $e:"
    );
    warp(&body).grid(8).output(16, 0)
}

#[test]
fn the_last_block_sees_what_fences_and_atomics_release() {
    assert_eq!(last_block("membar.gl;", "membar.gl;").run()[1], 36);
    assert_eq!(
        last_block("fence.acq_rel.gpu;", "fence.acq_rel.gpu;").run()[1],
        36
    );
    last_block("", "membar.gl;").faults(GlobalRace, "ld.global.u32");
    last_block("membar.gl;", "").faults(GlobalRace, "ld.global.u32");
    let mut bench = last_block("", "");
    bench.body = bench
        .body
        .replace("atom.global.inc", "atom.acq_rel.gpu.global.inc");
    assert_eq!(bench.run()[1], 36);
}

#[test]
fn what_follows_a_release_is_not_released() {
    // A block writes again after it has announced its first write.
    let mut bench = last_block("membar.gl;", "membar.gl;");
    bench.body = bench.body.replace(
        "setp.ne.u32 %p1, %r2, 7;",
        "setp.eq.u32 %p3, %cta, 0; @%p3 st.global.u32 [%rd1+8], 9; setp.ne.u32 %p1, %r2, 7;",
    );
    bench.faults(GlobalRace, "write by block or cluster 0");
}

#[test]
fn memory_keeps_nothing_of_a_launch() {
    // Two launches of the same kernel write the same place: no race.
    let bench =
        warp("mul.wide.u32 %rd0, %tid, 4; add.u64 %rd0, %out, %rd0; st.global.u32 [%rd0], %tid;");
    bench.run();
    bench.run();
}
