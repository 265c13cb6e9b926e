//! Against the definition, written with candle's own operations; and what is refused.

use attention_rollout_candle::{
    GradientRule, Layer, Output, QueriesKeys, Rollout, RolloutConfig, Shape, StartRows, Window,
    rollout,
};
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

/// Queries of 4 heads and keys of 2, heads of 8 elements, as `[batch, tokens, heads, 8]`, seen heads first.
fn queries_and_keys(layers: usize, tokens: usize) -> Result<Vec<(Tensor, Tensor)>> {
    let tensor = |heads: usize, seed: usize| {
        let values =
            (0..2 * tokens * heads * 8).map(|i| ((i * 37 + seed * 101) % 89) as f32 / 44.0 - 1.0);
        let tensor = Tensor::from_iter(values, &Device::Cpu)?;
        tensor.reshape((2, tokens, heads, 8))?.transpose(1, 2)
    };
    (0..layers)
        .map(|layer| Ok((tensor(4, layer)?, tensor(2, layer + 50)?)))
        .collect()
}

/// Scores, and the maps that follow from them.
fn attention(queries: &Tensor, keys: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    let keys = Tensor::stack(&[keys, keys], 2)?.flatten(1, 2)?;
    let scores = (queries.contiguous()?.matmul(&keys.t()?.contiguous()?)? * scale)?;
    let exp = scores.exp()?;
    let sums = exp.sum_keepdim(D::Minus1)?;
    Ok((exp.broadcast_div(&sums)?, sums.log()?.squeeze(D::Minus1)?))
}

#[test]
fn queries_and_keys_give_what_their_maps_give() -> Result<()> {
    let scale = 0.7;
    let both = queries_and_keys(3, 5)?;
    let attention: Vec<(Tensor, Tensor)> = both
        .iter()
        .map(|(queries, keys)| attention(queries, keys, scale))
        .collect::<Result<_>>()?;
    let maps: Vec<Tensor> = attention.iter().map(|(map, _)| map.clone()).collect();
    let layers = |with_lse: bool| -> Vec<Layer<Tensor>> {
        let all = both.iter().zip(&attention);
        all.map(|((queries, keys), (_, lse))| Layer::QueriesKeys {
            queries: queries.clone(),
            keys: keys.clone(),
            lse: with_lse.then(|| lse.clone()),
        })
        .collect()
    };
    let shape = Shape {
        layers: 3,
        batch: 2,
        heads: 4,
        tokens: 5,
    };
    for (config, with_lse) in [
        (RolloutConfig::default(), false),
        (RolloutConfig::default(), true),
        (matrix(), true),
    ] {
        let mut rollout = Rollout::new(config.clone());
        let expected = rollout.run(&maps)?;
        rollout.set_scores(Some(QueriesKeys {
            scale: Some(scale as f32),
            ..QueriesKeys::new(&shape, 8)
        }));
        let got = rollout.run_layers(&layers(with_lse))?;
        assert_near(&got, &expected)?;
    }
    // An LSE that is not that of the scores is noticed.
    let mut rollout = Rollout::new(RolloutConfig::default());
    let said = rollout.run_layers(&layers(true)).unwrap_err().to_string();
    assert!(said.contains("layer 0, item 0, head 0"), "{said}");
    for (other, kind) in [
        (Layer::Maps(maps[1].clone()), "got maps"),
        (layers(true).remove(1), "got queries, keys and LSE"),
    ] {
        let mut mixed = layers(false);
        mixed[1] = other;
        let said = rollout.run_layers(&mixed).unwrap_err().to_string();
        assert!(said.contains("layer 1") && said.contains(kind), "{said}");
    }
    // Elements of a query that do not lie side by side, an LSE of other heads, and keys of other tokens.
    let of_first = |change: &dyn Fn(&mut Tensor, &mut Tensor, &mut Tensor) -> Result<()>| {
        let mut all = layers(true);
        if let Layer::QueriesKeys {
            queries,
            keys,
            lse: Some(lse),
        } = &mut all[0]
        {
            change(queries, keys, lse)?;
        }
        Ok::<String, candle_core::Error>(
            Rollout::new(RolloutConfig::default())
                .run_layers(&all)
                .unwrap_err()
                .to_string(),
        )
    };
    let said = of_first(&|queries, _, _| {
        *queries = queries.transpose(2, 3)?.contiguous()?.transpose(2, 3)?;
        Ok(())
    })?;
    assert!(said.contains("queries: expected a last axis"), "{said}");
    let said = of_first(&|_, _, lse| {
        *lse = lse.i((.., ..2))?;
        Ok(())
    })?;
    assert!(
        said.contains("LSE: expected [2, 4, 5], got [2, 2, 5]"),
        "{said}"
    );
    let said = of_first(&|_, keys, _| {
        *keys = keys.i((.., .., ..4))?;
        Ok(())
    })?;
    assert!(
        said.contains("keys: expected [2, 2, 5, 8], got [2, 2, 4, 8]"),
        "{said}"
    );
    Ok(())
}

#[test]
fn gradients_weigh_maps() -> Result<()> {
    let maps = maps(2, (2, 2, 5, 5))?;
    let config = RolloutConfig {
        gradients: Some(GradientRule::Heads),
        ..matrix()
    };
    let layers: Vec<Layer<Tensor>> = maps
        .iter()
        .map(|map| {
            Ok(Layer::Gradients {
                maps: map.clone(),
                gradients: map.ones_like()?,
            })
        })
        .collect::<Result<_>>()?;
    // Gradients of 1 change nothing.
    assert_near(
        &Rollout::new(config.clone()).run_layers(&layers)?,
        &definition(&maps)?,
    )?;
    let transposed = [Layer::Gradients {
        maps: maps[0].clone(),
        gradients: maps[0].t()?,
    }];
    let said = Rollout::new(config)
        .run_layers(&transposed)
        .unwrap_err()
        .to_string();
    assert!(said.contains("as its maps"), "{said}");
    Ok(())
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
