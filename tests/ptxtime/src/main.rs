//! `ptxtime take CSV DIRECTORY [FILTER]`: takes the traces of the lines of a results file whose name contains FILTER.
//! `ptxtime table CSV DIRECTORY [--machine NAME] [CONSTANT=VALUE ...]`: predicted beside measured, as CSV.
//! `ptxtime launches FILE [--machine NAME] [CONSTANT=VALUE ...]`: a taken line launch by launch.
//! `ptxtime predict OUTPUT EXTENTS DTYPE [KERNEL] [OPTIONS]`: a problem, or several, by the kernels that are chosen or by one.
//! `ptxtime floor BYTES ...`: what reading so many bytes is predicted to take.
//! `ptxtime budgets`: the budgets as they are now.

use attention_rollout::cuda::nvrtc::Cache;
use ptxtime::{Agreement, Compared, Line, Machine, Row, Taker, Timeline, Timing, budget, rows};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "ptxtime take CSV DIRECTORY [FILTER] | table CSV DIRECTORY [OPTIONS] | launches FILE [OPTIONS] | \
                     predict OUTPUT EXTENTS DTYPE [KERNEL] [OPTIONS] | \
                     floor BYTES ... | budgets\noptions: --machine h200|h100, CONSTANT=VALUE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["take", csv, directory] => take(csv, directory, ""),
        ["take", csv, directory, filter] => take(csv, directory, filter),
        ["table", csv, directory, ref options @ ..] => table(csv, directory, options),
        ["launches", file, ref options @ ..] => launches(file, options),
        ["predict", output, extents, dtype, ref options @ ..] => {
            predict([output, extents, dtype], options)
        }
        ["budgets"] => budgets(),
        ["floor", ref sizes @ ..] => floor(sizes),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn taker() -> Result<Taker> {
    let nvrtc = ptxtime::compiler().ok_or("no compiler to take traces with")?;
    Ok(Taker::new(nvrtc, Cache::from_env()))
}

fn budgets() -> Result<()> {
    println!("# predicted by tests/ptxtime for an H200; ratio: the budget, which may only fall");
    println!("{}", budget::HEAD);
    for budget in budget::budgets(&taker()?)? {
        println!("{}", budget.line());
    }
    Ok(())
}

/// The machine that options name, with the constants that they change.
fn machine(options: &[&str]) -> Result<Machine> {
    let mut machine = Machine::H200;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        if *option == "--machine" {
            let name = options.next().copied().unwrap_or_default();
            machine = Machine::named(name).ok_or_else(|| format!("no machine {name:?}"))?;
        } else {
            let (name, value) = option.split_once('=').ok_or(USAGE)?;
            let constant = machine.constant(name);
            *constant.ok_or_else(|| format!("no constant {name:?}"))? = value.parse()?;
        }
    }
    Ok(machine)
}

fn take(csv: &str, directory: &str, filter: &str) -> Result<()> {
    let taker = taker()?;
    fs::create_dir_all(directory)?;
    for row in rows(&fs::read_to_string(csv)?)? {
        let name = row.name();
        if name.contains(filter) {
            let line = taker.take(&row.problems()?, None)?;
            let bytes = line.to_bytes()?;
            println!(
                "{name}: {} launches, {} bytes",
                line.launches.len(),
                bytes.len()
            );
            fs::write(file(directory, &row), bytes)?;
        }
    }
    Ok(())
}

fn file(directory: &str, row: &Row) -> std::path::PathBuf {
    Path::new(directory).join(row.name()).with_extension("line")
}

fn table(csv: &str, directory: &str, options: &[&str]) -> Result<()> {
    let machine = machine(options)?;
    let rows = rows(&fs::read_to_string(csv)?)?;
    let mut compared = Vec::new();
    for row in &rows {
        let line = Line::from_bytes(&fs::read(file(directory, row))?)?;
        let launches = line.predict(&machine);
        compared.push(Compared {
            row,
            timeline: Timeline::of(&launches, &machine),
            launches,
        });
    }
    println!("# predicted by tests/ptxtime beside the medians of {csv}");
    println!("# {}", Agreement::of(&compared));
    println!(
        "output,shape,extents,dtype,launches,measured_graph_us,predicted_graph_us,ratio,measured_stream_us,predicted_stream_us,stream_ratio,bound_by"
    );
    for line in &compared {
        let (row, timeline) = (line.row, line.timeline);
        println!(
            "{},{},{},{},{},{:.1},{:.1},{:.2},{:.1},{:.1},{:.2},{}",
            row.output,
            row.workload,
            row.extents,
            row.dtype,
            line.launches.len(),
            row.graph_us,
            timeline.graph_us,
            line.ratio(),
            row.stream_us,
            timeline.stream_us,
            timeline.stream_us / row.stream_us,
            line.bound_by(),
        );
    }
    Ok(())
}

fn launches(file: &str, options: &[&str]) -> Result<()> {
    print_line(&Line::from_bytes(&fs::read(file)?)?, &machine(options)?);
    Ok(())
}

fn predict(names: [&str; 3], options: &[&str]) -> Result<()> {
    let [output, extents, dtype] = names.map(str::to_owned);
    let (variant, options) = match options {
        [variant, options @ ..] if !variant.starts_with("--") && !variant.contains('=') => {
            (Some(*variant), options)
        }
        options => (None, options),
    };
    let row = Row {
        output,
        workload: String::new(),
        extents,
        dtype,
        graph_us: f64::NAN,
        stream_us: f64::NAN,
    };
    print_line(
        &taker()?.take(&row.problems()?, variant)?,
        &machine(options)?,
    );
    Ok(())
}

fn print_line(line: &Line, machine: &Machine) {
    let launches = line.predict(machine);
    launches.iter().for_each(print);
    let timeline = Timeline::of(&launches, machine);
    println!(
        "{:.1} us in a graph, {:.1} us on a stream",
        timeline.graph_us, timeline.stream_us
    );
    if let Some([half, twice]) = line.range(machine) {
        println!(
            "{half:.1} to {twice:.1} us in a graph with half to twice the latencies of what was never measured"
        );
    }
}

fn print(timing: &Timing) {
    println!(
        "{:9.2} us  {}: {} blocks, {} resident, {:.0} % of the device, bound by {}",
        timing.us,
        timing.kernel,
        timing.blocks,
        timing.resident,
        100.0 * timing.filled,
        timing.bound_by
    );
    let shares = timing.waits.shares.iter();
    let shares: Vec<String> = shares
        .map(|(wait, share)| format!("{wait} {:.0} %", 100.0 * share))
        .collect();
    if !timing.unmeasured.is_empty() {
        let names: Vec<String> = timing.unmeasured.iter().map(ToString::to_string).collect();
        println!(
            "              never measured on hardware: {}",
            names.join(", ")
        );
    }
    println!(
        "              waits: {}; {:.1} for loads per warp; {:.2} instructions per clock; {:.2} MB from DRAM, {:.2} MB of L2, {:.1} KB on the way",
        shares.join(", "),
        timing.waits.loads_per_warp,
        timing.instructions_per_clock,
        timing.bytes.dram / 1e6,
        timing.bytes.l2 / 1e6,
        timing.bytes.in_flight / 1e3,
    );
}

fn floor(sizes: &[&str]) -> Result<()> {
    let taker = taker()?;
    for size in sizes {
        let launches = taker.take_floor(size.parse()?)?.predict(&Machine::H200);
        let fastest = launches
            .iter()
            .map(|timing| timing.us)
            .fold(f64::INFINITY, f64::min);
        println!(
            "{size} bytes: {:.2} us",
            fastest + Machine::H200.graph_gap_us
        );
    }
    Ok(())
}
