//! Kernels whose blocks copy in bulk and wait for each other are replayed together, and what of that no hardware has
//! confirmed is said.

use attention_rollout::cuda::nvrtc::Cache;
use ptxtime::{Line, Machine, Mechanism, Row, Taker};

fn take(output: &str, extents: &str, kernel: &str) -> Option<Line> {
    let nvrtc = ptxtime::compiler()?;
    let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
    let row = Row {
        output: output.to_owned(),
        workload: String::new(),
        extents: extents.to_owned(),
        dtype: "f32".to_owned(),
        graph_us: f64::NAN,
        stream_us: f64::NAN,
    };
    let problems = row.problems().unwrap();
    Some(
        Taker::new(nvrtc, cache)
            .take(&problems, Some(kernel))
            .unwrap(),
    )
}

/// What a shape uses, and how many blocks are replayed together.
fn check(extents: &str, kernel: &str, expected: &[Mechanism], together: u32) {
    let Some(line) = take("rows", extents, kernel) else {
        return;
    };
    let machine = Machine::H200;
    let launches = line.predict(&machine);
    let [launch] = &launches[..] else {
        panic!("one launch expected, got {}", launches.len());
    };
    assert_eq!(line.launches[0].together, together, "{extents}");
    assert_eq!(launch.unmeasured, expected, "{extents}");
    assert!(launch.us.is_finite(), "{extents}: somebody waits in vain");
    // Every byte is read once, and much of it is on its way at a time.
    let map_bytes = 4.0
        * extents
            .split('x')
            .map(|n| n.parse::<f64>().unwrap())
            .product::<f64>()
        * extents.rsplit('x').next().unwrap().parse::<f64>().unwrap();
    assert!(launch.bytes.dram <= 1.05 * map_bytes, "{:?}", launch.bytes);
    assert!(launch.bytes.dram >= 0.6 * map_bytes, "{:?}", launch.bytes);
    let [half, twice] = line.range(&machine).expect("a range");
    assert!(half < twice, "{extents}: {half} to {twice} us");
    for mechanism in expected {
        let slow = machine.with_latency(*mechanism, 100.0);
        let us = line.predict(&slow)[0].us;
        assert!(us > launch.us, "{extents}: {mechanism} costs nothing");
    }
}

#[test]
fn a_block_alone_waits_for_copies() {
    use Mechanism::{BulkCopies, Mbarriers};
    // An item for each multiprocessor.
    check(
        "3x132x2x40",
        "rows_stream_f32_f32_m1_k1_mean",
        &[BulkCopies, Mbarriers],
        0,
    );
}

#[test]
fn blocks_of_a_cluster_wait_for_stores() {
    use Mechanism::{BulkCopies, Mbarriers, RemoteStores};
    let all = [BulkCopies, Mbarriers, RemoteStores];
    check("3x64x2x128", "rows_stream_f32_f32_m1_k4_mean", &all, 2);
}

#[test]
fn some_blocks_of_many_wait_for_words() {
    use Mechanism::{BulkCopies, Mbarriers, Words};
    check(
        "3x1x2x256",
        "rows_stream_f32_f32_m1_k4_mean",
        &[BulkCopies, Mbarriers, Words],
        3,
    );
}

#[test]
fn what_was_measured_has_no_range() {
    let Some(line) = take("rows", "2x1x2x16", "rollout_rows_f32_f32_m1_mean") else {
        return;
    };
    assert_eq!(line.range(&Machine::H200), None);
}
