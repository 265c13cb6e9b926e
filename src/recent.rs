//! The plans that a pipeline of many shapes used last.

use std::num::NonZeroUsize;

use crate::error::Result;

/// At most so many plans; the least recently used one goes first.
pub(crate) struct Recent<P> {
    /// In the order of their last use. Few enough to be looked through.
    plans: Vec<P>,
    most: NonZeroUsize,
}

impl<P> Recent<P> {
    pub fn new(most: NonZeroUsize) -> Self {
        Recent {
            plans: Vec::new(),
            most,
        }
    }

    pub fn len(&self) -> usize {
        self.plans.len()
    }

    #[cfg(feature = "cuda")]
    pub fn iter(&self) -> impl Iterator<Item = &P> {
        self.plans.iter()
    }

    pub fn clear(&mut self) {
        self.plans.clear();
    }

    /// The plan that `fits`, made by `make` where there is none. What has no room any more goes before another is made,
    /// so that its memory serves that one.
    pub fn get(
        &mut self,
        fits: impl Fn(&P) -> bool,
        make: impl FnOnce() -> Result<P>,
    ) -> Result<&mut P> {
        match self.plans.iter().position(fits) {
            Some(known) => self.plans[known..].rotate_left(1),
            None => {
                self.plans
                    .drain(..(self.plans.len() + 1).saturating_sub(self.most.get()));
                self.plans.push(make()?);
            }
        }
        let last = self.plans.len() - 1;
        Ok(&mut self.plans[last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut recent = Recent::new(NonZeroUsize::new(2).unwrap());
        let mut made = Vec::new();
        for wanted in [1, 2, 1, 3, 1, 2, 2] {
            let plan = recent.get(
                |&plan| plan == wanted,
                || {
                    made.push(wanted);
                    Ok(wanted)
                },
            );
            assert_eq!(*plan.unwrap(), wanted);
        }
        assert_eq!(made, [1, 2, 3, 2]);
        assert_eq!(recent.len(), 2);
        let failed = recent.get(|_| false, || Err(Error::ZeroExtent { what: "tokens" }));
        assert!(failed.is_err());
        recent.clear();
        assert_eq!(recent.len(), 0);
    }
}
