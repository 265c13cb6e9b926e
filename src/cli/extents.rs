//! The size of what is drawn.

use std::str::FromStr;

/// Rows and columns: of patches, or of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    pub height: usize,
    pub width: usize,
}

impl FromStr for Extents {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let extent = |text: &str| text.parse().ok().filter(|&extent: &usize| extent > 0);
        text.split_once('x')
            .and_then(|(height, width)| {
                let (height, width) = (extent(height)?, extent(width)?);
                Some(Extents { height, width })
            })
            .ok_or_else(|| "expected rows and columns, as 14x14".to_owned())
    }
}
