//! Tier 1: the NVRTC loader and compiler, with every NVRTC there is to test with.

use std::fs;
use std::path::Path;
use std::thread;

use crate::common::nvrtc::nvrtcs;
use attention_rollout::cuda::nvrtc::{
    Arch, Compiled, Image, Nvrtc, NvrtcError, Options, Source, Target,
};

/// Three kernels: one with shared memory and a barrier, one with 64 live values, one that calls a function that is not
/// inlined.
const KERNELS: &str = r#"
extern "C" __global__ void reverse(float* data) {
    __shared__ float tile[128];
    tile[threadIdx.x] = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] = tile[127 - threadIdx.x];
}

extern "C" __global__ void mix(float* data, int steps) {
    float values[64];
#pragma unroll
    for (int i = 0; i < 64; i++) values[i] = data[i * 1024 + threadIdx.x];
    for (int step = 0; step < steps; step++) {
#pragma unroll
        for (int i = 0; i < 64; i++) values[i] = values[i] * values[(i + 7) % 64] + data[step];
    }
#pragma unroll
    for (int i = 0; i < 64; i++) data[i * 1024 + threadIdx.x] = values[i];
}

__device__ __noinline__ float series(float x, int terms) {
    float sum = 0.0f;
    for (int i = 0; i < terms; i++) sum = sum * x + i;
    return sum;
}

extern "C" __global__ void call(float* data, int terms) {
    data[threadIdx.x] = series(data[threadIdx.x], terms);
}
"#;

fn source(text: &str) -> Source<'_> {
    Source {
        name: "test.cu",
        text,
        headers: &[],
    }
}

fn cubin(arch: u32) -> Options {
    Options::new(Target::Cubin(arch.into()))
}

fn compile(nvrtc: &Nvrtc, text: &str, options: &Options) -> Compiled {
    nvrtc
        .compile(&source(text), options)
        .unwrap_or_else(|error| panic!("NVRTC {}: {error}", nvrtc.version()))
}

#[test]
fn both_kinds_of_image_come_out() {
    for nvrtc in nvrtcs() {
        for number in [75, 80, 86, 89, 90, 100, 120] {
            let compiled = compile(&nvrtc, KERNELS, &cubin(number));
            assert!(
                matches!(&compiled.image, Image::Cubin(bytes) if bytes.starts_with(b"\x7fELF"))
            );
            assert!(!compiled.from_cache);
            assert_eq!(compiled.resources.len(), 4, "{}", compiled.log);

            let target = Target::Ptx(number.into());
            let compiled = compile(&nvrtc, KERNELS, &Options::new(target));
            let Image::Ptx(ptx) = &compiled.image else {
                panic!("not PTX");
            };
            assert!(ptx.contains(&format!(".target sm_{number}")), "{ptx}");
            assert!(ptx.contains(".entry reverse("), "{ptx}");
            assert!(ptx.is_ascii() && !ptx.contains('\0'));
            assert_eq!(compiled.resources, []);
        }
    }
}

#[test]
fn architecture_specific_targets_are_accepted() {
    let text = r#"extern "C" __global__ void fence() {
#ifndef __CUDA_ARCH_FEAT_SM90_ALL
#error not sm_90a
#endif
        asm volatile("wgmma.fence.sync.aligned;");
    }"#;
    for nvrtc in nvrtcs() {
        let arch = Arch::specific(90);
        compile(&nvrtc, text, &Options::new(Target::Cubin(arch)));
        let plain = nvrtc.compile(&source(text), &cubin(90));
        assert!(matches!(plain, Err(NvrtcError::Compile { .. })));
    }
}

#[test]
fn resources_are_those_of_the_kernels() {
    for nvrtc in nvrtcs() {
        let compiled = compile(&nvrtc, KERNELS, &cubin(80));
        let reverse = compiled.kernel("reverse").unwrap();
        assert!((4..=32).contains(&reverse.registers), "{reverse:?}");
        assert_eq!(reverse.shared_bytes, 128 * 4);
        assert_eq!(reverse.barriers, 1);
        // The kernel parameters begin at 0x160 on sm_80; this kernel has one pointer.
        assert_eq!(reverse.constant_bytes, 0x160 + 8);
        assert_eq!(reverse.stack_bytes, 0);

        let mix = compiled.kernel("mix").unwrap();
        assert!(mix.registers > 64, "64 live values: {mix:?}");
        assert_eq!((mix.shared_bytes, mix.barriers), (0, 0));

        let series = compiled.resources.iter().find(|kernel| !kernel.is_entry);
        let series = series.unwrap();
        assert!(series.name.contains("series"), "{series:?}");
        assert!(compiled.kernel(&series.name).is_none());
        assert!(compiled.kernel("missing").is_none());
    }
}

#[test]
fn spills_are_seen() {
    for nvrtc in nvrtcs() {
        for arch in [75, 90, 120] {
            let roomy = compile(&nvrtc, KERNELS, &cubin(arch));
            for kernel in &roomy.resources {
                assert_eq!(kernel.spill_store_bytes + kernel.spill_load_bytes, 0);
            }
            let tight = compile(&nvrtc, KERNELS, &cubin(arch).flag("--maxrregcount=32"));
            let mix = tight.kernel("mix").unwrap();
            assert!(mix.registers <= 32, "{mix:?}");
            // At least the 32 of 64 values that cannot be in registers.
            assert!(mix.spill_store_bytes >= 32 * 4, "{mix:?}");
            assert!(mix.spill_load_bytes >= 32 * 4, "{mix:?}");
            assert!(mix.stack_bytes >= 32 * 4, "{mix:?}");
            assert_eq!(tight.kernel("reverse").unwrap().spill_store_bytes, 0);
        }
    }
}

#[test]
fn a_rejected_source_comes_back_with_its_log() {
    let rejected = [
        (
            "int wrong = ;",
            cubin(80),
            "test.cu(1): error: expected an expression",
        ),
        (
            r#"extern "C" __global__ void k() { asm volatile("foo.bar;"); }"#,
            cubin(80),
            "Not a name of any known instruction: 'foo'",
        ),
        ("", cubin(80).flag("--bogus"), "--bogus"),
        ("#include \"missing.cuh\"", cubin(80), "missing.cuh"),
    ];
    for nvrtc in nvrtcs() {
        for (text, options, message) in &rejected {
            let options = options.clone().label("rollout_rows_f16");
            let error = nvrtc.compile(&source(text), &options).unwrap_err();
            let shown = error.to_string();
            let NvrtcError::Compile {
                label,
                version,
                arguments,
                log,
            } = error
            else {
                panic!("{shown}");
            };
            assert!(log.contains(message), "{log}");
            assert_eq!(label, "rollout_rows_f16");
            assert_eq!(version, nvrtc.version());
            // From 12.9 on NVRTC has a cache, which has no log.
            let cached = (version.major, version.minor) >= (12, 9);
            let more = cached.then(|| "--no-cache".to_owned());
            let expected: Vec<_> = options.arguments().into_iter().chain(more).collect();
            assert_eq!(arguments, expected);
            assert!(
                shown.contains("rollout_rows_f16") && shown.contains("--gpu-architecture=sm_80")
            );
        }
    }
}

#[test]
fn an_unknown_architecture_is_told_with_the_known_ones() {
    for nvrtc in nvrtcs() {
        assert!(nvrtc.supported_archs().is_sorted());
        for target in [Target::Cubin(999.into()), Target::Ptx(10.into())] {
            match nvrtc.compile(&source(""), &Options::new(target)) {
                Err(NvrtcError::UnsupportedArch {
                    target: refused,
                    version,
                    supported,
                }) => {
                    assert_eq!((refused, version), (target, nvrtc.version()));
                    assert_eq!(supported, nvrtc.supported_archs());
                    assert!(supported.contains(&90));
                }
                other => panic!("{other:?}"),
            }
        }
        // Known architecture, unknown suffix: the compiler itself says no.
        let specific = Options::new(Target::Cubin(Arch::specific(80)));
        let refused = nvrtc.compile(&source(""), &specific);
        assert!(matches!(refused, Err(NvrtcError::Compile { .. })));
    }
}

#[test]
fn headers_come_from_memory_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.cuh"), "constexpr int ANSWER = 1;").unwrap();
    let name = folder.path().join("test.cu");
    let headers = [
        ("outer.cuh", "#pragma once\n#include \"inner.cuh\"\n"),
        ("inner.cuh", "#pragma once\nconstexpr int ANSWER = 42;\n"),
        ("unused.cuh", "this is not C++"),
    ];
    let source = |text| Source {
        name: name.to_str().unwrap(),
        text,
        headers: &headers,
    };
    let options = Options::new(Target::Ptx(80.into()));
    for nvrtc in nvrtcs() {
        let text = "#include \"outer.cuh\"\n#include \"inner.cuh\"\n\
                    extern \"C\" __global__ void k(int* out) { *out = ANSWER; }";
        let compiled = nvrtc.compile(&source(text), &options).unwrap();
        assert!(matches!(compiled.image, Image::Ptx(ptx) if ptx.contains("42")));
        let on_disk = nvrtc.compile(&source("#include \"disk.cuh\""), &options);
        assert!(
            matches!(on_disk, Err(NvrtcError::Compile { .. })),
            "{on_disk:?}"
        );
    }
}

#[test]
fn defines_and_line_information_reach_the_compiler() {
    let text = r#"extern "C" __global__ void k(int* out) { *out = VALUE; }"#;
    for nvrtc in nvrtcs() {
        let ptx = |options: Options| match compile(&nvrtc, text, &options).image {
            Image::Ptx(ptx) => ptx,
            Image::Cubin(_) => panic!("not PTX"),
        };
        let options = Options::new(Target::Ptx(80.into())).define("VALUE", "(12000 + 345)");
        let plain = ptx(options.clone());
        assert!(
            plain.contains("12345") && !plain.contains(".loc"),
            "{plain}"
        );
        let lines = ptx(options.lineinfo());
        assert!(
            lines.contains(".loc") && lines.contains("test.cu"),
            "{lines}"
        );
    }
}

#[test]
fn threads_and_versions_compile_at_once() {
    let nvrtcs = nvrtcs();
    let text = |value: usize| {
        format!("extern \"C\" __global__ void k{value}(int* out) {{ *out = {value}; }}")
    };
    thread::scope(|scope| {
        for nvrtc in &nvrtcs {
            for thread in 0..4 {
                scope.spawn(move || {
                    for value in thread * 4..thread * 4 + 4 {
                        let compiled = compile(nvrtc, &text(value), &cubin(90));
                        assert_eq!(compiled.resources[0].name, format!("k{value}"));
                    }
                });
            }
        }
    });
}

#[test]
fn what_is_not_nvrtc_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libnvrtc.so.12");
    fs::write(&text, "not a library").unwrap();
    let missing = folder.path().join("missing.so");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for path in [
        text.as_path(),
        folder.path(),
        &missing,
        &empty,
        Path::new(""),
    ] {
        let error = Nvrtc::open(path).unwrap_err();
        assert!(matches!(error, NvrtcError::Open { .. }), "{error}");
    }
}

#[test]
fn zero_bytes_are_refused() {
    for nvrtc in nvrtcs() {
        let text = nvrtc.compile(&source("\0"), &cubin(80));
        let define = nvrtc.compile(&source(""), &cubin(80).define("A", "\0"));
        let header = Source {
            name: "test.cu",
            text: "",
            headers: &[("a.cuh", "\0")],
        };
        let header = nvrtc.compile(&header, &cubin(80));
        for result in [text, define, header] {
            assert!(
                matches!(result, Err(NvrtcError::ZeroByte { .. })),
                "{result:?}"
            );
        }
    }
}
