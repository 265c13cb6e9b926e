//! How the heads of a layer, and their gradients, become one map.

/// How the heads of a layer become one map.
///
/// The fused map is defined to the bit, so that every backend discards the same entries: heads are taken in order,
/// in f32; the mean is their sum times the f32 nearest to `1 / heads`; the weighted sum adds the rounded products
/// `weight * entry`, without fused multiply-add. NaN propagates through all four.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HeadFusion {
    /// Mean over heads.
    #[default]
    Mean,
    /// Largest entry over heads.
    Max,
    /// Smallest entry over heads.
    Min,
    /// Sum of the heads times these weights, one per head. They are not normalised.
    Weighted(Vec<f32>),
}

/// How gradients weigh a map: what is pushed towards the answer counts, what is pushed away from it does not.
///
/// An entry of a head times its gradient is one rounded f32 product, and `relu` leaves NaN as it is. Such entries are not
/// bounded by 1, and their rows sum to anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientRule {
    /// `fuse_h relu(G * A)`: head by head, before the fusion (with the mean, Chefer et al. 2021, arXiv 2103.15679,
    /// equation 5).
    Heads,
    /// `relu(fuse_h (G * A))`: after the fusion (with the mean, vit-explain's gradient rollout).
    Fused,
}
