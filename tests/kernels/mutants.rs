//! Does the kernel suite notice faults? Seeds each fault of `mutants.tsv` into the kernel sources, in memory, and runs
//! the suite of the kernels it touches until something fails.
//!
//! A few faults run with every `cargo test`; `cargo test --test kernels -- --ignored` runs all of them.

use attention_rollout::cuda::nvrtc::{Cache, Nvrtc, embedded_sources};
use libtest_mimic::{Failed, Trial};

use crate::entries::{self, Entry};
use crate::lab::Lab;

/// Every how many faults one belongs to the sample.
const SAMPLE: usize = 16;

/// One line of `mutants.tsv`.
struct Mutant {
    file: String,
    kernels: Vec<String>,
    name: String,
    from: String,
    to: String,
}

fn mutants() -> Vec<Mutant> {
    include_str!("mutants.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<String> = line
                .split('\t')
                .map(|field| field.replace("\\n", "\n"))
                .collect();
            let [file, kernels, name, from, to] = <[String; 5]>::try_from(fields)
                .unwrap_or_else(|fields| panic!("five fields expected, got {fields:?}"));
            let kernels = kernels.split(' ').map(str::to_owned).collect();
            Mutant {
                file,
                kernels,
                name,
                from,
                to,
            }
        })
        .collect()
}

impl Mutant {
    /// The kernel sources with this fault.
    fn sources(&self) -> Result<Vec<(String, String)>, String> {
        let mut sources: Vec<(String, String)> = embedded_sources()
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let (_, text) = sources
            .iter_mut()
            .find(|(name, _)| *name == self.file)
            .ok_or_else(|| format!("{} is missing", self.file))?;
        match text.matches(&self.from).count() {
            1 => *text = text.replace(&self.from, &self.to),
            count => return Err(format!("{:?} occurs {count} times", self.from)),
        }
        Ok(sources)
    }

    /// Runs the suite; fails where the suite does not.
    fn run(&self, nvrtc: Nvrtc) -> Result<(), Failed> {
        let lab = Lab::new(nvrtc, self.sources()?, Cache::disabled());
        let touches = |entry: &Entry| {
            let stems = &mut self.kernels.iter();
            stems.any(|stem| entry.kernels.contains(&stem.as_str()))
        };
        let (short, long): (Vec<&Entry>, Vec<&Entry>) = entries::entries()
            .filter(|entry| touches(entry))
            .partition(|entry| entry.short);
        for entry in short.into_iter().chain(long) {
            if let Err(noticed) = (entry.run)(&lab) {
                return match lab.compile_error() {
                    Some(error) => Err(format!("the fault does not compile: {error}").into()),
                    None => {
                        println!("{}: {}: {}: {noticed}", self.file, self.name, entry.name);
                        Ok(())
                    }
                };
            }
        }
        Err("survived: no entry of the suite failed".into())
    }
}

/// One test per fault, with one library, and one of the list itself.
pub fn trials(nvrtc: Option<&Nvrtc>) -> Vec<Trial> {
    let mut trials = vec![Trial::test(
        "mutants::every fault has its place in the sources",
        || {
            let wrong = |mutant: Mutant| {
                let error = mutant.sources().err()?;
                Some(format!("{}: {}: {error}", mutant.file, mutant.name))
            };
            let wrong: Vec<String> = mutants().into_iter().filter_map(wrong).collect();
            if wrong.is_empty() {
                return Ok(());
            }
            Err(wrong.join("\n").into())
        },
    )];
    if let Some(nvrtc) = nvrtc {
        for (number, mutant) in mutants().into_iter().enumerate() {
            let nvrtc = nvrtc.clone();
            let name = format!("mutants::{}: {}", mutant.file, mutant.name);
            let sampled = number % SAMPLE == 0;
            trials.push(Trial::test(name, move || mutant.run(nvrtc)).with_ignored_flag(!sampled));
        }
    }
    trials
}
