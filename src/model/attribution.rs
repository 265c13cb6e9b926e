//! What comes out: how much each element of each feature counted.

/// How much each element of a feature counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The feature's key.
    pub feature: String,
    /// Shape of `values`: the feature's [`input_shape`](super::Feature::input_shape), or `[batch, tokens]`.
    pub shape: Vec<usize>,
    /// The relevance of each element, row-major.
    pub values: Vec<f32>,
}

/// The attributions of a batch, in the order of the model's features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributions(pub(super) Vec<Attribution>);

impl Attributions {
    /// That of `feature`.
    pub fn get(&self, feature: &str) -> Option<&Attribution> {
        self.0.iter().find(|a| a.feature == feature)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Attribution> {
        self.0.iter()
    }
}

impl IntoIterator for Attributions {
    type Item = Attribution;
    type IntoIter = std::vec::IntoIter<Attribution>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
