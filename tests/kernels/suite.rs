//! Every kernel, run in the PTX interpreter, against the f64 reference.

use attention_rollout::cuda::nvrtc::{Cache, Nvrtc, embedded_sources};
use libtest_mimic::Trial;

use crate::lab::Lab;
use crate::{abi, entries};

/// One test per entry, layout and count; the long ones with the first library alone.
pub fn trials(nvrtcs: &[Nvrtc]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (number, nvrtc) in nvrtcs.iter().enumerate() {
        let version = nvrtc.version();
        let sources = embedded_sources()
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
        let lab: &'static Lab = Box::leak(Box::new(Lab::new(nvrtc.clone(), sources, cache)));
        trials.push(Trial::test(
            format!("suite::abi (NVRTC {version})"),
            move || abi::check(lab).map_err(Into::into),
        ));
        let entries = entries::entries().filter(|entry| number == 0 || entry.short);
        trials.extend(entries.map(|entry| {
            let name = format!("suite::{} (NVRTC {version})", entry.name);
            Trial::test(name, move || {
                (entry.run)(lab).map_err(|error| lab.compile_error().unwrap_or(error).into())
            })
            .with_kind(entry.kernels.join(" "))
        }));
    }
    trials
}
