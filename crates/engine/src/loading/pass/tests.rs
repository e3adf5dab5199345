//! What a run sees of weights that are still to come.

use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::Duration;

use occlude_container::OpenError;
use occlude_inference_protocol::Tensor;
use occlude_onnx::messages::ModelProto;
use occlude_spill::CipherKind;

use super::*;
use crate::error::RunError;
use crate::layers::NotBrought;
use crate::loading::layers::{Computing, Destination};
use crate::loading::{Prepared, RewriteOptions, survey, zeros_folder};
use crate::model::{LoadOptions, Model};
use crate::spill::Spill;
use crate::support::{
    everything_streamed, floats, graph, model, node, opened, opened_in, pattern, plain_run,
    runtime, value,
};

const WIDTH: usize = 64;

/// What must happen at some time happens within this.
const LONG: Duration = Duration::from_secs(30);

/// `y = x * first * second`
fn two_layers() -> ModelProto {
    let side = WIDTH as i64;
    let values = pattern(2 * WIDTH * WIDTH);
    let (first, second) = values.split_at(WIDTH * WIDTH);
    model(graph(
        vec![
            node("MatMul", &["x", "first"], &["hidden"]),
            node("MatMul", &["hidden", "second"], &["y"]),
        ],
        vec![value("x", occlude_onnx::DataType::Float, &[1, side])],
        vec![value("y", occlude_onnx::DataType::Float, &[1, side])],
        vec![
            floats("first", &[side, side], first),
            floats("second", &[side, side], second),
        ],
    ))
}

fn x() -> Vec<f32> {
    pattern(WIDTH)
}

fn request() -> Vec<Tensor> {
    vec![Tensor::from_values("x", vec![1, WIDTH as u64], &x()).unwrap()]
}

/// Work that nobody does yet, and the model that waits for it.
fn waiting(model: &ModelProto, options: &LoadOptions) -> (Arc<Work>, Model) {
    let container = opened(model);
    let rewrite = RewriteOptions {
        sealed_operators: true,
        block: None,
        smallest_streamed: 0,
    };
    let survey = survey(&container, &rewrite).unwrap();
    let computing = Computing {
        block: 8,
        threads: 1,
        sessions: 1,
    };
    let destination = Destination::Store(CipherKind::fastest(), &Spill::SharedMemory, None);
    let borrowed = vec![false; survey.layers().len()];
    let work = Work::new(
        &container,
        survey.layers(),
        &borrowed,
        computing,
        destination,
    );
    let work = Arc::new(work.unwrap());
    let prepared = Prepared {
        survey,
        layers: Arc::clone(work.layers()),
        loading: Arc::new(Loading::start(&work, 0).unwrap()),
        runtime: runtime(),
        container: &container,
        options,
        zeros: zeros_folder(&container).unwrap(),
    };
    let model = Model::over(prepared.start(borrowed).unwrap()).unwrap();
    (work, model)
}

/// Brings slabs until `layer` is there.
fn bring(work: &Work, layer: usize) {
    let mut buffers = Buffers::default();
    while !work.layers().layers[layer].is_brought() {
        work.step(&mut buffers).expect("more to bring").unwrap();
    }
}

#[test]
fn a_run_goes_as_far_as_weights_have_come() {
    let options = everything_streamed();
    let (work, model) = waiting(&two_layers(), &options);
    let (seen, reads) = mpsc::channel();
    model.observe_reads(move |_, length| seen.send(length).unwrap_or_default());
    let first = work.layers().layers[0].kernel.panel_bytes(0);

    let answer = std::thread::scope(|scope| {
        let run = scope.spawn(|| model.run(request(), &[]));
        // Nothing has come, so nothing is read.
        assert!(reads.recv_timeout(Duration::from_millis(50)).is_err());
        bring(&work, 0);
        assert_eq!(reads.recv_timeout(LONG), Ok(first));
        assert!(!work.layers().layers[1].is_brought());
        assert!(!run.is_finished());
        bring(&work, 1);
        run.join().unwrap().unwrap()
    });

    let plain = plain_run(&two_layers(), &[("x", &[1, WIDTH as i64], &x())]);
    let values: Vec<f32> = answer[0].to_values().unwrap();
    for (ours, theirs) in values.iter().zip(&plain[0]) {
        assert!((ours - theirs).abs() <= 1e-4, "{ours} {theirs}");
    }
}

#[test]
fn whoever_waits_for_a_layer_is_told_that_it_will_not_come() {
    let options = everything_streamed();
    let (work, _model) = waiting(&two_layers(), &options);
    let layers = work.layers();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| layers.panels(1, 0).map(|_| ()));
        layers.give_up();
        assert_eq!(waiter.join().unwrap(), Err(NotBrought));
    });
}

#[test]
fn a_weight_that_is_altered_ends_every_run_and_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let container = opened_in(folder.path(), &two_layers());
    let sealed = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("model.occ"))
        .unwrap();
    // The last tensor's end is the last byte that is not padding or tag.
    let header = container.header();
    let chunks = header.chunk_count();
    let last = u64::from(header.chunk_size().bytes()) + 16;
    let at = sealed.metadata().unwrap().len() - last + 1;
    let mut byte = [0];
    sealed.read_exact_at(&mut byte, at).unwrap();
    sealed.write_all_at(&[byte[0] ^ 1], at).unwrap();

    let model = Model::start(runtime(), &container, &everything_streamed()).unwrap();
    let reason = format!(
        "a weight cannot be opened: chunk {} is not authentic",
        chunks - 1
    );
    for _ in 0..2 {
        let reason = reason.clone();
        assert_eq!(
            model.run(request(), &[]).unwrap_err(),
            RunError::NotLoaded { reason },
        );
    }
    let cause = model.wait_until_loaded().unwrap_err();
    assert!(
        matches!(cause, LoadError::Open(OpenError::Inauthentic { chunk }) if chunk == chunks - 1),
        "{cause:?}"
    );
    let again = model.wait_until_loaded().unwrap_err();
    assert_eq!(
        again.to_string(),
        format!("the model was not loaded: {reason}")
    );
}

#[test]
fn a_model_that_is_dropped_stops_loading() {
    let container = opened(&two_layers());
    let model = Model::start(runtime(), &container, &everything_streamed()).unwrap();
    drop(model);
    // The threads are gone, and with them what they held of the container.
    assert_eq!(Arc::strong_count(&container), 1);
}
