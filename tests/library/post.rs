//! Expanding, laying out and scaling relevance.

use attention_rollout::Error;
use attention_rollout::post::{Normalization, expand, expanded_shape, grid, normalize};

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
