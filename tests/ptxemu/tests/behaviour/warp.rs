//! Exchanges within a warp, and block barriers.

use crate::bench::{LOAD, STORE, block, warp};

fn input() -> Vec<u32> {
    (0..32).map(|i| i * 3 + 100).collect()
}

fn shuffle(mode: &str, by: u32, clamp: u32) -> Vec<(u32, bool)> {
    let body = format!(
        "{LOAD} shfl.sync.{mode}.b32 %r1|%p1, %r0, {by}, {clamp:#x}, 0xffffffff;\n\
         selp.u32 %r2, 1000, 0, %p1; add.u32 %r0, %r1, %r2;{STORE}"
    );
    warp(&body)
        .run()
        .into_iter()
        .map(|x| (x % 1000, x >= 1000))
        .collect()
}

#[test]
fn shuffles() {
    let v = input();
    let expect = |source: &dyn Fn(usize) -> Option<usize>| -> Vec<(u32, bool)> {
        (0..32)
            .map(|l| source(l).map_or((v[l], false), |s| (v[s], true)))
            .collect()
    };
    assert_eq!(shuffle("bfly", 5, 0x1f), expect(&|l| Some(l ^ 5)));
    assert_eq!(shuffle("up", 3, 0), expect(&|l| l.checked_sub(3)));
    assert_eq!(
        shuffle("down", 7, 0x1f),
        expect(&|l| Some(l + 7).filter(|&s| s < 32))
    );
    assert_eq!(shuffle("idx", 9, 0x1f), expect(&|_| Some(9)));
    // Segments of eight lanes.
    assert_eq!(shuffle("idx", 2, 0x181f), expect(&|l| Some(l / 8 * 8 + 2)));
    assert_eq!(
        shuffle("up", 3, 0x1800),
        expect(&|l| if l % 8 >= 3 { Some(l - 3) } else { None })
    );
    assert_eq!(
        shuffle("down", 3, 0x181f),
        expect(&|l| if l % 8 < 5 { Some(l + 3) } else { None })
    );
    assert_eq!(
        shuffle("bfly", 8, 0x181f),
        expect(&|l| if l & 8 == 8 { Some(l ^ 8) } else { None })
    );
}

#[test]
fn votes() {
    let vote = |mode: &str, limit: u32| {
        let body = format!(
            "setp.lt.u32 %p0, %tid, {limit}; vote.sync.{mode}.pred %p1, %p0, 0xffffffff;\n\
             selp.u32 %r0, 1, 0, %p1;{STORE}"
        );
        warp(&body).run()[0]
    };
    assert_eq!([vote("all", 32), vote("all", 31)], [1, 0]);
    assert_eq!([vote("any", 1), vote("any", 0)], [1, 0]);
    assert_eq!([vote("uni", 32), vote("uni", 0), vote("uni", 5)], [1, 1, 0]);
    let body =
        format!("setp.lt.u32 %p0, %tid, 5; vote.sync.ballot.b32 %r0, !%p0, 0xffffffff;{STORE}");
    assert_eq!(warp(&body).run()[0], !31);
}

#[test]
fn matches() {
    let body = format!("and.b32 %r1, %tid, 3; match.any.sync.b32 %r0, %r1, 0xffffffff;{STORE}");
    assert_eq!(
        warp(&body).run(),
        (0..32)
            .map(|i| 0x1111_1111u32 << (i % 4))
            .collect::<Vec<_>>()
    );
    let body = format!(
        "mov.u64 %rd1, 9; match.all.sync.b64 %r0|%p0, %rd1, 0xffffffff; @!%p0 mov.u32 %r0, 1;{STORE}"
    );
    assert_eq!(warp(&body).run()[7], u32::MAX);
    let body = format!("match.all.sync.b32 %r0|%p0, %tid, 0xffffffff; @%p0 mov.u32 %r0, 1;{STORE}");
    assert_eq!(warp(&body).run()[7], 0);
}

#[test]
fn reductions() {
    let redux = |form: &str| {
        warp(&format!(
            "sub.u32 %r1, %tid, 3; redux.sync.{form} %r0, %r1, 0xffffffff;{STORE}"
        ))
        .run()[9]
    };
    assert_eq!(redux("add.u32"), 496 - 96);
    assert_eq!(redux("min.s32"), -3i32 as u32);
    assert_eq!(redux("max.s32"), 28);
    assert_eq!(redux("min.u32"), 0);
    assert_eq!(redux("max.u32"), u32::MAX);
    assert_eq!(redux("or.b32"), u32::MAX);
    assert_eq!(redux("and.b32"), 0);
    assert_eq!(
        redux("xor.b32"),
        (0..32u32).fold(0, |x, i| x ^ i.wrapping_sub(3))
    );
}

#[test]
fn elections_and_active_masks() {
    let body = format!("elect.sync _|%p0, 0xffffffff; selp.u32 %r0, 1, 0, %p0;{STORE}");
    assert_eq!(warp(&body).run().iter().sum::<u32>(), 1);
    let body = format!(
        "mov.u32 %r0, 0; setp.lt.u32 %p0, %tid, 10; @!%p0 bra $end; activemask.b32 %r0; $end:{STORE}"
    );
    let expected: Vec<u32> = (0..32).map(|i| if i < 10 { 0x3ff } else { 0 }).collect();
    assert_eq!(warp(&body).run(), expected);
}

#[test]
fn members_of_a_mask_wait_for_each_other() {
    // Lanes below 8 take another way, but shuffle at the same instruction.
    let body = format!(
        "mov.u32 %r0, %tid; setp.lt.u32 %p0, %tid, 8; @!%p0 bra $shuffle; add.u32 %r0, %r0, 50;\n\
         $shuffle: shfl.sync.bfly.b32 %r0, %r0, 8, 31, 0xffffffff;{STORE}"
    );
    let expected: Vec<u32> = (0..32)
        .map(|i| (i ^ 8) + if i ^ 8 < 8 { 50 } else { 0 })
        .collect();
    assert_eq!(warp(&body).run(), expected);
}

#[test]
fn barriers_with_reductions() {
    let reduce = |form: &str, result: &str| {
        let body = format!("setp.lt.u32 %p0, %tid, 70; {form} {STORE}");
        assert!(result.is_empty() || body.contains(result));
        block(96, &body).run()
    };
    assert_eq!(
        reduce("barrier.cta.red.popc.aligned.u32 %r0, 0, %p0;", ""),
        vec![70; 96]
    );
    assert_eq!(
        reduce("barrier.cta.red.popc.aligned.u32 %r0, 3, 96, %p0;", ""),
        vec![70; 96]
    );
    assert_eq!(
        reduce("bar.red.and.pred %p1, 1, %p0; selp.u32 %r0, 1, 0, %p1;", ""),
        vec![0; 96]
    );
    assert_eq!(
        reduce("bar.red.or.pred %p1, 2, %p0; selp.u32 %r0, 1, 0, %p1;", ""),
        vec![1; 96]
    );
}

#[test]
fn named_barriers_hand_data_from_producers_to_consumers() {
    // Warp 0 produces and only arrives; warp 1 waits and consumes.
    let body = format!(
        ".shared .b32 s[32]; shl.b32 %r1, %lane, 2; mov.u32 %r2, s; add.u32 %r2, %r2, %r1; mov.u32 %r0, 0;\n\
         setp.eq.u32 %p0, %warp, 0; @%p0 bra $produce;\n\
         bar.sync 3, 64; xor.b32 %r3, %r2, 4; ld.shared.u32 %r0, [%r3]; bra $end;\n\
         $produce: add.u32 %r4, %lane, 7; st.shared.u32 [%r2], %r4; bar.arrive 3, 64; $end:{STORE}"
    );
    for seed in 0..4 {
        let mut bench = block(64, &body);
        bench.options.seed = seed;
        let out = bench.run();
        assert_eq!(
            out[32..],
            (0..32).map(|i| (i ^ 1) + 7).collect::<Vec<u32>>()
        );
    }
}
