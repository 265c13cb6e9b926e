//! How the launches of several problems become launches of all of them. Pure functions.

use crate::cuda::variant::Variant;

/// One launch: the kernel, and the sequences that take their next step with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub variant: Variant,
    /// Sequence and step.
    pub steps: Vec<(usize, usize)>,
}

/// Merges sequences of kernels, keeping the order within each. Sequences that are alike stay side by side to their ends,
/// so the number of launches depends on how many different sequences there are, not on how many in all.
///
/// Each turn takes the kernel that the fewest sequences will need again, but not yet; of those the one that most need
/// now.
pub(super) fn merge(sequences: &[Vec<Variant>]) -> Vec<Merged> {
    let mut next = vec![0; sequences.len()];
    let mut merged = Vec::new();
    loop {
        let rest = || {
            let rest = sequences.iter().zip(&next);
            rest.map(|(sequence, &next)| &sequence[next..])
        };
        let fronts = |variant: Variant| rest().filter(move |rest| rest.first() == Some(&variant));
        let late = |variant: Variant| {
            let late = rest()
                .filter(|rest| rest.first() != Some(&variant))
                .filter(|rest| rest.contains(&variant));
            late.count()
        };
        let mut candidates: Vec<Variant> = Vec::new();
        for &front in rest().filter_map(<[Variant]>::first) {
            if !candidates.contains(&front) {
                candidates.push(front);
            }
        }
        let Some(variant) = candidates
            .into_iter()
            .min_by_key(|&variant| (late(variant), usize::MAX - fronts(variant).count()))
        else {
            return merged;
        };
        let mut steps = Vec::new();
        for (index, (sequence, next)) in sequences.iter().zip(&mut next).enumerate() {
            if sequence.get(*next) == Some(&variant) {
                steps.push((index, *next));
                *next += 1;
            }
        }
        merged.push(Merged { variant, steps });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::variant::Variant::{Discard, RolloutFirst, RowScales, ZeroFill};

    fn stems(sequences: &[Vec<Variant>]) -> Vec<&'static str> {
        let merged = merge(sequences);
        // Every step once, in the order of its sequence.
        for (index, sequence) in sequences.iter().enumerate() {
            let steps = merged
                .iter()
                .flat_map(|m| m.steps.iter().map(move |s| (m, s)));
            let mine: Vec<_> = steps.filter(|(_, (of, _))| *of == index).collect();
            assert!(
                mine.iter().enumerate().all(
                    |(step, (merged, (_, at)))| *at == step && merged.variant == sequence[step]
                )
            );
            assert_eq!(mine.len(), sequence.len());
        }
        merged.iter().map(|merged| merged.variant.stem()).collect()
    }

    #[test]
    fn alike_sequences_take_as_many_launches_as_one() {
        let sequence = vec![Discard, RowScales, RolloutFirst, RowScales];
        assert_eq!(stems(&vec![sequence; 9]).len(), 4);
    }

    #[test]
    fn short_sequences_wait_for_long_ones() {
        let (long, short) = (vec![Discard, RowScales, RolloutFirst], vec![RolloutFirst]);
        for sequences in [[long.clone(), short.clone()], [short, long]] {
            assert_eq!(
                stems(&sequences),
                ["discard", "row_scales", "rollout_first"]
            );
        }
    }

    #[test]
    fn what_no_order_can_share_is_launched_by_itself() {
        let sequences = [vec![Discard, RowScales], vec![RowScales, Discard], vec![]];
        assert_eq!(stems(&sequences).len(), 3);
        assert!(stems(&[]).is_empty());
        assert_eq!(stems(&[vec![ZeroFill; 3], vec![ZeroFill]]).len(), 3);
    }
}
