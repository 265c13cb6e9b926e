//! Bytes as a safetensors file: never a panic, and whatever is taken, the safetensors crate takes too and sees alike.

use safetensors::{SafeTensorError, SafeTensors};

use super::change;
use crate::common::generate::Random;
use crate::header;

/// Reads `file` both ways.
pub fn check(file: &[u8]) {
    let Ok((entries, data)) = header::read(file) else {
        return;
    };
    let theirs = match SafeTensors::deserialize(file) {
        Ok(theirs) => theirs,
        // Metadata, which is passed over here, and a name listed twice, which is refused later.
        Err(SafeTensorError::InvalidHeaderDeserialization(_)) => return,
        Err(_) if has_twice(&entries) => return,
        Err(error) => panic!("only the safetensors crate refuses it: {error}"),
    };
    if has_twice(&entries) {
        return;
    }
    assert_eq!(entries.len(), theirs.len());
    for (name, entry) in &entries {
        let view = theirs.tensor(name).expect("it has as many tensors");
        assert_eq!(
            (view.dtype(), view.shape()),
            (entry.dtype, &entry.shape[..])
        );
        let (start, end) = entry.data_offsets;
        assert_eq!(view.data(), &data[start..end]);
    }
}

fn has_twice(entries: &header::TensorInfos) -> bool {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Where arithmetic on extents and offsets goes wrong, and what headers are made of.
const PIECES: [&str; 16] = [
    "0",
    "1",
    "4",
    "4294967296",
    "2305843009213693951",
    "9223372036854775807",
    "18446744073709551615",
    "-1",
    "1e3",
    "null",
    "[",
    "]",
    ",",
    "\"F16\"",
    "\"__metadata__\":{},",
    "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]},",
];

/// A file of the corpus with some places changed; most often with the length of the header set right again.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut file = corpus[random.below(corpus.len())].clone();
    let data =
        u64::from_le_bytes(file[..8].try_into().expect("the corpus has lengths")) as usize + 8;
    let tail = file.split_off(data);
    for _ in 0..=random.below(4) {
        change(random, &mut file, 8, &PIECES);
    }
    if random.below(8) > 0 {
        let length = file.len() as u64 - 8;
        file[..8].copy_from_slice(&length.to_le_bytes());
    }
    file.extend(tail);
    file.truncate(file.len() - random.below(2) * random.below(4).min(file.len()));
    file
}
