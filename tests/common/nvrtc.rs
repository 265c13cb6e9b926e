//! The NVRTC libraries that tests compile with.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

use attention_rollout::cuda::nvrtc::Nvrtc;

/// Every NVRTC there is to test with: those of `ROLLOUT_NVRTC_12` and `ROLLOUT_NVRTC_13`, or else those that
/// `tests/fetch_nvrtc.sh` fetched, or else the one that [`Nvrtc::load`] finds.
///
/// None, after a line on stderr that says so, where there is none.
///
/// # Panics
///
/// Where there is none and `ROLLOUT_REQUIRE_NVRTC=1`, or one that a variable names is unusable.
pub fn nvrtcs() -> Vec<Nvrtc> {
    let mut nvrtcs: Vec<Nvrtc> = ["12", "13"]
        .into_iter()
        .filter_map(|major| {
            let file = env::var_os(format!("ROLLOUT_NVRTC_{major}")).map(PathBuf::from);
            let file = file.or_else(|| fetched(major))?;
            Some(Nvrtc::open(&file).unwrap_or_else(|error| panic!("{error}")))
        })
        .collect();
    if nvrtcs.is_empty() {
        match Nvrtc::load() {
            Ok(nvrtc) => nvrtcs.push(nvrtc),
            Err(error) => {
                let message = format!(
                    "tier 1: no NVRTC: run `. tests/fetch_nvrtc.sh` in this shell to fetch it. {error}"
                );
                if env::var_os("ROLLOUT_REQUIRE_NVRTC").is_some_and(|value| value == "1") {
                    panic!("{message}");
                }
                let thread = std::thread::current();
                let test = thread.name().unwrap_or("a test");
                // Not through `eprintln`, which the test harness keeps to itself when a test passes.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {message}");
            }
        }
    }
    nvrtcs
}

/// The library of a major version that `tests/fetch_nvrtc.sh` fetched.
fn fetched(major: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let file = target
        .join("nvrtc")
        .join(major)
        .join(format!("libnvrtc.so.{major}"));
    file.is_file().then_some(file)
}
