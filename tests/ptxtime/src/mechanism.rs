//! What of the model was never held to a measurement.

use crate::Machine;
use ptxemu::trace::{Cost, LaunchTrace};
use std::fmt;

/// A mechanism that no measured kernel uses, and whose constants nobody has fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mechanism {
    /// `cp.async.bulk`.
    BulkCopies,
    /// mbarriers.
    Mbarriers,
    /// `st.async`.
    RemoteStores,
    /// Words in global memory that other blocks wait for.
    Words,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Mechanism; 4] = [
        Mechanism::BulkCopies,
        Mechanism::Mbarriers,
        Mechanism::RemoteStores,
        Mechanism::Words,
    ];

    /// Whether a launch uses it.
    pub fn is_in(self, trace: &LaunchTrace) -> bool {
        let cost = match self {
            Mechanism::BulkCopies => Cost::BulkCopy,
            Mechanism::Mbarriers => Cost::MbarrierTest,
            Mechanism::RemoteStores if trace.cluster > 1 => Cost::StoreAsync,
            Mechanism::Words if trace.together > 1 && trace.cluster == 1 => Cost::LoadStrong,
            _ => return false,
        };
        trace
            .code
            .iter()
            .any(|instruction| instruction.cost == cost)
    }

    /// Its latency.
    fn latency(self, machine: &mut Machine) -> &mut f64 {
        match self {
            Mechanism::BulkCopies => &mut machine.bulk_latency,
            Mechanism::Mbarriers => &mut machine.mbarrier_latency,
            Mechanism::RemoteStores => &mut machine.store_latency,
            Mechanism::Words => &mut machine.word_latency,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mechanism::BulkCopies => "bulk copies",
            Mechanism::Mbarriers => "mbarriers",
            Mechanism::RemoteStores => "remote stores",
            Mechanism::Words => "words between blocks",
        })
    }
}

impl Machine {
    /// The device with the latency of one mechanism times `factor`.
    pub fn with_latency(&self, mechanism: Mechanism, factor: f64) -> Machine {
        let mut machine = self.clone();
        *mechanism.latency(&mut machine) *= factor;
        machine
    }

    /// The device with the latencies of all mechanisms that were never measured times `factor`.
    pub fn with_unmeasured(&self, factor: f64) -> Machine {
        let all = Mechanism::ALL.into_iter();
        all.fold(self.clone(), |machine, mechanism| {
            machine.with_latency(mechanism, factor)
        })
    }
}
