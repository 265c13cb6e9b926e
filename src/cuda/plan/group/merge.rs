//! How the launches of several problems become launches of all of them. Pure functions.

/// One launch: the kernel, and the sequences that take their next step with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub kernel: usize,
    /// Sequence and step.
    pub steps: Vec<(usize, usize)>,
}

/// Merges sequences of kernels, keeping the order within each. Sequences that are alike stay side by side to their ends,
/// so the number of launches depends on how many different sequences there are, not on how many in all.
///
/// Each turn takes the kernel that the fewest sequences will need again, but not yet; of those the one that most need
/// now.
pub(super) fn merge(sequences: &[Vec<usize>]) -> Vec<Merged> {
    let mut next = vec![0; sequences.len()];
    let mut merged = Vec::new();
    loop {
        let rest = || {
            let rest = sequences.iter().zip(&next);
            rest.map(|(sequence, &next)| &sequence[next..])
        };
        let fronts = |kernel: usize| rest().filter(move |rest| rest.first() == Some(&kernel));
        let late = |kernel: usize| {
            let late = rest()
                .filter(|rest| rest.first() != Some(&kernel))
                .filter(|rest| rest.contains(&kernel));
            late.count()
        };
        let mut candidates: Vec<usize> = Vec::new();
        for &front in rest().filter_map(<[usize]>::first) {
            if !candidates.contains(&front) {
                candidates.push(front);
            }
        }
        let Some(kernel) = candidates
            .into_iter()
            .min_by_key(|&kernel| (late(kernel), usize::MAX - fronts(kernel).count()))
        else {
            return merged;
        };
        let mut steps = Vec::new();
        for (index, (sequence, next)) in sequences.iter().zip(&mut next).enumerate() {
            if sequence.get(*next) == Some(&kernel) {
                steps.push((index, *next));
                *next += 1;
            }
        }
        merged.push(Merged { kernel, steps });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISCARD: usize = 0;
    const SCALES: usize = 1;
    const FIRST: usize = 2;

    fn kernels(sequences: &[Vec<usize>]) -> Vec<usize> {
        let merged = merge(sequences);
        // Every step once, in the order of its sequence.
        for (index, sequence) in sequences.iter().enumerate() {
            let steps = merged
                .iter()
                .flat_map(|m| m.steps.iter().map(move |s| (m, s)));
            let mine: Vec<_> = steps.filter(|(_, (of, _))| *of == index).collect();
            assert!(
                mine.iter()
                    .enumerate()
                    .all(|(step, (merged, (_, at)))| *at == step && merged.kernel == sequence[step])
            );
            assert_eq!(mine.len(), sequence.len());
        }
        merged.iter().map(|merged| merged.kernel).collect()
    }

    #[test]
    fn alike_sequences_take_as_many_launches_as_one() {
        let sequence = vec![DISCARD, SCALES, FIRST, SCALES];
        assert_eq!(kernels(&vec![sequence; 9]).len(), 4);
    }

    #[test]
    fn short_sequences_wait_for_long_ones() {
        let (long, short) = (vec![DISCARD, SCALES, FIRST], vec![FIRST]);
        for sequences in [[long.clone(), short.clone()], [short, long]] {
            assert_eq!(kernels(&sequences), [DISCARD, SCALES, FIRST]);
        }
    }

    #[test]
    fn what_no_order_can_share_is_launched_by_itself() {
        let sequences = [vec![DISCARD, SCALES], vec![SCALES, DISCARD], vec![]];
        assert_eq!(kernels(&sequences).len(), 3);
        assert!(kernels(&[]).is_empty());
        assert_eq!(kernels(&[vec![FIRST; 3], vec![FIRST]]).len(), 3);
    }
}
