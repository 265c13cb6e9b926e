//! Expanding, laying out and scaling relevance.

use attention_rollout::Error;
use attention_rollout::post::{
    Normalization, columns, exclude_from_relevance, expand, expanded_shape, grid, normalize,
    upsample,
};

const RELEVANCE: [f32; 6] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];

#[test]
fn relevance_is_repeated_over_further_axes() {
    let expanded = expand(&RELEVANCE, &[2, 3], &[2, 3, 2]).unwrap();
    assert_eq!(
        expanded,
        [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6]
    );
    let expanded = expand(&RELEVANCE, &[2, 3], &[2, 3, 2, 2]).unwrap();
    assert_eq!(expanded.len(), 24);
    for (at, value) in expanded.iter().enumerate() {
        assert_eq!(*value, RELEVANCE[at / 4]);
    }
}

#[test]
fn extents_of_one_are_stretched() {
    let expanded = expand(&[1.0, 2.0], &[2, 1], &[2, 3, 2]).unwrap();
    assert_eq!(expanded, [[1.0; 6], [2.0; 6]].concat());
    let expanded = expand(&[1.0, 2.0], &[1, 2], &[2, 2, 2]).unwrap();
    assert_eq!(expanded, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
    let expanded = expand(&[1.0, 2.0], &[2, 1, 1], &[2, 2, 3, 2]).unwrap();
    assert_eq!(expanded, [[1.0; 12], [2.0; 12]].concat());
}

#[test]
fn relevance_with_as_many_axes_stays_as_it_is() {
    // Even where extents differ: PyHealth truncates and returns the short relevance.
    assert_eq!(expand(&RELEVANCE, &[2, 3], &[2, 5]).unwrap(), RELEVANCE);
    assert_eq!(expand(&RELEVANCE, &[2, 3], &[7]).unwrap(), RELEVANCE);
    assert_eq!(expanded_shape(&[2, 3], &[2, 5]).unwrap(), [2, 3]);
    assert_eq!(expanded_shape(&[2, 3], &[2, 3, 4]).unwrap(), [2, 3, 4]);
}

#[test]
fn empty_axes_give_nothing() {
    assert_eq!(expand(&RELEVANCE, &[2, 3], &[2, 3, 0]).unwrap(), [0.0; 0]);
    assert_eq!(expand(&[], &[0, 3], &[0, 3, 2]).unwrap(), [0.0; 0]);
}

#[test]
fn values_that_do_not_fit_are_refused() {
    assert!(matches!(
        expand(&RELEVANCE, &[2, 3], &[2, 4, 2]),
        Err(Error::Shape { what: "value", got, .. }) if got == [2, 4, 2]
    ));
    assert!(matches!(
        expand(&RELEVANCE[..5], &[2, 3], &[2, 3, 2]),
        Err(Error::Len {
            what: "relevance",
            expected: 6,
            got: 5
        })
    ));
    assert!(matches!(
        expand(&RELEVANCE, &[2, 3], &[2, 3, usize::MAX]),
        Err(Error::SizeOverflow { .. })
    ));
}

#[test]
fn grids_drop_special_tokens() {
    let relevance: Vec<f32> = (0..14).map(|v| v as f32).collect();
    let picture = grid(&relevance, 7, 1, (2, 3)).unwrap();
    assert_eq!(
        picture,
        [
            1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0
        ]
    );
}

#[test]
fn grids_that_do_not_fit_are_refused() {
    assert!(matches!(
        grid(&RELEVANCE, 6, 1, (2, 3)),
        Err(Error::Len {
            expected: 7,
            got: 6,
            ..
        })
    ));
    assert!(matches!(
        grid(&RELEVANCE, 4, 0, (2, 2)),
        Err(Error::Len {
            what: "whole rows",
            expected: 8,
            got: 6
        })
    ));
    assert!(matches!(
        grid(&[], 0, 0, (0, 3)),
        Err(Error::ZeroExtent { .. })
    ));
    assert!(matches!(
        grid(&RELEVANCE, 6, 1, (usize::MAX, 2)),
        Err(Error::SizeOverflow { .. })
    ));
    assert!(matches!(
        grid(&RELEVANCE, 6, 1, (usize::MAX, 1)),
        Err(Error::SizeOverflow { .. })
    ));
}

#[test]
fn rows_are_scaled_one_by_one() {
    let rows = [1.0, 2.0, 4.0, -1.0, 0.0, 3.0];
    for (how, want) in [
        (Normalization::Max, [0.25, 0.5, 1.0, -1.0 / 3.0, 0.0, 1.0]),
        (Normalization::MinMax, [0.0, 1.0 / 3.0, 1.0, 0.0, 0.25, 1.0]),
        (
            Normalization::Sum,
            [1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0, -0.5, 0.0, 1.5],
        ),
    ] {
        let mut values = rows;
        normalize(&mut values, 3, how).unwrap();
        assert_eq!(values, want, "{how:?}");
    }
}

#[test]
fn rows_without_a_divisor_become_zero() {
    for (how, row) in [
        (Normalization::Max, [-1.0, 0.0]),
        (Normalization::MinMax, [0.5, 0.5]),
        (Normalization::Sum, [-1.0, 1.0]),
    ] {
        let mut values = row;
        normalize(&mut values, 2, how).unwrap();
        assert_eq!(values, [0.0, 0.0], "{how:?}");
    }
    let mut values = [f32::NAN, 0.0];
    normalize(&mut values, 2, Normalization::Max).unwrap();
    assert!(values[0].is_nan() && values[1] == 0.0);
}

#[test]
fn scaling_needs_whole_rows() {
    let mut values = RELEVANCE;
    assert!(matches!(
        normalize(&mut values, 4, Normalization::Max),
        Err(Error::Len {
            what: "whole rows",
            expected: 8,
            got: 6
        })
    ));
    assert!(matches!(
        normalize(&mut values, 0, Normalization::Max),
        Err(Error::ZeroExtent { .. })
    ));
    assert_eq!(values, RELEVANCE);
}

#[test]
fn columns_are_taken_of_every_row() {
    assert_eq!(columns(&RELEVANCE, 3, 1..3).unwrap(), [0.2, 0.3, 0.5, 0.6]);
    assert_eq!(columns(&RELEVANCE, 3, 0..3).unwrap(), RELEVANCE);
    assert_eq!(columns(&[], 3, 0..1).unwrap(), [0.0; 0]);
    for wrong in [1..1, 2..4] {
        assert!(matches!(
            columns(&RELEVANCE, 3, wrong.clone()),
            Err(Error::Columns { start, end, tokens: 3 }) if (start..end) == wrong
        ));
    }
    assert!(matches!(
        columns(&RELEVANCE, 4, 0..1),
        Err(Error::Len {
            expected: 8,
            got: 6,
            ..
        })
    ));
}

#[test]
fn excluded_tokens_leave_their_relevance_to_the_others() {
    let mut values = [1.0, 2.0, 3.0, 5.0, 4.0, 0.0, 0.0, 7.0];
    exclude_from_relevance(&mut values, 4, &[3, 0]).unwrap();
    assert_eq!(values, [0.0, 0.4, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let before = values;
    assert!(matches!(
        exclude_from_relevance(&mut values, 4, &[0, 4]),
        Err(Error::Token {
            token: 4,
            tokens: 4,
            ..
        })
    ));
    assert_eq!(values, before);
}

#[test]
fn pictures_are_enlarged_bilinearly() {
    // torch.nn.functional.interpolate(torch.tensor([[[[0., 1.], [2., 4.]]]]), (4, 4), mode="bilinear")
    let enlarged = upsample(&[0.0, 1.0, 2.0, 4.0], (2, 2), (4, 4)).unwrap();
    assert_eq!(
        enlarged,
        [
            0.0, 0.25, 0.75, 1.0, 0.5, 0.8125, 1.4375, 1.75, 1.5, 1.9375, 2.8125, 3.25, 2.0, 2.5,
            3.5, 4.0
        ]
    );
    // A size kept keeps the values to the bit, also beside NaN, and pictures do not mix.
    let two = [1.0, 2.0, f32::NAN, 4.0, 5.0, 6.0];
    let same = upsample(&two, (1, 3), (1, 3)).unwrap();
    for (got, want) in same.iter().zip(two) {
        assert_eq!(got.to_bits(), want.to_bits());
    }
    let wide = upsample(&[1.0, 3.0, 5.0, 7.0], (1, 2), (2, 3)).unwrap();
    assert_eq!(
        wide,
        [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 5.0, 6.0, 7.0]
    );
}

#[test]
fn pictures_that_do_not_fit_are_refused() {
    for (size, to) in [((0, 2), (2, 2)), ((2, 2), (2, 0))] {
        assert!(matches!(
            upsample(&RELEVANCE, size, to),
            Err(Error::ZeroExtent { .. })
        ));
    }
    assert!(matches!(
        upsample(&RELEVANCE, (2, 2), (4, 4)),
        Err(Error::Len {
            expected: 8,
            got: 6,
            ..
        })
    ));
    assert!(matches!(
        upsample(&RELEVANCE, (2, 3), (usize::MAX, 2)),
        Err(Error::SizeOverflow { .. })
    ));
}
