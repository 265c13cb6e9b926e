//! `devices`: what this machine can compute on.

use clap::Args;
use serde_json::json;

use crate::backend::cpu_threads;
use crate::error::Result;
use crate::report;

/// List the devices a rollout can run on.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let (threads, simd) = (cpu_threads(), cpu_simd());
    let cuda = cuda();
    if args.json {
        let architecture = std::env::consts::ARCH;
        report::line(json!({
            "cpu": { "architecture": architecture, "threads": threads, "simd": simd },
            "cuda": cuda.iter().map(|(name, value)| json!({ *name: value })).collect::<Vec<_>>(),
        }))?;
    } else {
        let simd = match simd.join(", ") {
            none if none.is_empty() => "none detected".to_owned(),
            simd => simd,
        };
        report::line(format_args!("cpu: {threads} threads; SIMD: {simd}"))?;
        for (name, value) in cuda {
            report::line(format_args!("{name}: {value}"))?;
        }
    }
    Ok(())
}

/// Driver, compiler and GPUs, or what each lacks.
#[cfg(feature = "cuda")]
fn cuda() -> Vec<(&'static str, String)> {
    use attention_rollout::cuda;
    use attention_rollout::cuda::nvrtc::{Cache, Nvrtc};
    let driver = cuda::driver_version();
    let nvrtc = match &driver {
        Ok(driver) => Nvrtc::load_for_driver(*driver),
        Err(_) => Nvrtc::load(),
    };
    let mut lines = vec![
        (
            "driver",
            driver.map_or_else(
                |error| error.to_string(),
                |version| format!("CUDA {version}"),
            ),
        ),
        (
            "nvrtc",
            nvrtc.map_or_else(
                |error| error.to_string(),
                |nvrtc| format!("{} in {}", nvrtc.version(), nvrtc.path().display()),
            ),
        ),
    ];
    let cache = Cache::from_env();
    if let Some(directory) = cache.directory() {
        let directory = directory.display();
        lines.push((
            "kernel cache",
            match cache.distrusted() {
                Some(reason) => format!("{directory}, not used: {reason}"),
                None => directory.to_string(),
            },
        ));
    }
    for device in cuda::available().into_iter().flatten() {
        let usable = match device.supported() {
            Ok(()) => device.to_string(),
            Err(error) => format!("{device}: {error}"),
        };
        lines.push(("cuda", usable));
    }
    lines
}

/// What this binary lacks.
#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<(&'static str, String)> {
    vec![(
        "cuda",
        "this binary was built without the CUDA backend".to_owned(),
    )]
}

/// The vector extensions of this CPU that matter for f32 and f16.
fn cpu_simd() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features = [];
    features
        .into_iter()
        .filter_map(|(name, is_here): (&str, bool)| is_here.then_some(name))
        .collect()
}
