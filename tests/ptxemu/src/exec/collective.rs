//! What the lanes of a member mask do together.

use super::engine::Engine;
use super::step::Flow;
use super::stop::{AtLane, Exec, stop};
use super::warp::{State, Warp};
use crate::fault::FaultKind;
use crate::op::{Collective, Guard, Shuffle, ShuffleMode, VoteMode};
use crate::registers::{AnySlot, LANES, PredSlot, Slot, lanes};

impl Engine<'_> {
    pub(crate) fn collective(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        op: &Collective,
        members: Slot<u32>,
    ) -> Exec<Flow> {
        let values = *warp.registers.get(members);
        let first = mask.trailing_zeros() as usize;
        let members = values[first];
        for lane in lanes(mask) {
            if values[lane] >> lane & 1 == 0 {
                let text = format!("the member mask {:#010x} leaves the lane out", values[lane]);
                return stop(FaultKind::Membermask, text).at_lane(lane);
            }
            if values[lane] != members {
                let text = format!(
                    "member mask {:#010x}, but {members:#010x} in lane {first}",
                    values[lane]
                );
                return stop(FaultKind::Membermask, text).at_lane(lane);
            }
        }
        if let Collective::WarpBarrier = op {
            if mask & members & warp.live == members & warp.live {
                self.clocks.sync_lanes(warp.index, mask, warp.live);
                return Ok(Flow::Next);
            }
            return Ok(Flow::Wait(State::WarpBarrier { members }));
        }
        if mask & members & warp.live != members & warp.live {
            return Ok(Flow::Again(State::Collecting { members }));
        }
        match op {
            Collective::Shuffle(shuffle) => exchange(warp, mask, shuffle)?,
            Collective::Vote {
                mode,
                to_pred,
                to,
                value,
            } => {
                vote(warp, mask, *mode, *to_pred, *to, *value);
            }
            Collective::Match {
                all,
                to,
                found,
                value,
            } => {
                match_values(warp, mask, *all, *to, *found, *value);
            }
            Collective::Redux { to, value, fold } => {
                let values = warp.registers.get(*value);
                let folded = lanes(mask)
                    .map(|l| values[l])
                    .reduce(fold)
                    .unwrap_or_default();
                warp.registers.set(*to, &[folded; LANES], mask);
            }
            Collective::Elect { to, elected } => {
                let leader = mask.trailing_zeros();
                if let Some(to) = to {
                    warp.registers.set(*to, &[leader; LANES], mask);
                }
                warp.registers.set_pred(*elected, 1 << leader, mask);
            }
            Collective::WarpBarrier => {}
        }
        Ok(Flow::Next)
    }
}

/// `shfl.sync`, after the pseudocode of the PTX manual.
fn exchange(warp: &mut Warp, mask: u32, op: &Shuffle) -> Exec<()> {
    let value = *warp.registers.get(op.value);
    let (by, clamp) = (warp.registers.get(op.lane), warp.registers.get(op.clamp));
    let mut out = value;
    let mut in_range = 0;
    for lane in lanes(mask) {
        let own = lane as u32;
        let b = by[lane] & 31;
        let segment = clamp[lane] >> 8 & 31;
        let clamp = clamp[lane] & 31;
        let low = own & segment;
        let high = low | clamp & !segment;
        let (source, valid) = match op.mode {
            ShuffleMode::Up => (own.wrapping_sub(b), own as i32 - b as i32 >= high as i32),
            ShuffleMode::Down => (own + b, own + b <= high),
            ShuffleMode::Bfly => (own ^ b, own ^ b <= high),
            ShuffleMode::Idx => (low | b & !segment, low | b & !segment <= high),
        };
        let source = if valid { source } else { own };
        if mask >> source & 1 == 0 {
            let text = format!("reads lane {source}, which does not take part");
            return stop(FaultKind::Membermask, text).at_lane(lane);
        }
        out[lane] = value[source as usize];
        in_range |= u32::from(valid) << lane;
    }
    warp.registers.set(op.to, &out, mask);
    if let Some(slot) = op.in_range {
        warp.registers.set_pred(slot, in_range, mask);
    }
    Ok(())
}

fn vote(
    warp: &mut Warp,
    mask: u32,
    mode: VoteMode,
    to_pred: Option<PredSlot>,
    to: Option<Slot<u32>>,
    value: Guard,
) {
    let yes = value.bits(&warp.registers) & mask;
    let holds = match mode {
        VoteMode::All => yes == mask,
        VoteMode::Any => yes != 0,
        VoteMode::Uni => yes == 0 || yes == mask,
        VoteMode::Ballot => false,
    };
    if let Some(to) = to {
        warp.registers.set(to, &[yes; LANES], mask);
    }
    if let Some(to) = to_pred {
        warp.registers
            .set_pred(to, if holds { u32::MAX } else { 0 }, mask);
    }
}

fn match_values(
    warp: &mut Warp,
    mask: u32,
    all: bool,
    to: Slot<u32>,
    found: Option<PredSlot>,
    value: AnySlot,
) {
    let values: [u64; LANES] = std::array::from_fn(|l| warp.registers.wide(value, l));
    let same = |lane: usize| {
        lanes(mask)
            .filter(|&l| values[l] == values[lane])
            .fold(0, |m, l| m | 1u32 << l)
    };
    let mut out = [0; LANES];
    for lane in lanes(mask) {
        let same = same(lane);
        out[lane] = if all && same != mask { 0 } else { same };
    }
    let found_all = out[mask.trailing_zeros() as usize] != 0;
    warp.registers.set(to, &out, mask);
    if let Some(slot) = found {
        warp.registers
            .set_pred(slot, if found_all { u32::MAX } else { 0 }, mask);
    }
}
