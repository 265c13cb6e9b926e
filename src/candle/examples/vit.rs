//! A small vision transformer with random weights, whose attention is explained: `cargo run --example vit` here, with
//! `--features cuda` on a GPU.

use attention_rollout_candle::{RolloutConfig, rollout};
use candle_core::{D, Device, Result, Tensor};

const LAYERS: usize = 6;
const HEADS: usize = 3;
const WIDTH: usize = 48;
/// Patches along an edge of the image.
const GRID: usize = 4;
const PATCH_ELEMENTS: usize = 3 * 8 * 8;

/// One encoder layer.
struct Block {
    query_key_value: Tensor,
    projection: Tensor,
    expand: Tensor,
    contract: Tensor,
}

struct Vit {
    embedding: Tensor,
    class_token: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
}

fn weights(rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
    Tensor::randn(0f32, 1.5 / (rows as f32).sqrt(), (rows, columns), device)
}

fn normalize(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

impl Block {
    fn random(device: &Device) -> Result<Self> {
        Ok(Block {
            query_key_value: weights(WIDTH, 3 * WIDTH, device)?,
            projection: weights(WIDTH, WIDTH, device)?,
            expand: weights(WIDTH, 4 * WIDTH, device)?,
            contract: weights(4 * WIDTH, WIDTH, device)?,
        })
    }

    /// The next hidden states, and the attention maps `[batch, heads, tokens, tokens]` on the way.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, tokens, _) = x.dims3()?;
        let qkv = normalize(x)?
            .broadcast_matmul(&self.query_key_value)?
            .reshape((batch, tokens, 3, HEADS, WIDTH / HEADS))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let scale = ((WIDTH / HEADS) as f64).sqrt();
        let maps = softmax(&(q.matmul(&k.t()?)? / scale)?)?;
        let mixed = maps
            .matmul(&v)?
            .transpose(1, 2)?
            .reshape((batch, tokens, WIDTH))?;
        let x = (x + mixed.broadcast_matmul(&self.projection)?)?;
        let hidden = normalize(&x)?.broadcast_matmul(&self.expand)?.gelu()?;
        let x = (x + hidden.broadcast_matmul(&self.contract)?)?;
        Ok((x, maps))
    }
}

impl Vit {
    fn random(device: &Device) -> Result<Self> {
        Ok(Vit {
            embedding: weights(PATCH_ELEMENTS, WIDTH, device)?,
            class_token: weights(1, WIDTH, device)?,
            positions: weights(1 + GRID * GRID, WIDTH, device)?,
            blocks: (0..LAYERS)
                .map(|_| Block::random(device))
                .collect::<Result<_>>()?,
        })
    }

    /// The attention maps of every layer, first to last, for patches `[batch, patches, elements]`.
    fn attention(&self, patches: &Tensor) -> Result<Vec<Tensor>> {
        let batch = patches.dim(0)?;
        let embedded = patches.broadcast_matmul(&self.embedding)?;
        let class_token = self.class_token.broadcast_left(batch)?;
        let mut x = Tensor::cat(&[class_token, embedded], 1)?.broadcast_add(&self.positions)?;
        let mut kept = Vec::with_capacity(LAYERS);
        for block in &self.blocks {
            let (next, maps) = block.forward(&x)?;
            x = next;
            kept.push(maps);
        }
        Ok(kept)
    }
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    let vit = Vit::random(&device)?;
    let images = Tensor::randn(0f32, 1.0, (2, GRID * GRID, PATCH_ELEMENTS), &device)?;
    let maps = vit.attention(&images)?;
    let relevance = rollout(&maps, &RolloutConfig::default())?.to_vec2::<f32>()?;
    for (image, relevance) in relevance.iter().enumerate() {
        println!(
            "image {image}: relevance of the patches for the class token, sum of all {:.6}",
            relevance.iter().sum::<f32>()
        );
        for row in relevance[1..].chunks(GRID) {
            let row: Vec<String> = row.iter().map(|value| format!("{value:.4}")).collect();
            println!("  {}", row.join(" "));
        }
    }
    Ok(())
}
