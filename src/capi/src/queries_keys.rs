//! Queries and keys of the caller's, as the library has them.

use attention_rollout::{LogBase, Lse, QueriesKeys, QueriesKeysStrides, Shape, TokenStrides};

use crate::error::Result;
use crate::given::{choice, list, sized};
use crate::types::{ArLse, ArQueriesKeys, ArQueriesKeysStrides, ArTokenStrides};

impl From<ArTokenStrides> for TokenStrides {
    fn from(ArTokenStrides { batch, head, token }: ArTokenStrides) -> Self {
        TokenStrides { batch, head, token }
    }
}

impl From<ArQueriesKeysStrides> for QueriesKeysStrides {
    fn from(given: ArQueriesKeysStrides) -> Self {
        QueriesKeysStrides {
            queries: given.queries.into(),
            keys: given.keys.into(),
            lse: given.lse.into(),
        }
    }
}

/// Copies how attention follows from queries and keys; the problem of `shape` checks it.
///
/// # Safety
/// `given` is null, or points to as many bytes as its size says, whose pointers are null, or point to as many elements as
/// it says.
pub unsafe fn queries_keys(shape: &Shape, given: *const ArQueriesKeys) -> Result<QueriesKeys> {
    // SAFETY: the caller's promise; of the size that the struct has.
    let given = unsafe { &*sized(given)? };
    // SAFETY: the caller's promise.
    let (strides, sliding_windows, soft_caps, alibi_slopes, sinks) = unsafe {
        (
            list("strides", given.strides, given.strides_count)?,
            list(
                "sliding_windows",
                given.sliding_windows,
                given.sliding_windows_count,
            )?,
            list("soft_caps", given.soft_caps, given.soft_caps_count)?,
            list("alibi_slopes", given.alibi_slopes, given.alibi_slopes_count)?,
            list("sinks", given.sinks, given.sinks_count)?,
        )
    };
    let unsaid = QueriesKeys::new(shape, given.head_dim);
    Ok(QueriesKeys {
        key_heads: match given.key_heads {
            0 => unsaid.key_heads,
            heads => heads,
        },
        scale: (given.scale != 0.0).then_some(given.scale),
        lse: match choice("lse", given.lse)? {
            ArLse::Recomputed => Lse::Recomputed,
            ArLse::Natural => Lse::Given(LogBase::E),
            ArLse::BaseTwo => Lse::Given(LogBase::Two),
        },
        strides: strides.iter().map(|&strides| strides.into()).collect(),
        sliding_windows: sliding_windows.to_vec(),
        soft_caps: soft_caps.to_vec(),
        alibi_slopes: alibi_slopes.to_vec(),
        sinks: sinks.to_vec(),
        mass_tolerance: match (given.unchecked, given.mass_tolerance) {
            (0, 0.0) => unsaid.mass_tolerance,
            (0, tolerance) => Some(tolerance),
            _ => None,
        },
        ..unsaid
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{problem, tests::smallest};

    const SHAPE: Shape = Shape {
        layers: 3,
        batch: 2,
        heads: 4,
        tokens: 5,
    };

    /// All zero but for size and head size.
    fn plain() -> ArQueriesKeys {
        // SAFETY: zeros are numbers and null pointers.
        let mut given: ArQueriesKeys = unsafe { std::mem::zeroed() };
        given.size = size_of::<ArQueriesKeys>();
        given.head_dim = 16;
        given
    }

    fn made(given: &ArQueriesKeys) -> QueriesKeys {
        let mut of = smallest();
        of.queries_keys = given;
        // SAFETY: the lists are as long as their counts.
        let made = unsafe { problem(&of) }.unwrap();
        made.queries_keys().unwrap().clone()
    }

    #[test]
    fn what_is_zero_has_its_default() {
        assert_eq!(made(&plain()), QueriesKeys::new(&SHAPE, 16));
        // SAFETY: there are no lists.
        let of_maps = unsafe { problem(&smallest()) }.unwrap();
        assert_eq!(of_maps.queries_keys(), None);
    }

    #[test]
    fn every_field_arrives_in_its_place() {
        let mut number = 100;
        let mut token = || {
            number += 3;
            ArTokenStrides {
                batch: number,
                head: number + 1,
                token: number + 2,
            }
        };
        let strides = [(); 3].map(|()| ArQueriesKeysStrides {
            queries: token(),
            keys: token(),
            lse: token(),
        });
        let (sliding_windows, soft_caps) = ([0, 3, 4], [1.0, 0.0, 2.0]);
        let (alibi_slopes, sinks) = ([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]);
        let mut given = plain();
        given.key_heads = 2;
        (given.strides, given.strides_count) = (strides.as_ptr(), 3);
        (given.sliding_windows, given.sliding_windows_count) = (sliding_windows.as_ptr(), 3);
        (given.soft_caps, given.soft_caps_count) = (soft_caps.as_ptr(), 3);
        (given.alibi_slopes, given.alibi_slopes_count) = (alibi_slopes.as_ptr(), 4);
        (given.sinks, given.sinks_count) = (sinks.as_ptr(), 4);
        given.scale = 0.3;
        given.mass_tolerance = 0.2;
        let expected = QueriesKeys {
            head_dim: 16,
            key_heads: 2,
            scale: Some(0.3),
            lse: Lse::Recomputed,
            strides: strides.map(QueriesKeysStrides::from).to_vec(),
            sliding_windows: sliding_windows.to_vec(),
            soft_caps: soft_caps.to_vec(),
            alibi_slopes: alibi_slopes.to_vec(),
            sinks: sinks.to_vec(),
            mass_tolerance: Some(0.2),
        };
        assert_eq!(made(&given), expected);
        for (lse, expected) in [
            (ArLse::Natural, Lse::Given(LogBase::E)),
            (ArLse::BaseTwo, Lse::Given(LogBase::Two)),
        ] {
            given.lse = lse as u32;
            assert_eq!(made(&given).lse, expected);
        }
        given.unchecked = 1;
        assert_eq!(made(&given).mass_tolerance, None);
    }
}
