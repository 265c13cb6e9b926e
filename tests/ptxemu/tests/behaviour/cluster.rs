//! Clusters, distributed shared memory, mbarriers and bulk copies.

use ptxemu::Dim3;
use ptxemu::FaultKind::*;

use crate::bench::{Bench, STORE, warp};

/// The address of this lane's word of `s` in the block of the cluster with rank `%r10`, in `%r11`.
const REMOTE: &str = "shl.b32 %r1, %lane, 2; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; mov.u32 %r12, %cluster_ctarank;\n\
    xor.b32 %r10, %r12, 1; mapa.shared::cluster.u32 %r11, %r2, %r10;\n";
const SYNC: &str = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";

fn pair(body: &str) -> Bench {
    warp(&format!(".shared .align 16 .b32 s[32]; {REMOTE} {body}"))
        .grid(4)
        .cluster(2)
}

#[test]
fn blocks_read_each_other() {
    let body = format!(
        "mad.lo.u32 %r3, %cta, 100, %lane; st.shared.u32 [%r2], %r3; {SYNC}\n\
         ld.shared::cluster.u32 %r0, [%r11]; {SYNC} {STORE}"
    );
    let expected: Vec<u32> = (0..4)
        .flat_map(|b: u32| (0..32).map(move |l| (b ^ 1) * 100 + l))
        .collect();
    assert_eq!(pair(&body).run(), expected);
    let body = format!(
        "{SYNC} add.u32 %r3, %cta, 5; st.shared::cluster.u32 [%r11], %r3; {SYNC} ld.shared.u32 %r0, [%r2]; {STORE}"
    );
    assert_eq!(pair(&body).run()[..33], [vec![6; 32], vec![5]].concat());
}

#[test]
fn generic_and_wide_remote_addresses() {
    let body = format!(
        "st.shared.u32 [%r2], %cta; {SYNC} cvt.u64.u32 %rd1, %r2; cvta.shared.u64 %rd1, %rd1; mapa.u64 %rd2, %rd1, %r10;\n\
         ld.u32 %r0, [%rd2]; getctarank.shared::cluster.u32 %r4, %r11; getctarank.u64 %r5, %rd1; mad.lo.u32 %r0, %r0, 10, %r4;\n\
         mad.lo.u32 %r0, %r0, 10, %r5; isspacep.shared::cluster %p0, %rd2; isspacep.shared %p1, %rd2;\n\
         @!%p0 mov.u32 %r0, 0; @%p1 mov.u32 %r0, 0; {SYNC} {STORE}"
    );
    let out = pair(&body).run();
    assert_eq!([out[0], out[32], out[64], out[96]], [110, 1, 310, 201]);
}

#[test]
fn remote_accesses_race_without_the_cluster_barrier() {
    let read = |between: &str| {
        pair(&format!(
            "{SYNC} st.shared.u32 [%r2], %cta; {between} ld.shared::cluster.u32 %r0, [%r11]; {SYNC} {STORE}"
        ))
    };
    read("bar.sync 0;").faults(SharedRace, "not ordered after a write by lane 0 of warp 1");
    read("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;")
        .faults(SharedRace, "write");
    read("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;").run();
}

#[test]
fn other_blocks_need_not_run_before_they_are_met_or_after_they_exit() {
    let store = "st.shared::cluster.u32 [%r11], %cta;";
    pair(store).faults(SharedRace, "need not run before a cluster barrier");
    // The barrier covers what comes before the arrival, and not this read.
    let read = format!(
        "st.shared.u32 [%r2], %cta; {SYNC} barrier.cluster.arrive.aligned; ld.shared::cluster.u32 %r0, [%r11];\n\
         barrier.cluster.wait.aligned; {STORE}"
    );
    pair(&read).faults(SharedRace, "exits while warp 0 of the block with rank");
    // The second block goes on alone.
    let late = format!("{SYNC} setp.eq.u32 %p0, %r12, 0; @%p0 exit; {SYNC} {store}");
    pair(&late).faults(UseAfterFree, "all threads of which have exited");
}

/// This lane's word goes to the other block, which counts the bytes of all lanes.
fn counted(bytes: u32, wait: &str, vector: &str) -> Bench {
    pair(&format!(
        ".shared .align 8 .b64 m; setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared.b64 [m], 1;\n\
         @%p0 fence.mbarrier_init.release.cluster; mov.u32 %r5, m; mapa.shared::cluster.u32 %r6, %r5, %r10; {SYNC}\n\
         @%p0 mbarrier.arrive.expect_tx.shared.b64 %rd1, [m], {bytes};\n\
         mad.lo.u32 %r3, %cta, 100, %lane; mov.u32 %r4, %r3;\n\
         {vector} mov.u32 %r3, 7;\n\
         $w: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [m], 0; @!%p1 {wait}\n\
         ld.shared.u32 %r0, [%r2]; {STORE}"
    ))
}

#[test]
fn asynchronous_stores_count_on_the_barrier_of_the_other_block() {
    let one = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r11], %r3, [%r6];";
    let expected: Vec<u32> = (0..4)
        .flat_map(|b: u32| (0..32).map(move |l| (b ^ 1) * 100 + l))
        .collect();
    assert_eq!(counted(128, "bra $w;", one).run(), expected);
    counted(128, "bra $e; $e:", one).faults(UnwaitedCopy, "pending copy");
    counted(132, "bra $w;", one).faults(Deadlock, "polls");
    let two = "and.b32 %r7, %lane, 1; setp.eq.u32 %p2, %r7, 0;\n\
               @%p2 st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r11], {%r3, %r4}, [%r6];";
    let pairs: Vec<u32> = expected.iter().map(|v| v & !1).collect();
    assert_eq!(counted(128, "bra $w;", two).run(), pairs);
    let here = one.replace("[%r6]", "[%r5]");
    counted(128, "bra $w;", &here).faults(IllegalOperand, "in another block");
}

#[test]
fn remote_atomics() {
    let body = format!(
        "setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [s], 0; {SYNC} mov.u32 %r5, s; mapa.shared::cluster.u32 %r6, %r5, 0;\n\
         atom.shared::cluster.add.u32 %r7, [%r6], 1; {SYNC} ld.shared.u32 %r0, [s]; {STORE}"
    );
    let out = pair(&body).run();
    assert_eq!([out[0], out[32], out[64], out[96]], [64, 0, 64, 0]);
}

#[test]
fn cluster_coordinates() {
    let read = |name: &str| {
        let mut bench = pair(&format!("mov.u32 %r0, {name}; {STORE}"));
        bench.directives = ".explicitcluster .reqnctapercluster 2, 1, 1";
        bench.cluster = Dim3::ONE;
        let out = bench.run();
        [out[0], out[32], out[64], out[96]]
    };
    assert_eq!(read("%cluster_ctarank"), [0, 1, 0, 1]);
    assert_eq!(read("%cluster_nctarank"), [2; 4]);
    assert_eq!(read("%clusterid.x"), [0, 0, 1, 1]);
    assert_eq!(read("%nclusterid.x"), [2; 4]);
    assert_eq!(read("%cluster_ctaid.x"), [0, 1, 0, 1]);
    assert_eq!(read("%cluster_nctaid.x"), [2; 4]);
}

#[test]
fn cluster_barrier_mistakes() {
    pair("barrier.cluster.wait.aligned;").faults(IllegalOperand, "without an arrival");
    pair("barrier.cluster.arrive; barrier.cluster.arrive;")
        .faults(IllegalOperand, "second arrival");
    pair("setp.eq.u32 %p0, %tid, 0; @%p0 barrier.cluster.arrive.aligned;")
        .faults(DivergentBarrier, "lanes");
    pair("mapa.shared::cluster.u32 %r3, %r2, 2; ld.shared::cluster.u32 %r0, [%r3];")
        .faults(OutOfBounds, "rank 2");
}

/// Lane 0 initialises the mbarrier `m` for one arrival.
const INIT: &str = ".shared .align 8 .b64 m; .shared .align 16 .b32 t[64]; setp.eq.u32 %p0, %tid, 0;\n\
    @%p0 mbarrier.init.shared::cta.b64 [m], 1; fence.mbarrier_init.release.cluster; fence.proxy.async; bar.sync 0;\n\
    shl.b32 %r1, %lane, 2; mov.u32 %r2, t; add.u32 %r2, %r2, %r1;\n";
const WAIT: &str =
    "$wait: mbarrier.try_wait.parity.shared::cta.b64 %p1, [m], 0; @!%p1 bra $wait;\n";

#[test]
fn mbarriers_release_and_acquire() {
    let body = format!(
        "{INIT} @!%p0 bra $on; st.shared.u32 [t], 77; mbarrier.arrive.release.cta.shared::cta.b64 %rd0, [m];\n\
         $on: {WAIT} ld.shared.u32 %r0, [t]; {STORE}"
    );
    assert_eq!(warp(&body).run(), vec![77; 32]);
    let skip = body.replace(WAIT, "");
    warp(&skip).faults(SharedRace, "write by lane 0");
}

#[test]
fn mbarrier_phases_states_and_counts() {
    let body = format!(
        ".shared .align 8 .b64 n; {INIT} @!%p0 bra $e; mbarrier.init.shared.b64 [n], 3;\n\
         mbarrier.arrive.shared.b64 %rd1, [n], 2; mbarrier.test_wait.shared.b64 %p2, [n], %rd1; selp.u32 %r0, 1, 0, %p2;\n\
         mbarrier.arrive.shared.b64 %rd2, [n]; mbarrier.test_wait.shared.b64 %p2, [n], %rd1; @%p2 add.u32 %r0, %r0, 2;\n\
         mbarrier.test_wait.parity.shared.b64 %p2, [n], 1; @%p2 add.u32 %r0, %r0, 4;\n\
         mbarrier.test_wait.parity.shared.b64 %p2, [n], 0; @%p2 add.u32 %r0, %r0, 8;\n\
         mbarrier.arrive_drop.shared.b64 %rd3, [n]; mbarrier.arrive.shared.b64 %rd3, [n], 2;\n\
         mbarrier.arrive.shared.b64 %rd4, [n], 2; mbarrier.test_wait.shared.b64 %p2, [n], %rd4; @%p2 add.u32 %r0, %r0, 16;\n\
         mbarrier.arrive.expect_tx.shared.b64 %rd5, [n], 64; mbarrier.arrive.shared.b64 _, [n];\n\
         mbarrier.test_wait.shared.b64 %p2, [n], %rd5; @!%p2 add.u32 %r0, %r0, 32;\n\
         mbarrier.complete_tx.shared::cta [n], 64; mbarrier.test_wait.shared.b64 %p2, [n], %rd5; @%p2 add.u32 %r0, %r0, 64;\n\
         mbarrier.inval.shared.b64 [n]; st.global.u32 [%out], %r0; $e:"
    );
    assert_eq!(warp(&body).run()[0], 2 + 8 + 16 + 32 + 64);
}

#[test]
fn mbarriers_expect_transactions_without_an_arrival() {
    let body = format!(
        "{INIT} @!%p0 bra $e; mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [m], 8; mbarrier.arrive.shared.b64 %rd0, [m];\n\
         mbarrier.test_wait.shared.b64 %p2, [m], %rd0; selp.u32 %r0, 1, 0, %p2; mbarrier.complete_tx.shared::cta [m], 8;\n\
         mbarrier.try_wait.shared.b64 %p2, [m], %rd0, 1000; @%p2 add.u32 %r0, %r0, 2; st.global.u32 [%out], %r0; $e:"
    );
    assert_eq!(warp(&body).run()[0], 2);
}

#[test]
fn mbarrier_mistakes() {
    let with = |op: &str| warp(&format!("{INIT} @!%p0 bra $e; {op} $e:"));
    with("mbarrier.arrive.shared.b64 %rd0, [t];").faults(IllegalOperand, "no mbarrier");
    with("mbarrier.arrive.shared.b64 %rd0, [m], 2;").faults(IllegalOperand, "2 arrivals");
    with("mbarrier.arrive.noComplete.shared.b64 %rd0, [m], 1;")
        .faults(IllegalOperand, "must not complete");
    with("mbarrier.init.b64 [%in], 1;").faults(IllegalOperand, "outside shared memory");
    with("ld.shared.u64 %rd0, [m];").faults(IllegalOperand, "read of an mbarrier");
    with("st.shared.u64 [m], 0;").faults(IllegalOperand, "write to an mbarrier");
    with("mbarrier.init.shared.b64 [t], 0;").faults(IllegalOperand, "count of 0");
    let body = ".shared .align 8 .b64 m; setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared.b64 [m], 1;\n\
                setp.eq.u32 %p0, %tid, 9; @%p0 mbarrier.arrive.shared.b64 %rd0, [m];";
    warp(body).faults(SharedRace, "use of shared");
}

#[test]
fn remote_arrivals() {
    let body = format!(
        ".shared .align 8 .b64 m; setp.eq.u32 %p0, %tid, 0; @%p0 mbarrier.init.shared.b64 [m], 32; {SYNC}\n\
         st.shared::cluster.u32 [%r11], %tid; mov.u32 %r5, m; mapa.shared::cluster.u32 %r6, %r5, %r10;\n\
         mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r6]; {WAIT} ld.shared.u32 %r0, [%r2]; {SYNC} {STORE}"
    );
    assert_eq!(pair(&body).run()[32..64], (0..32).collect::<Vec<u32>>());
}

/// A bulk copy of 128 bytes of the input to `t`.
const BULK: &str = "@!%p0 bra $issued; mbarrier.arrive.expect_tx.shared::cta.b64 %rd0, [m], 128;\n\
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [t], [%in], 128, [m]; $issued:\n";

#[test]
fn bulk_loads_complete_on_the_mbarrier() {
    let body = format!("{INIT} {BULK} {WAIT} ld.shared.u32 %r0, [%r2]; {STORE}");
    let report = warp(&body).report();
    assert_eq!(
        (report.traffic[0].read.bytes, report.traffic[0].read.sectors),
        (128, 4)
    );
    assert_eq!(
        warp(&body).run(),
        (0..32).map(|i| i * 3 + 100).collect::<Vec<_>>()
    );
    // From PTX 8.6 on.
    warp(&body.replace("bulk.shared::cluster", "bulk.shared::cta")).run();
    warp(&body.replace(WAIT, "")).faults(UnwaitedCopy, "destination of a pending copy");
    // Waiting for the other parity does not wait.
    warp(&body.replace("[m], 0; @!%p1", "[m], 1; @!%p1")).faults(UnwaitedCopy, "pending");
    // A lane that has not waited has not seen the data, even if another one has.
    let one = body.replace(
        WAIT,
        &format!("@!%p0 bra $go; {WAIT} $go: bar.warp.sync 0xffffffff;"),
    );
    warp(&one).run();
    // Bytes that never arrive.
    warp(&body.replace("[m], 128;\n", "[m], 144;\n")).faults(Deadlock, "polls");
}

#[test]
fn bulk_rules() {
    let change = |from: &str, to: &str| warp(&format!("{INIT} {} {WAIT}", BULK.replace(from, to)));
    change("[%in], 128, [m]", "[%in], 120, [m]").faults(Misaligned, "120");
    change("[%in], 128, [m]", "[%in+8], 112, [m]").faults(Misaligned, "bulk copy");
    change("[t], [%in]", "[t+8], [%in]").faults(Misaligned, "shared");
    change("[%in], 128, [m]", "[%in+16], 128, [m]").faults(OutOfBounds, "input");
    change("128, [m]", "128, [t]").faults(IllegalOperand, "no mbarrier");
}

#[test]
fn copies_stay_between_the_blocks_they_may_join() {
    pair(&format!(
        "{SYNC} cp.async.ca.shared.global [%r11], [%in], 4;"
    ))
    .faults(IllegalOperand, "cp.async to another");
    let copy = "fence.proxy.async; cp.async.bulk.global.shared::cta.bulk_group [%out], [%r11], 16;";
    pair(&format!(
        "st.shared.u32 [%r2], 0; {SYNC} setp.eq.u32 %p0, %tid, 0; @%p0 {copy}"
    ))
    .faults(IllegalOperand, "from another block's shared memory");
    let body = format!(
        "{INIT} mov.u32 %r12, %cluster_ctarank; xor.b32 %r10, %r12, 1; mov.u32 %r7, m;\n\
         mapa.shared::cluster.u32 %r8, %r7, %r10; {SYNC} {}",
        BULK.replace("128, [m]; $", "128, [%r8]; $")
    );
    let bench = warp(&body).grid(2).cluster(2);
    bench.faults(IllegalOperand, "mbarrier is in another block");
}

#[test]
fn bulk_multicast_reaches_all_blocks() {
    let copy = BULK.replace(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [t], [%in], 128, [m];",
        "setp.ne.u32 %p2, %r12, 0; mov.u16 %h1, 3; @%p2 bra $issued;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [t], [%in], 128, [m], %h1;",
    );
    // The mbarriers of both blocks exist before the copy, and expect it.
    let body = format!("{INIT} {SYNC} {copy} {WAIT} ld.shared.u32 %r0, [%r2]; {SYNC} {STORE}");
    let out = pair(&body).run();
    assert_eq!([out[0], out[32], out[65], out[127]], [100, 100, 103, 193]);
}

#[test]
fn bulk_copies_between_blocks() {
    let body = format!(
        "{INIT} mov.u32 %r12, %cluster_ctarank; xor.b32 %r10, %r12, 1; mad.lo.u32 %r3, %cta, 100, %lane; st.shared.u32 [%r2+128], %r3;\n\
         @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 %rd0, [m], 128; fence.proxy.async; {SYNC}\n\
         @!%p0 bra $issued; mov.u32 %r5, t; mapa.shared::cluster.u32 %r6, %r5, %r10; mov.u32 %r7, m; mapa.shared::cluster.u32 %r8, %r7, %r10;\n\
         cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r6], [t+128], 128, [%r8]; $issued:\n\
         {WAIT} ld.shared.u32 %r0, [%r2]; {SYNC} {STORE}"
    );
    let out = warp(&body).grid(2).cluster(2).run();
    assert_eq!([out[1], out[33]], [101, 1]);
}

#[test]
fn bulk_stores_complete_with_their_group() {
    let body = |wait: &str| {
        format!(
            "{INIT} mul.lo.u32 %r3, %tid, 7; st.shared.u32 [%r2], %r3; fence.proxy.async; bar.sync 0; @!%p0 bra $e;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%out], [t], 128; cp.async.bulk.commit_group; {wait} $e:"
        )
    };
    let wait = "cp.async.bulk.wait_group 0;";
    assert_eq!(
        warp(&body(wait)).run(),
        (0..32).map(|i| i * 7).collect::<Vec<_>>()
    );
    warp(&body(
        "cp.async.bulk.wait_group.read 0; st.shared.u32 [t], 1;",
    ))
    .run();
    warp(&body(&format!("st.shared.u32 [t], 1; {wait}")))
        .faults(UnwaitedCopy, "source of a pending copy");
    warp(&body("")).faults(UnwaitedCopy, "exit with bulk copies");
}

#[test]
fn copies_of_lanes_can_arrive_on_an_mbarrier() {
    let body = |form: &str, count: u32| {
        let init = INIT.replace("[m], 1;", &format!("[m], {count};"));
        format!(
            "{init} mul.wide.u32 %rd1, %tid, 4; add.u64 %rd1, %in, %rd1; cp.async.ca.shared.global [%r2], [%rd1], 4;\n\
             cp.async.mbarrier.arrive{form}.shared::cta.b64 [m]; setp.eq.u32 %p3, %tid, 0;\n\
             {} {WAIT} xor.b32 %r2, %r2, 4; ld.shared.u32 %r0, [%r2]; {STORE}",
            if count == 1 {
                "@%p3 mbarrier.arrive.shared::cta.b64 %rd5, [m];"
            } else {
                ""
            }
        )
    };
    let expected: Vec<u32> = (0..32u32).map(|i| (i ^ 1) * 3 + 100).collect();
    assert_eq!(warp(&body(".noinc", 32)).run(), expected);
    assert_eq!(warp(&body("", 1)).run(), expected);
}

#[test]
fn hints_do_nothing() {
    let body = format!(
        "setmaxnreg.inc.sync.aligned.u32 64; griddepcontrol.launch_dependents; griddepcontrol.wait; nanosleep.u32 20;\n\
         prefetch.global.L2 [%in]; prefetchu.L1 [%in]; applypriority.global.L2::evict_normal [%in], 128; pmevent 1;\n\
         discard.global.L2 [%in], 128; fence.proxy.async.shared::cta; fence.proxy.alias; fence.sc.cluster; mov.u32 %r0, 1; {STORE}"
    );
    assert_eq!(warp(&body).run(), vec![1; 32]);
}
