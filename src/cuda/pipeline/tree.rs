//! The tree pipeline: fused maps are split once, and factors multiplied that follow one another, all pairs of a level in one launch,
//! until one is left or, for cumulative outputs, each is the product of all before it.

use std::ops::Range;

use super::builder::{Builder, chunks, split};
use crate::config::Output;
use crate::cuda::address::Address;
use crate::cuda::choose::fastest_product;
use crate::cuda::kernel::{
    Factor, FactorProduct, FuseHeads, Fused, MAX_LAYERS_PER_LAUNCH, MAX_PRODUCTS, Matrices,
    Reading, SplitProduct,
};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::schedule::l2_budget;

/// How a problem is divided, so that all maps of a part stay in L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct TreeShape {
    /// Items of a part.
    pub items: usize,
    /// Layers whose factors become one, with that of the layers before.
    pub layers: usize,
    /// Maps of each item that there is room for.
    slots: usize,
}

impl TreeShape {
    /// Of `layers` layers, two at least, of at most `room` items in windows at most `window_len` tokens long.
    pub fn new(layers: usize, room: usize, window_len: u32, limits: &DeviceLimits) -> Self {
        let (room, len) = (room.max(1), window_len.max(1) as usize);
        let map_bytes = size_of::<f32>() * map_floats(len);
        let fit = l2_budget(limits) / map_bytes;
        let fits = |part: &usize| slots(*part, layers) <= fit;
        let most = (2..=layers).rev().find(fits).unwrap_or(2);
        let part = layers.div_ceil(layers.div_ceil(most));
        let slots = slots(part, layers);
        let items = (fit / slots).clamp(1, room);
        TreeShape {
            items: room.div_ceil(room.div_ceil(items)),
            layers: part,
            slots,
        }
    }

    /// The products `[later, earlier]` of each level, of which the later factor becomes the product, until the last of `factors`
    /// factors is that of all, or, `cumulative`, each of all up to it.
    ///
    /// On level `l` the factors whose number has bit `l` are multiplied with the last one before those that agree with them in
    /// the bits from `l` on; that one is the product of 2^l (J. Sklansky, "Conditional-sum addition logic", 1960).
    pub fn levels(factors: usize, cumulative: bool) -> Vec<Vec<[usize; 2]>> {
        let mut wanted = vec![cumulative; factors];
        wanted[factors - 1] = true;
        let count = factors.next_power_of_two().trailing_zeros();
        let mut levels: Vec<Vec<[usize; 2]>> = Vec::new();
        for level in (0..count).rev() {
            let later = (0..factors).filter(|&later| wanted[later] && later >> level & 1 == 1);
            let products: Vec<_> = later
                .map(|later| [later, (later >> level << level) - 1])
                .collect();
            for &[_, earlier] in &products {
                wanted[earlier] = true;
            }
            levels.push(products);
        }
        levels.reverse();
        levels
    }
}

/// Maps of an item that there must be room for when `part` of `layers` layers become one factor: theirs, that of the layers
/// before, if there are any, and those of a level of products.
fn slots(part: usize, layers: usize) -> usize {
    let factors = part + usize::from(part < layers);
    factors + factors / 2
}

/// Elements of an item's split map.
fn map_floats(len: usize) -> usize {
    len * SplitProduct::padded(len)
}

/// What is multiplied level by level.
struct Part {
    shape: TreeShape,
    items: Range<usize>,
    layers: Range<usize>,
    slots: Slots,
}

/// Where the split maps of a part lie: its layers' in the first slots, that of the layers before in the last.
#[derive(Clone, Copy)]
struct Slots {
    first: Matrices,
    /// From one to the next, in elements.
    stride: usize,
    count: usize,
}

impl Slots {
    fn at(&self, index: usize) -> Matrices {
        Matrices {
            base: self.first.base + size_of::<f32>() * self.stride * index,
            ..self.first
        }
    }

    fn last(&self) -> Address {
        self.at(self.count - 1).base
    }

    /// Those that hold none of `factors`.
    fn free(&self, factors: &[Factor]) -> impl Iterator<Item = Address> {
        let slots = (0..self.count).map(|index| self.at(index).base);
        slots.filter(move |slot| factors.iter().all(|factor| factor.map != *slot))
    }
}

impl Builder<'_> {
    /// The matrix, or each layer's, part by part.
    pub(super) fn tree(&mut self, kernel: Option<SplitProduct>) {
        self.zero_outside_windows();
        let range = self.problem.layers();
        let window_len = self.common.window_len;
        let shape = TreeShape::new(range.len(), self.room, window_len, self.limits);
        let len = window_len as usize;
        let stride = shape.items * map_floats(len);
        let buffer = self.buffer(shape.slots * stride);
        let slots = Slots {
            first: Matrices::new(buffer, map_floats(len), SplitProduct::padded(len)),
            stride,
            count: shape.slots,
        };
        for items in chunks(self.batch, shape.items) {
            let mut before = None;
            for layers in split(range.clone(), shape.layers) {
                self.fuse_split(&items, &layers, slots);
                let part = Part {
                    shape,
                    items: items.clone(),
                    layers,
                    slots,
                };
                before = Some(self.multiply_part(kernel, &part, before));
            }
        }
    }

    /// Fuses `layers` into the first of the slots.
    fn fuse_split(&mut self, items: &Range<usize>, layers: &Range<usize>, slots: Slots) {
        let (problem, window_len) = (self.problem, self.common.window_len);
        let kernel = FuseHeads {
            reading: Reading::of_layers(problem),
            split: true,
        };
        for group in split(layers.clone(), MAX_LAYERS_PER_LAUNCH) {
            let fused = Fused {
                maps: slots.at(group.start - layers.start),
                stride_layer: slots.stride,
                cuts: None,
                cut: false,
            };
            let multiprocessors = self.limits.multiprocessors;
            self.push(kernel.launch(problem, items, &group, window_len, multiprocessors, fused));
        }
    }

    /// Multiplies the layers of a part with the factor of those `before`, level by level. Returns the factor of all; of the last
    /// part it has no map.
    fn multiply_part(
        &mut self,
        kernel: Option<SplitProduct>,
        part: &Part,
        before: Option<Factor>,
    ) -> Factor {
        let (problem, window_len) = (self.problem, self.common.window_len);
        let (range, cumulative) = (
            problem.layers(),
            problem.config().output == Output::Cumulative,
        );
        let Part {
            shape,
            items,
            layers,
            slots,
        } = part;
        let is_first = before.is_none();
        let is_last = layers.end == range.end;
        // Number of the first layer's factor.
        let offset = usize::from(!is_first);
        let result = |number: usize| {
            let layer = layers.start + number - offset - range.start;
            let wanted = cumulative || layer + 1 == range.len();
            let result = || self.output_matrix(items, layer).base;
            wanted.then(result).unwrap_or(Address::NULL)
        };
        let mut factors: Vec<Factor> = before.into_iter().collect();
        let of_layer =
            |(index, layer)| Factor::layer(slots.at(index).base, problem.residual(layer));
        factors.extend(layers.clone().enumerate().map(of_layer));
        let levels = TreeShape::levels(factors.len(), cumulative);
        let mut launches: Vec<Vec<FactorProduct>> = Vec::new();
        for (level, pairs) in levels.iter().enumerate() {
            let is_top = level + 1 == levels.len();
            let mut free: Vec<Address> = slots.free(&factors).collect();
            let mut products = Vec::new();
            // What the first layer leaves is no product of layers.
            if level == 0 && is_first && cumulative {
                let (map, result) = (Address::NULL, result(0));
                products.push(FactorProduct::new(
                    factors[0],
                    Factor::IDENTITY,
                    map,
                    result,
                ));
            }
            let mut next = factors.clone();
            for &[later, earlier] in pairs {
                let map = match (is_top, is_last, later + 1 == factors.len()) {
                    (true, false, true) => slots.last(),
                    (true, ..) => Address::NULL,
                    (false, ..) => free.remove(0),
                };
                let is_complete = later >> level == 1;
                let result = match is_complete {
                    true => result(later),
                    false => Address::NULL,
                };
                let [left, right] = [later, earlier].map(|factor| factors[factor]);
                products.push(FactorProduct::new(left, right, map, result));
                next[later] = factors[later].times(&factors[earlier], map);
            }
            factors = next;
            launches.push(products);
        }
        for products in launches {
            // As for all items of a part, so that fewer take the same kernels.
            let count = products.len() * shape.items;
            let fastest = || fastest_product(count, window_len, self.limits);
            let kernel = kernel.unwrap_or_else(fastest);
            for products in products.chunks(MAX_PRODUCTS) {
                let results = self.output_matrix(items, 0);
                let maps = slots.first;
                self.push(kernel.launch(problem, items, window_len, products, maps, results));
            }
        }
        factors[factors.len() - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_in_l2_and_have_room_for_every_product() {
        for limits in [DeviceLimits::H200, DeviceLimits::A100, DeviceLimits::T4] {
            for layers in 2..70 {
                for (room, window_len) in [(1, 3), (1, 577), (9, 577), (64, 197), (2, 5000)] {
                    let shape = TreeShape::new(layers, room, window_len, &limits);
                    let item_bytes = 4 * shape.slots * map_floats(window_len as usize);
                    let fits = shape.items * item_bytes <= l2_budget(&limits);
                    assert!(fits || (shape.items, shape.layers) == (1, 2), "{shape:?}");
                    assert!((1..=room).contains(&shape.items), "{shape:?}");
                    assert!((2..=layers).contains(&shape.layers), "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn factors_become_one_level_by_level() {
        let levels = |factors, cumulative| {
            let levels = TreeShape::levels(factors, cumulative);
            levels.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(levels(1, false), Vec::<usize>::new());
        assert_eq!(levels(2, false), [1]);
        assert_eq!(levels(12, false), [6, 3, 1, 1]);
        assert_eq!(levels(13, false), [6, 3, 2, 1]);
        assert_eq!(levels(24, false), [12, 6, 3, 1, 1]);
        assert_eq!(levels(12, true), [6, 6, 4, 4]);
    }

    #[test]
    fn the_last_factor_or_each_of_them_is_the_product_of_all_before() {
        for (factors, cumulative) in (1..70).flat_map(|factors| [(factors, false), (factors, true)])
        {
            // The first of the factors that each is the product of, up to its own number.
            let mut first: Vec<usize> = (0..factors).collect();
            for level in TreeShape::levels(factors, cumulative) {
                assert!(level.len() <= factors / 2);
                let before = first.clone();
                for [later, earlier] in level {
                    assert_eq!(before[later], earlier + 1);
                    first[later] = before[earlier];
                }
            }
            assert_eq!(first[factors - 1], 0);
            assert!(!cumulative || first.iter().all(|&first| first == 0));
        }
    }
}
