//! Failures that a test ordered in advance.

use crate::codes::Code;

/// The orders in force. Each counts down over the calls it is about, fails one of them, and is gone.
#[derive(Debug, Default)]
pub struct Orders {
    allocation: Option<u64>,
    launch: Option<(u64, Code)>,
    calls: Vec<(String, u64, Code)>,
}

impl Orders {
    /// The `k`-th device allocation from now (1 is the next) fails.
    pub fn fail_allocation(&mut self, k: u64) {
        self.allocation = (k > 0).then_some(k);
    }

    /// The `k`-th launch from now fails.
    pub fn fail_launch(&mut self, k: u64, code: Code) {
        self.launch = (k > 0).then_some((k, code));
    }

    /// The `k`-th call from now of the named driver function fails before it does anything.
    pub fn fail_call(&mut self, name: &str, k: u64, code: Code) {
        if k > 0 {
            self.calls.push((name.to_owned(), k, code));
        }
    }

    /// Counts an allocation; true if it has to fail.
    pub fn take_allocation(&mut self) -> bool {
        count_down(&mut self.allocation)
    }

    /// Counts a launch; the code if it has to fail.
    pub fn take_launch(&mut self) -> Option<Code> {
        let (left, code) = self.launch?;
        let mut left = Some(left);
        let due = count_down(&mut left);
        self.launch = left.map(|left| (left, code));
        due.then_some(code)
    }

    /// Counts a call; the code if it has to fail.
    pub fn take_call(&mut self, name: &str) -> Option<Code> {
        let mut due = None;
        self.calls.retain_mut(|(wanted, left, code)| {
            if wanted != name {
                return true;
            }
            *left -= 1;
            if *left == 0 {
                due = Some(*code);
            }
            *left > 0
        });
        due
    }
}

fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        Some(1) => {
            *left = None;
            true
        }
        Some(count) => {
            *count -= 1;
            false
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_fails_the_kth_and_only_the_kth() {
        let mut orders = Orders::default();
        orders.fail_allocation(2);
        orders.fail_launch(1, Code::LaunchFailed);
        orders.fail_call("cuInit", 2, Code::NotInitialized);
        assert_eq!(
            [(); 3].map(|()| orders.take_allocation()),
            [false, true, false]
        );
        assert_eq!(
            [(); 2].map(|()| orders.take_launch()),
            [Some(Code::LaunchFailed), None]
        );
        assert_eq!(orders.take_call("cuEventCreate"), None);
        assert_eq!(
            [(); 3].map(|()| orders.take_call("cuInit")),
            [None, Some(Code::NotInitialized), None]
        );
        orders.fail_allocation(0);
        assert!(!orders.take_allocation());
    }
}
