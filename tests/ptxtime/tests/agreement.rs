//! Predictions of the kernels that were measured agree with the measurements as well as they ever did.

use std::fs;
use std::path::Path;
use std::thread;

use ptxtime::{Agreement, Compared, Line, Machine, Row, Timeline, rows};

/// Times measured on an H200.
const MEASURED: &str = include_str!("../../../benches/results/h200/2026-11-26.csv");
/// The agreement that was reached. It may only get better.
const MEDIAN: f64 = 1.085;
const WORST: f64 = 1.315;

fn compare<'a>(rows: &'a [Row], machine: &Machine) -> Vec<Compared<'a>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("lines/h200");
    let compare = |row: &'a Row| {
        let file = directory.join(row.name()).with_extension("line");
        let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let line =
            Line::from_bytes(&bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let launches = line.predict(machine);
        Compared {
            row,
            timeline: Timeline::of(&launches, machine),
            launches,
        }
    };
    thread::scope(|scope| {
        let halves = [rows.iter().step_by(2), rows[1..].iter().step_by(2)];
        let halves = halves.map(|half| scope.spawn(move || half.map(compare).collect::<Vec<_>>()));
        let halves = halves.map(|half| half.join().expect("a line was predicted"));
        halves.into_iter().flatten().collect()
    })
}

#[test]
fn measured_lines_are_predicted_as_well_as_ever() {
    let rows = rows(MEASURED).unwrap();
    assert_eq!(rows.len(), 41);
    let agreement = Agreement::of(&compare(&rows, &Machine::H200));
    println!("{agreement}");
    assert!(agreement.median <= MEDIAN, "{agreement}");
    assert!(agreement.worst <= WORST, "{agreement}");
    assert_eq!(agreement.within_a_quarter, 41, "{agreement}");
}

#[test]
fn a_wrong_constant_is_noticed() {
    let rows: Vec<Row> = rows(MEASURED)
        .unwrap()
        .into_iter()
        .filter(|row| row.extents == "12x1x12x197")
        .collect();
    let machine = Machine {
        l2_latency: 600.0,
        ..Machine::H200
    };
    let agreement = Agreement::of(&compare(&rows, &machine));
    assert!(agreement.worst > WORST, "{agreement}");
}
