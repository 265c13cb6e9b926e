//! Layers that come one by one.

use attention_rollout::Error;
use attention_rollout::cuda::{LayerOrder, Options, StreamingPlan};

use crate::machine::{download, machine, upload};
use crate::problems::{assert_right, cases};

#[test]
fn rows_of_layers_that_are_pushed_from_the_last_are_those_of_all_layers() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let options = Options {
        layer_order: LayerOrder::TopDown,
        ..Options::default()
    };
    let mut of_rows = 0;
    for (what, case) in cases() {
        let generated = case.generate();
        let plan = StreamingPlan::on(&machine.runtime(), &generated.problem, &options);
        if generated.problem.start_rows() == 0 {
            assert!(matches!(plan, Err(Error::Conflict { .. })), "{what}");
            continue;
        }
        of_rows += 1;
        let mut plan = plan.unwrap();
        let stream = machine.context.default_stream();
        let len = generated.problem.output_len();
        let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
        for _ in 0..2 {
            let mut pass = plan.begin(&stream, &mut out).unwrap();
            for maps in generated.layers().iter().rev() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, &generated, &download(&stream, &out));
        }
    }
    assert!(of_rows > 2, "{of_rows}");
}

#[test]
fn pushed_layers_give_what_all_layers_give() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan =
            StreamingPlan::on(&machine.runtime(), &generated.problem, &Options::default()).unwrap();
        let stream = machine.context.default_stream();
        let len = generated.problem.output_len();
        let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
        let layers = generated.layers();
        // Twice: a pass leaves nothing behind.
        for _ in 0..2 {
            let mut pass = plan.begin(&stream, &mut out).unwrap();
            for maps in &layers {
                // The maps are gone as soon as the layer has been pushed.
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            let extra = upload(&stream, &layers[0]);
            assert!(matches!(
                pass.push_layer(extra.layer()),
                Err(Error::StreamedLayers {
                    expected: 3,
                    got: 4
                })
            ));
            pass.finish().unwrap();
            assert_right(what, &generated, &download(&stream, &out));
        }
        let pass = plan.begin(&stream, &mut out).unwrap();
        assert!(matches!(
            pass.finish(),
            Err(Error::StreamedLayers {
                expected: 3,
                got: 0
            })
        ));
    }
}
