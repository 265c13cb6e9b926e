//! Tier 2: every kernel, run in the PTX interpreter, against the f64 reference.

#[path = "kernels/abi.rs"]
mod abi;
#[path = "kernels/cases.rs"]
mod cases;
#[path = "common/nvrtc.rs"]
mod common;
#[path = "kernels/entries/mod.rs"]
mod entries;
#[path = "kernels/lab.rs"]
mod lab;
#[path = "kernels/maps.rs"]
mod maps;
#[path = "kernels/pipeline/mod.rs"]
mod pipeline;
#[path = "kernels/traffic.rs"]
mod traffic;

use attention_rollout::cuda::nvrtc::{Cache, embedded_sources};
use libtest_mimic::{Arguments, Trial};

use common::nvrtcs;
use lab::Lab;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (number, nvrtc) in nvrtcs().into_iter().enumerate() {
        let version = nvrtc.version();
        let sources = embedded_sources()
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
        let lab: &'static Lab = Box::leak(Box::new(Lab::new(nvrtc, sources, cache)));
        trials.push(Trial::test(format!("abi (NVRTC {version})"), move || {
            abi::check(lab).map_err(Into::into)
        }));
        if number == 0 {
            trials.push(Trial::test(
                format!("traffic (NVRTC {version})"),
                move || traffic::check(lab).map_err(Into::into),
            ));
        }
        let entries = entries::entries().filter(|entry| number == 0 || entry.short);
        trials.extend(entries.map(|entry| {
            Trial::test(format!("{} (NVRTC {version})", entry.name), move || {
                (entry.run)(lab).map_err(|error| lab.compile_error().unwrap_or(error).into())
            })
            .with_kind(entry.kernels.join(" "))
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
