//! Everything that can be wrong with a problem, its inputs or a run is told with its numbers.

use attention_rollout::Shape;

const SHAPE: Shape = Shape {
    layers: 2,
    batch: 2,
    heads: 3,
    tokens: 4,
};

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
    };
}

mod problem;
mod queries_keys;
mod run;
