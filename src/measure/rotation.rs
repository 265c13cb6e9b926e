//! How often inputs are repeated in memory, so that no run finds its maps in a cache.

use std::fs;
use std::path::Path;

/// Copies of the smallest inputs.
const MOST_COPIES: usize = 256;

/// The bounds of what inputs on the CPU are repeated to. The lower one is more than the caches of most machines hold.
const HOST_BYTES: std::ops::RangeInclusive<usize> = 256 << 20..=1 << 30;

/// How many copies of inputs of `bytes` bytes fill `rotation_bytes`.
pub(super) fn copies(rotation_bytes: usize, bytes: usize) -> usize {
    rotation_bytes.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES)
}

/// What inputs on the CPU are repeated to: twice the largest cache that the system reports, within [`HOST_BYTES`].
pub(super) fn host_bytes() -> usize {
    let cache = largest_cache(Path::new("/sys/devices/system/cpu/cpu0/cache"));
    (2 * cache).clamp(*HOST_BYTES.start(), *HOST_BYTES.end())
}

/// Bytes of the largest cache in a folder as Linux shows it; 0 where there is none.
fn largest_cache(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("size")).ok())
        .filter_map(|size| cache_bytes(size.trim()))
        .max()
        .unwrap_or(0)
}

/// The bytes that Linux writes as `32K` or `260M`.
fn cache_bytes(size: &str) -> Option<usize> {
    let unit = match size.chars().last()? {
        'K' => 1 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        _ => return size.parse().ok(),
    };
    let number: usize = size[..size.len() - 1].parse().ok()?;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read_as_linux_writes_them() {
        assert_eq!(cache_bytes("48K"), Some(48 << 10));
        assert_eq!(cache_bytes("260M"), Some(260 << 20));
        assert_eq!(cache_bytes("512"), Some(512));
        assert_eq!(cache_bytes(""), None);
        assert_eq!(cache_bytes("K"), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(largest_cache(folder.path()), 0);
        for (index, size) in ["32K\n", "266240K\n", "2048K\n"].into_iter().enumerate() {
            let level = folder.path().join(format!("index{index}"));
            fs::create_dir(&level).unwrap();
            fs::write(level.join("size"), size).unwrap();
        }
        assert_eq!(largest_cache(folder.path()), 260 << 20);
    }

    #[test]
    fn small_inputs_are_repeated_and_large_ones_are_not() {
        assert_eq!(copies(100, 100), 1);
        assert_eq!(copies(100, 99), 2);
        assert_eq!(copies(100, 10_000), 1);
        assert_eq!(copies(100_000, 1), MOST_COPIES);
        assert_eq!(copies(100, 0), 100);
    }
}
