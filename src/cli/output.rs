//! The output file: f32 tensors, written piece by piece.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::pending::PendingFile;

/// Name and shape of one f32 output tensor.
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

/// A safetensors file of f32 tensors, written piece by piece.
pub struct TensorFile {
    file: PendingFile,
    /// Byte offset of each tensor in the file.
    offsets: HashMap<String, u64>,
}

impl TensorFile {
    /// Starts a file called `path` with these tensors, all elements 0 until they are written.
    pub fn create<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = &'a TensorSpec>,
    ) -> Result<Self> {
        let overflow = || {
            let source = std::io::Error::other("the output does not fit the address space");
            Error::output(path, "cannot create")(source)
        };
        let mut sorted: Vec<&TensorSpec> = tensors.into_iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut end = 0usize;
        let mut infos = Vec::with_capacity(sorted.len());
        for spec in &sorted {
            let bytes = spec
                .shape
                .iter()
                .try_fold(4usize, |product, &extent| product.checked_mul(extent))
                .ok_or_else(overflow)?;
            let start = end;
            end = start.checked_add(bytes).ok_or_else(overflow)?;
            infos.push((
                spec.name.clone(),
                TensorInfo {
                    dtype: Dtype::F32,
                    shape: spec.shape.clone(),
                    data_offsets: (start, end),
                },
            ));
        }
        let other = |e: String| Error::output(path, "cannot create")(std::io::Error::other(e));
        let metadata = Metadata::new(None, infos.clone()).map_err(|e| other(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| other(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;

        let mut file = PendingFile::create(path)?;
        file.write_at(0, &(header.len() as u64).to_le_bytes())?;
        file.write_at(8, &header)?;
        file.set_len(data + end as u64)?;
        let offsets = infos
            .into_iter()
            .map(|(name, info)| (name, data + info.data_offsets.0 as u64))
            .collect();
        Ok(TensorFile { file, offsets })
    }

    /// Writes `values`, those of `items`, into the tensor `spec`, whose first axis is the batch.
    ///
    /// # Panics
    /// Where the file has no such tensor.
    pub fn write_items(
        &mut self,
        spec: &TensorSpec,
        items: &Range<usize>,
        values: &[f32],
    ) -> Result<()> {
        let first = items.start * (values.len() / items.len().max(1));
        let offset = self.offsets[&spec.name] + 4 * first as u64;
        self.file.write_at(offset, bytemuck::cast_slice(values))
    }

    /// The finished file, still under its temporary name.
    pub fn into_pending(self) -> PendingFile {
        self.file
    }
}
