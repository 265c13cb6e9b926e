//! `ldmatrix`, `stmatrix` and `mma.sync`.
//!
//! Fragment layouts follow the PTX manual: lane `4 g + q` holds rows `g` and `g + 8` and the
//! columns that belong to `q`. Products are summed in f64 and rounded once at the end; real tensor
//! cores round and truncate in ways that no document promises.

use super::access::Place;
use super::engine::Engine;
use super::shared::wavefronts;
use super::stop::{AtLane, Exec, stop};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::num::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::op::{Matrices, Mma, MmaInput, Order};
use crate::parse::Space;
use crate::trace::Event;

/// Rows of an 8x8 matrix, and bytes of one.
const ROWS: usize = 8;
const ROW_BYTES: u64 = 16;

/// A collective over the whole warp needs all its lanes.
fn check_whole_warp(mask: u32) -> Exec<()> {
    if mask == u32::MAX {
        return Ok(());
    }
    stop(
        FaultKind::DivergentBarrier,
        format!("needs the whole warp, but only lanes {mask:#010x} execute it"),
    )
}

impl Engine<'_> {
    /// Offsets of the rows of a matrix, one per lane of a quarter warp.
    fn rows(
        &self,
        warp: &mut Warp,
        op: &Matrices,
        matrix: usize,
        what: &str,
    ) -> Exec<[(usize, u64); ROWS]> {
        let mut rows = [(0, 0); ROWS];
        for (row, out) in rows.iter_mut().enumerate() {
            let lane = matrix * ROWS + row;
            let address = Self::address(warp, op.address, lane);
            let space = if op.space == Space::Generic {
                Space::Generic
            } else {
                Space::Shared
            };
            match self.place(warp, lane, space, address, (ROW_BYTES, ROW_BYTES), what)? {
                Place::Shared { block, offset } => *out = (block, offset),
                _ => {
                    let text = "a matrix outside shared memory";
                    return stop(FaultKind::IllegalOperand, text).at_lane(lane);
                }
            }
        }
        Ok(rows)
    }

    fn count_rows(&mut self, at: usize, matrices: &[[(usize, u64); ROWS]]) {
        let mut offsets = [0; 32];
        for (matrix, rows) in matrices.iter().enumerate() {
            for (row, &(_, offset)) in rows.iter().enumerate() {
                offsets[matrix * ROWS + row] = offset;
            }
        }
        let mask = u32::MAX >> (32 - matrices.len() * ROWS);
        let (needed, fewest) = wavefronts(&offsets, mask, ROW_BYTES as u32);
        self.counts.shared_request(at, needed, fewest);
        if let Some(tap) = &mut self.tap {
            tap.event(Event::Shared {
                wavefronts: needed as u32,
                remote: false,
            });
        }
    }

    pub(crate) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        at: usize,
        mask: u32,
        op: &Matrices,
    ) -> Exec<()> {
        check_whole_warp(mask)?;
        let mut all_rows = [[(0, 0); ROWS]; 4];
        let mut loaded = [[[0u16; 8]; ROWS]; 4];
        for matrix in 0..op.registers.len() {
            all_rows[matrix] = self.rows(warp, op, matrix, "matrix read")?;
            for (row, &(block, offset)) in all_rows[matrix].iter().enumerate() {
                let lane = matrix * ROWS + row;
                let who = Self::who(warp, lane, Order::default());
                let shared = &mut self.blocks[block].shared;
                shared
                    .note_read(offset, ROW_BYTES, who, &self.clocks)
                    .at_lane(lane)?;
                let bytes = shared.slice(offset, ROW_BYTES);
                for (column, out) in loaded[matrix][row].iter_mut().enumerate() {
                    *out = u16::from_le_bytes([bytes[2 * column], bytes[2 * column + 1]]);
                }
            }
        }
        for (matrix, &slot) in loaded.iter().zip(&op.registers) {
            let out = std::array::from_fn(|lane| {
                let (g, q) = (lane / 4, lane % 4 * 2);
                let (low, high) = if op.transposed {
                    (matrix[q][g], matrix[q + 1][g])
                } else {
                    (matrix[g][q], matrix[g][q + 1])
                };
                u32::from(low) | u32::from(high) << 16
            });
            *warp.registers.get_mut(slot) = out;
        }
        self.count_rows(at, &all_rows[..op.registers.len()]);
        Ok(())
    }

    pub(crate) fn store_matrix(
        &mut self,
        warp: &mut Warp,
        at: usize,
        mask: u32,
        op: &Matrices,
    ) -> Exec<()> {
        check_whole_warp(mask)?;
        let mut all_rows = [[(0, 0); ROWS]; 4];
        for (index, &slot) in op.registers.iter().enumerate() {
            let fragment = *warp.registers.get(slot);
            let mut matrix = [[0u16; 8]; ROWS];
            for (lane, value) in fragment.into_iter().enumerate() {
                let (g, q) = (lane / 4, lane % 4 * 2);
                for (step, half) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
                    if op.transposed {
                        matrix[q + step][g] = half;
                    } else {
                        matrix[g][q + step] = half;
                    }
                }
            }
            all_rows[index] = self.rows(warp, op, index, "matrix write")?;
            for (row, &(block, offset)) in all_rows[index].iter().enumerate() {
                let lane = index * ROWS + row;
                let who = Self::who(warp, lane, Order::default());
                let shared = &mut self.blocks[block].shared;
                shared
                    .note_write(offset, ROW_BYTES, who, &self.clocks)
                    .at_lane(lane)?;
                let bytes: Vec<u8> = matrix[row].iter().flat_map(|h| h.to_le_bytes()).collect();
                shared.write_slice(offset, &bytes);
            }
        }
        self.count_rows(at, &all_rows[..op.registers.len()]);
        Ok(())
    }

    /// `d = a b + c` with a 16 x k, b k x 8.
    pub(crate) fn multiply(warp: &mut Warp, mask: u32, op: &Mma) -> Exec<()> {
        check_whole_warp(mask)?;
        let registers = &mut warp.registers;
        let mut a = [[0f64; 16]; 16];
        let mut b = [[0f64; 8]; 16];
        let convert: fn(u16) -> f32 = if op.input == MmaInput::Bf16 {
            bf16_to_f32
        } else {
            f16_to_f32
        };
        for (index, &slot) in op.a.iter().enumerate() {
            for (lane, &value) in registers.get(slot).iter().enumerate() {
                let (g, q) = (lane / 4 + 8 * (index & 1), lane % 4);
                if op.input == MmaInput::Tf32 {
                    a[g][q + 4 * (index >> 1)] = tf32(value);
                } else {
                    let column = 2 * q + 8 * (index >> 1);
                    a[g][column] = convert(value as u16).into();
                    a[g][column + 1] = convert((value >> 16) as u16).into();
                }
            }
        }
        for (index, &slot) in op.b.iter().enumerate() {
            for (lane, &value) in registers.get(slot).iter().enumerate() {
                let (g, q) = (lane / 4, lane % 4);
                if op.input == MmaInput::Tf32 {
                    b[q + 4 * index][g] = tf32(value);
                } else {
                    let row = 2 * q + 8 * index;
                    b[row][g] = convert(value as u16).into();
                    b[row + 1][g] = convert((value >> 16) as u16).into();
                }
            }
        }
        let mut sums = [[0f64; 8]; 16];
        for (index, &slot) in op.c.iter().enumerate() {
            for (lane, &value) in registers.get(slot).iter().enumerate() {
                let (g, q) = (lane / 4, lane % 4 * 2);
                if op.c_is_f16 {
                    sums[g + 8 * index][q] = f16_to_f32(value as u16).into();
                    sums[g + 8 * index][q + 1] = f16_to_f32((value >> 16) as u16).into();
                } else {
                    sums[g + 8 * (index >> 1)][q + (index & 1)] = f32::from_bits(value).into();
                }
            }
        }
        for (sum, a) in sums.iter_mut().zip(&a) {
            for (a, b) in a.iter().zip(&b).take(op.k) {
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        for (index, &slot) in op.d.iter().enumerate() {
            let out = registers.get_mut(slot);
            for (lane, out) in out.iter_mut().enumerate() {
                let (g, q) = (lane / 4, lane % 4 * 2);
                *out = if op.d_is_f16 {
                    let half =
                        |column: usize| u32::from(f32_to_f16(sums[g + 8 * index][column] as f32));
                    half(q) | half(q + 1) << 16
                } else {
                    (sums[g + 8 * (index >> 1)][q + (index & 1)] as f32).to_bits()
                };
            }
        }
        Ok(())
    }
}

/// A tf32 operand: the low 13 bits of the f32 are not looked at.
fn tf32(bits: u32) -> f64 {
    f32::from_bits(bits & 0xffff_e000).into()
}
