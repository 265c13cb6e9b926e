//! Tier 1: the disk cache of compiled kernels, with every NVRTC there is to test with.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::common::nvrtc::nvrtcs;
use attention_rollout::cuda::nvrtc::{Cache, Compiled, Nvrtc, Options, Source, Target};

const SOURCE: Source = Source {
    name: "fill.cu",
    text: "#include \"value.cuh\"\n\
           extern \"C\" __global__ void fill(float* out) { out[threadIdx.x] = VALUE; }",
    headers: &[("value.cuh", "#define VALUE 1.5f\n")],
};

fn options() -> Options {
    Options::new(Target::Cubin(80.into()))
}

/// A result without what differs between two compilations: where it came from and the times in the log.
fn settled(mut compiled: Compiled) -> Compiled {
    compiled.from_cache = false;
    let lines = compiled.log.lines();
    compiled.log = lines
        .filter(|line| !line.contains("Compile time"))
        .collect();
    compiled
}

/// Compiles through a cache; the settled result, and whether it was read from disk.
fn compile(cache: &Cache, nvrtc: &Nvrtc) -> (Compiled, bool) {
    let compiled = cache.compile(nvrtc, &SOURCE, &options()).unwrap();
    let from_cache = compiled.from_cache;
    (settled(compiled), from_cache)
}

/// The files in a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_second_compilation_is_read_from_disk() {
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("made/when/needed"));
        let (compiled, from_cache) = compile(&cache, &nvrtc);
        assert!(!from_cache);
        let uncached = nvrtc.compile(&SOURCE, &options()).unwrap();
        assert_eq!(compiled, settled(uncached));
        assert!(compiled.kernel("fill").is_some());
        assert_eq!(compile(&cache, &nvrtc), (compiled, true));
        assert_eq!(files(cache.directory().unwrap()).len(), 1);

        let ptx = Options::new(Target::Ptx(80.into()));
        let first = cache.compile(&nvrtc, &SOURCE, &ptx).unwrap();
        let second = cache.compile(&nvrtc, &SOURCE, &ptx).unwrap();
        assert!(!first.from_cache && second.from_cache);
        assert_eq!(first.image, second.image);
        assert_eq!(first.log, second.log);
    }
}

#[test]
fn whatever_changes_the_result_is_in_the_key() {
    let nvrtcs = nvrtcs();
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let mut entries = 0;
    for nvrtc in &nvrtcs {
        let mut expect_new = |source: &Source, options: &Options| {
            let compiled = cache.compile(nvrtc, source, options).unwrap();
            assert!(!compiled.from_cache, "{source:?} {options:?}");
            entries += 1;
            assert_eq!(files(folder.path()).len(), entries);
        };
        expect_new(&SOURCE, &options());
        let text = format!("{}\n", SOURCE.text);
        expect_new(
            &Source {
                text: &text,
                ..SOURCE
            },
            &options(),
        );
        let name = "other.cu";
        expect_new(&Source { name, ..SOURCE }, &options());
        let headers = &[("value.cuh", "#define VALUE 2.5f\n")];
        expect_new(&Source { headers, ..SOURCE }, &options());
        let headers = &[SOURCE.headers[0], ("more.cuh", "")];
        expect_new(&Source { headers, ..SOURCE }, &options());
        expect_new(&SOURCE, &Options::new(Target::Cubin(86.into())));
        expect_new(&SOURCE, &Options::new(Target::Ptx(80.into())));
        expect_new(&SOURCE, &options().define("A", 1));
        expect_new(&SOURCE, &options().define("A", 2));
        expect_new(&SOURCE, &options().lineinfo());
        expect_new(&SOURCE, &options().flag("--maxrregcount=32"));
        // The label names errors; the image is the same.
        let labelled = cache.compile(nvrtc, &SOURCE, &options().label("fill"));
        assert!(labelled.unwrap().from_cache);
    }
}

#[test]
fn a_damaged_entry_is_compiled_anew_and_replaced() {
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let (compiled, _) = compile(&cache, &nvrtc);
        let file = files(folder.path()).remove(0);
        let good = fs::read(&file).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..16)
            .map(|sample| {
                let mut bytes = good.clone();
                // Spread over header and body.
                let at = if sample < 8 {
                    sample * 11
                } else {
                    sample * good.len() / 16
                };
                bytes[at] ^= 0x20;
                bytes
            })
            .collect();
        damaged.extend([0, 1, 87, good.len() - 1].map(|length| good[..length].to_vec()));
        damaged.push([good.as_slice(), b"\0"].concat());
        damaged.push(b"a file of something else".to_vec());
        for bytes in damaged {
            fs::write(&file, bytes).unwrap();
            assert_eq!(compile(&cache, &nvrtc), (compiled.clone(), false));
            assert_eq!(compile(&cache, &nvrtc), (compiled.clone(), true));
        }
    }
}

#[test]
fn an_entry_under_another_name_is_foreign() {
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        cache.compile(&nvrtc, &SOURCE, &options()).unwrap();
        let mine = files(folder.path()).remove(0);
        let other = options().define("A", 1);
        let expected = cache.compile(&nvrtc, &SOURCE, &other).unwrap();
        for file in files(folder.path()) {
            if file != mine {
                fs::copy(&mine, file).unwrap();
            }
        }
        let again = cache.compile(&nvrtc, &SOURCE, &other).unwrap();
        assert!(!again.from_cache);
        assert_eq!(settled(again), settled(expected));
    }
}

#[test]
fn a_directory_that_cannot_be_used_costs_nothing_but_time() {
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        // Where a file is, no directory can be made.
        let occupied = folder.path().join("file");
        fs::write(&occupied, "").unwrap();
        // Where a directory is, no file can be put; the place of the entry is learnt from another cache.
        let blocked = folder.path().join("blocked");
        let cache = Cache::at(&blocked);
        let (expected, _) = compile(&cache, &nvrtc);
        let entry = files(&blocked).remove(0);
        fs::remove_file(&entry).unwrap();
        fs::create_dir(&entry).unwrap();
        for cache in [Cache::at(occupied.join("cache")), cache] {
            for _ in 0..2 {
                assert_eq!(compile(&cache, &nvrtc), (expected.clone(), false));
            }
        }
        assert_eq!(files(&blocked), [entry], "temporary files are cleaned up");
    }
}

#[cfg(unix)]
#[test]
fn a_read_only_directory_is_read() {
    use std::os::unix::fs::PermissionsExt;
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let (expected, _) = compile(&cache, &nvrtc);
        let read_only = fs::Permissions::from_mode(0o500);
        fs::set_permissions(folder.path(), read_only).unwrap();
        assert_eq!(compile(&cache, &nvrtc), (expected, true));
        cache
            .compile(&nvrtc, &SOURCE, &options().define("A", 1))
            .unwrap();
        let writable = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path(), writable).unwrap();
    }
}

/// Set in processes that a test starts from this program: the library to compile with.
const CHILD: &str = "ROLLOUT_TEST_CHILD_LIBRARY";

/// A process that runs a test of this program in its role of a child.
fn child(test: &str, nvrtc: &Nvrtc) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, nvrtc.path());
    command
}

/// The library, in a child.
fn child_library() -> Option<Nvrtc> {
    Some(Nvrtc::open(env::var_os(CHILD)?).unwrap())
}

#[test]
fn processes_and_threads_share_a_directory() {
    let race = |nvrtc: &Nvrtc, cache: &Cache| {
        let expected = settled(nvrtc.compile(&SOURCE, &options()).unwrap());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        assert_eq!(compile(cache, nvrtc).0, expected);
                        // Make the others write again.
                        for file in files(cache.directory().unwrap()) {
                            let _ = fs::remove_file(file);
                        }
                    }
                });
            }
        });
        compile(cache, nvrtc);
    };
    if let Some(nvrtc) = child_library() {
        return race(&nvrtc, &Cache::from_env());
    }
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let children: Vec<_> = (0..2)
            .map(|_| {
                child("cache::processes_and_threads_share_a_directory", &nvrtc)
                    .env("ROLLOUT_CACHE_DIR", folder.path())
                    .env_remove("ROLLOUT_CACHE")
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let left = files(folder.path());
        assert!(left.len() <= 1, "temporary files are left: {left:?}");
        let cache = Cache::at(folder.path());
        compile(&cache, &nvrtc);
        assert!(compile(&cache, &nvrtc).1);
    }
}

#[test]
fn the_environment_can_turn_it_off() {
    const TEST: &str = "cache::the_environment_can_turn_it_off";
    if let Some(nvrtc) = child_library() {
        let cache = Cache::from_env();
        assert!(cache.directory().is_none());
        assert!(!compile(&cache, &nvrtc).1 && !compile(&cache, &nvrtc).1);
        return;
    }
    for nvrtc in nvrtcs() {
        let folder = tempfile::tempdir().unwrap();
        let status = child(TEST, &nvrtc)
            .env("ROLLOUT_CACHE_DIR", folder.path())
            .env("ROLLOUT_CACHE", "off")
            .status();
        assert!(status.unwrap().success());
        assert_eq!(files(folder.path()), [] as [PathBuf; 0]);
        assert!(!compile(&Cache::disabled(), &nvrtc).1);
    }
}
