//! One problem for each pipeline, and the check of its result.

use attention_rollout::{
    DType, Discard, DiscardScope, Output, Shape, StartRows, Window, reference,
};

use crate::compare::{Budget, assert_close};
use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, upload};

/// Problems that take each pipeline, small enough to be quick.
pub fn cases() -> Vec<(&'static str, Case)> {
    let shape = |batch, tokens| Shape {
        layers: 3,
        batch,
        heads: 2,
        tokens,
    };
    let output = |shape, output| {
        let mut case = Case::new(shape, 11);
        case.config.output = output;
        case
    };
    let mut windowed = output(shape(3, 21), Output::Cumulative);
    windowed.windows = vec![
        Window { start: 0, len: 21 },
        Window { start: 4, len: 9 },
        Window { start: 0, len: 0 },
    ];
    let mut discard = output(shape(2, 17), Output::Rows(StartRows::Mean));
    discard.dtype = DType::F16;
    discard.config.discard = Some(Discard {
        ratio: 0.4,
        scope: DiscardScope::Map,
    });
    vec![
        ("rows", Case::new(shape(2, 33), 5)),
        ("matrix", output(shape(2, 30), Output::Matrix)),
        ("long matrix", output(shape(1, 131), Output::Matrix)),
        ("cumulative windows", windowed),
        ("discard", discard),
        (
            "nine rows",
            output(
                shape(2, 19),
                Output::Rows(StartRows::Rows((0..9).collect())),
            ),
        ),
    ]
}

/// Compares a result with the reference, within the error budget of f32.
pub fn assert_right(what: &str, generated: &Generated, got: &[f32]) {
    let layers = generated.layers();
    let budget = Budget::new(&generated.problem, &layers);
    assert_close(
        what,
        &generated.problem.output_shape(),
        got,
        &reference::rollout(&generated.problem, &layers).unwrap(),
        |index| budget.tolerance(index),
    );
}

/// The layers of a case in device memory.
pub fn buffers(machine: &Machine, generated: &Generated) -> Vec<Buffer> {
    let stream = machine.context.default_stream();
    let layers = generated.layers();
    layers.iter().map(|maps| upload(&stream, maps)).collect()
}

/// To compare exactly, NaN included.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
