//! Host threads, seeds and cooperative launches do not change results.

use ptxemu::{Dim3, Options};

use crate::bench::{Bench, STORE, warp};

fn busy() -> Bench {
    let body = format!(
        ".shared .b32 s[32]; shl.b32 %r1, %tid, 2; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; add.u32 %r3, %cta, %tid;\n\
         st.shared.u32 [%r2], %r3; bar.sync 0; ld.shared.u32 %r0, [s+64]; mul.wide.u32 %rd0, %tid, 4;\n\
         add.u64 %rd0, %in, %rd0; ld.global.u32 %r4, [%rd0]; add.u32 %r0, %r0, %r4;{STORE}"
    );
    warp(&body).grid(50)
}

#[test]
fn reports_do_not_depend_on_host_threads() {
    let (out, report) = busy().launch();
    let report = report.unwrap();
    for threads in [2, 5] {
        let mut bench = busy();
        bench.options = Options {
            threads,
            ..Options::default()
        };
        let (other, other_report) = bench.launch();
        assert_eq!(out, other);
        assert_eq!(report, other_report.unwrap());
    }
}

#[test]
fn faults_and_memory_after_them_do_not_depend_on_host_threads() {
    let fail = |threads| {
        // The memory that a fault leaves behind is that of a sequential run.
        let mut bench = busy();
        bench.body += "\nsetp.eq.u32 %p1, %cta, 23; @%p1 trap; setp.eq.u32 %p1, %cta, 31; @%p1 ld.global.u32 %r0, [0];";
        bench.options.threads = threads;
        let (out, report) = bench.launch();
        (out, report.unwrap_err())
    };
    let expected = fail(1);
    assert!(expected.1.message.contains("block (23,0,0)"));
    for threads in [2, 3, 8] {
        assert_eq!(fail(threads), expected);
    }
}

#[test]
fn a_repeated_launch_starts_from_the_memory_before_it() {
    let body = "setp.ne.u32 %p0, %tid, 0; @%p0 bra $e; mul.wide.u32 %rd0, %cta, 4; add.u64 %rd0, %out, %rd0;\n\
                ld.global.u32 %r0, [%rd0]; add.u32 %r0, %r0, 1; st.global.u32 [%rd0], %r0;\n\
                setp.eq.u32 %p1, %cta, 39; @%p1 trap; $e:";
    let mut bench = warp(body).grid(40).output(40, 6);
    bench.options.threads = 2;
    let (out, report) = bench.launch();
    assert_eq!(report.unwrap_err().kind, ptxemu::FaultKind::Trap);
    assert_eq!(out, vec![7; 40]);
}

#[test]
fn blocks_of_a_cooperative_launch_may_wait_for_each_other() {
    let body = "setp.ne.u32 %p0, %tid, 0; @%p0 bra $e; membar.gl; red.global.add.u32 [%out], 1;\n\
                $l: ld.volatile.global.u32 %r1, [%out]; setp.lt.u32 %p1, %r1, 4; @%p1 bra $l; $e:";
    let mut bench = warp(body).grid(4).output(4, 0);
    bench.faults(ptxemu::FaultKind::Deadlock, "polls");
    bench.cooperative = true;
    assert_eq!(bench.run()[0], 4);
}

#[test]
fn a_block_that_reads_memory_again_lets_copies_land_and_may_give_up() {
    // Block 1 waits for a bulk copy, and block 0 for the word that it then writes.
    let body = ".shared .align 16 .b32 s[32]; .shared .align 8 .b64 m; setp.ne.u32 %p0, %tid, 0; @%p0 bra $e;\n\
                setp.eq.u32 %p1, %cta, 0; @%p1 bra $poll; mbarrier.init.shared.b64 [m], 1;\n\
                mbarrier.arrive.expect_tx.shared.b64 %rd1, [m], 128;\n\
                cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%in], 128, [m];\n\
                $w: mbarrier.try_wait.parity.shared.b64 %p2, [m], 0; @!%p2 bra $w;\n\
                ld.shared.u32 %r1, [s+8]; st.relaxed.gpu.global.u32 [%out], %r1; bra $e;\n\
                $poll: mov.u32 %r3, 0;\n\
                $l: ld.relaxed.gpu.global.u32 %r2, [%out]; setp.ne.u32 %p3, %r2, 0; @%p3 bra $found;\n\
                add.u32 %r3, %r3, 1; setp.lt.u32 %p4, %r3, 1000; @%p4 bra $l;\n\
                $found: st.global.u32 [%out+4], %r2; $e:";
    let mut bench = warp(body).grid(2).output(2, 0);
    bench.cooperative = true;
    assert_eq!(bench.run(), [106, 106]);
    // Alone, block 0 gives up after a thousand reads.
    assert_eq!(warp(body).output(2, 0).run(), [0, 0]);
}

#[test]
fn coordinates_in_three_dimensions() {
    let body = "mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y;\n\
                mov.u32 %r6, %ctaid.z; mad.lo.u32 %r7, %r6, 2, %r5; mad.lo.u32 %r7, %r7, 3, %r4; mad.lo.u32 %r8, %r3, 4, %r2;\n\
                mad.lo.u32 %r8, %r8, 2, %r1; mad.lo.u32 %r9, %r7, 16, %r8; mul.wide.u32 %rd0, %r9, 4; add.u64 %rd0, %out, %rd0;\n\
                st.global.u32 [%rd0], %r9;";
    let mut bench = warp(body);
    bench.grid = Dim3::new(3, 2, 2);
    bench.output_words = 192;
    let module = bench.parse();
    let memory = ptxemu::Memory::new();
    let out = memory.alloc(192 * 4);
    let params: Vec<u8> = [out, out].iter().flat_map(|a| a.to_le_bytes()).collect();
    let launch = ptxemu::Launch::new(bench.grid, Dim3::new(2, 4, 2), &params);
    ptxemu::launch(
        &module,
        module.kernel("k").unwrap(),
        &launch,
        &memory,
        &bench.options,
    )
    .unwrap();
    let mut bytes = vec![0; 768];
    memory.read(out, &mut bytes).unwrap();
    let words: Vec<u32> = bytes
        .chunks(4)
        .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(words, (0..192).collect::<Vec<_>>());
}
