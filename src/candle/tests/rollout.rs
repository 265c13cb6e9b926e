//! Against the definition, written with candle's own operations; and what is refused.

use attention_rollout_candle::{Output, Rollout, RolloutConfig, StartRows, Window, rollout};
use candle_core::{D, DType, Device, IndexOp, Result, Tensor};

/// Maps whose rows sum to 1, each its own.
fn maps(layers: usize, shape: (usize, usize, usize, usize)) -> Result<Vec<Tensor>> {
    let (batch, heads, tokens, _) = shape;
    let len = batch * heads * tokens * tokens;
    (0..layers)
        .map(|layer| {
            let logits = (0..len).map(|i| ((i * 37 + layer * 101) % 89) as f32 / 16.0);
            let exp = Tensor::from_iter(logits, &Device::Cpu)?
                .reshape(shape)?
                .exp()?;
            exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
        })
        .collect()
}

/// `(A_L / 2 + I / 2) ... (A_1 / 2 + I / 2)`, `A` the mean of the heads.
fn definition(maps: &[Tensor]) -> Result<Tensor> {
    let tokens = maps[0].dim(D::Minus1)?;
    let identity = Tensor::eye(tokens, DType::F32, &Device::Cpu)?;
    let mut product: Option<Tensor> = None;
    for map in maps {
        let map = map.to_dtype(DType::F32)?;
        let fused = if map.rank() == 4 { map.mean(1)? } else { map };
        let layer = (fused.broadcast_add(&identity)? / 2.0)?;
        product = Some(match product {
            Some(product) => layer.matmul(&product)?,
            None => layer,
        });
    }
    Ok(product.expect("there is a layer"))
}

fn assert_near(got: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!(got.dims(), expected.dims());
    assert_eq!(got.dtype(), DType::F32);
    let got = got.flatten_all()?.to_vec1::<f32>()?;
    let expected = expected.flatten_all()?.to_vec1::<f32>()?;
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(
            (got - expected).abs() <= 1e-6,
            "element {index}: {got}, expected {expected}"
        );
    }
    Ok(())
}

fn matrix() -> RolloutConfig {
    RolloutConfig {
        output: Output::Matrix,
        ..Default::default()
    }
}

#[test]
fn rows_and_matrices_are_those_of_the_definition() -> Result<()> {
    let maps = maps(3, (2, 4, 5, 5))?;
    let expected = definition(&maps)?;
    assert_near(
        &rollout(&maps, &RolloutConfig::default())?,
        &expected.i((.., 0))?,
    )?;
    assert_near(&rollout(&maps, &matrix())?, &expected)
}

#[test]
fn views_are_read_where_they_lie() -> Result<()> {
    // One buffer [batch, layers, heads, tokens, tokens], of which an item, a head and a layer are left out.
    let whole = Tensor::stack(&maps(4, (3, 4, 5, 5))?, 1)?;
    let views: Vec<Tensor> = (0..3)
        .map(|layer| whole.i((1.., layer, 1..)))
        .collect::<Result<_>>()?;
    assert!(views.iter().all(|view| !view.is_contiguous()));
    assert_near(&rollout(&views, &matrix())?, &definition(&views)?)?;

    let fused: Vec<Tensor> = (0..3)
        .map(|layer| whole.i((.., layer, 2)))
        .collect::<Result<_>>()?;
    assert_near(&rollout(&fused, &matrix())?, &definition(&fused)?)
}

#[test]
fn half_precision_maps_are_taken_as_they_are() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        let maps: Vec<Tensor> = maps(3, (2, 2, 5, 5))?
            .iter()
            .map(|map| map.to_dtype(dtype))
            .collect::<Result<_>>()?;
        assert_near(&rollout(&maps, &matrix())?, &definition(&maps)?)?;
    }
    Ok(())
}

#[test]
fn one_rollout_runs_over_batches_of_any_shape() -> Result<()> {
    let mut last = Rollout::new(RolloutConfig {
        output: Output::Rows(StartRows::Last),
        ..Default::default()
    });
    for shape in [(2, 2, 5, 5), (2, 2, 5, 5), (1, 3, 7, 7)] {
        let maps = maps(2, shape)?;
        let expected = definition(&maps)?.i((.., shape.2 - 1))?;
        assert_near(&last.run(&maps)?, &expected)?;
    }
    // The first item's last token is absent.
    let maps = maps(2, (2, 2, 5, 5))?;
    let windows = vec![Window { start: 0, len: 4 }, Window::full(5)];
    last.set_windows(Some(windows));
    let relevance = last.run(&maps)?;
    let short: Vec<Tensor> = maps
        .iter()
        .map(|map| map.i((..1, .., ..4, ..4)))
        .collect::<Result<_>>()?;
    assert_near(&relevance.i((..1, ..4))?, &definition(&short)?.i((.., 3))?)?;
    assert_eq!(relevance.i((0, 4))?.to_scalar::<f32>()?, 0.0);
    // The plan of these windows serves others.
    last.set_windows(Some(vec![Window::full(5), Window { start: 1, len: 4 }]));
    let relevance = last.run(&maps)?;
    assert_near(&relevance.i(..1)?, &definition(&maps)?.i((..1, 4))?)?;
    assert_eq!(relevance.i((1, 0))?.to_scalar::<f32>()?, 0.0);
    last.set_windows(None);
    assert_near(&last.run(&maps)?, &definition(&maps)?.i((.., 4))?)
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let good = maps(2, (2, 2, 5, 5))?;
    let with = |other: Tensor| [good[0].clone(), other];
    let said = |maps: &[Tensor]| {
        rollout(maps, &RolloutConfig::default())
            .unwrap_err()
            .to_string()
    };

    assert!(said(&[]).contains("layers must be at least 1, got 0"));
    assert!(said(&[good[0].i((0, 0))?]).contains("expected [batch, heads, tokens, tokens]"));
    assert!(said(&[good[0].i((.., .., .., ..4))?]).contains("got [2, 2, 5, 4]"));
    assert!(
        said(&with(good[1].i(..1)?)).contains("[2, 2, 5, 5] as the first layer, got [1, 2, 5, 5]")
    );
    assert!(said(&[good[0].t()?]).contains("axis 3 must be contiguous"));
    assert!(said(&with(good[1].to_dtype(DType::F16)?)).contains("lhs: F32, rhs: F16"));
    assert!(
        said(&[good[0].to_dtype(DType::F64)?]).contains("unsupported dtype F64 for op rollout")
    );
    Ok(())
}
