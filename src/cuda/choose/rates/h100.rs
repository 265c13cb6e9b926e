//! NVIDIA H100 SXM. Nobody measured one; what does not wait for memory is predicted to be as of an H200, which has the same
//! die.

use super::Rates;

impl Rates {
    pub(in super::super) const H100: Rates = Rates::H200.of_same_die(
        "tests/ptxtime/src/machine/h100.rs",
        "as an H200, whose die it has",
    );
}
