//! The host's side of the spill store: it alters what is streamed, at rest and while
//! requests run. An answer is then right, or there is none.

#![allow(clippy::print_stdout, reason = "says that a part was skipped")]

mod support;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use occlude_engine::{CipherKind, LoadError, LoadOptions, Model, ProtectedMemory, RunError, Spill};
use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::ModelProto;

const SIDE: usize = 512;

/// Runs until nothing is used any more that was read ahead before.
const READ_AHEAD: usize = 3;

/// This program's folder: on a disk where programs are built on one.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// The store's memory or file, as whoever controls this process's descriptors reaches it.
fn host(spill: &Spill) -> File {
    let is_store = |target: &str| match spill {
        Spill::Direct { folder, .. } => {
            target.starts_with(&*folder.to_string_lossy()) && target.ends_with("(deleted)")
        }
        _ => target.contains("occlude-spill"),
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let store = descriptors
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            is_store(
                &std::fs::read_link(path)
                    .unwrap_or_default()
                    .to_string_lossy(),
            )
        })
        .expect("a store of streamed weights");
    File::options().read(true).write(true).open(store).unwrap()
}

fn matrix_model() -> ModelProto {
    let side = SIDE as i64;
    let weight = |name: &str| support::floats(name, &[side, side], &support::pattern(SIDE * SIDE));
    support::model(support::graph(
        vec![
            support::node("MatMul", &["x", "w"], &["h"]),
            support::node("Relu", &["h"], &["r"]),
            support::node("MatMul", &["r", "v"], &["y"]),
        ],
        vec![support::value("x", DataType::Float, &[1, side])],
        vec![support::value("y", DataType::Float, &[1, side])],
        vec![weight("w"), weight("v")],
    ))
}

fn input() -> Vec<Tensor> {
    let values: Vec<f32> = (0..SIDE).map(|index| (index % 7) as f32 - 3.0).collect();
    vec![Tensor::from_values("x", vec![1, SIDE as u64], &values).unwrap()]
}

fn answer(model: &Model) -> Result<Vec<f32>, RunError> {
    let answers = model.run(input(), &[])?;
    Ok(answers[0].to_values().unwrap())
}

fn load(options: &LoadOptions) -> Option<Model> {
    let container = support::opened(&matrix_model());
    match Model::load(support::runtime(), &container, options) {
        Err(error @ LoadError::Resources { .. }) if error.to_string().contains("on a disk") => {
            println!("skipped: {error}");
            None
        }
        model => Some(model.unwrap()),
    }
}

fn streamed_from(spill: &Spill) -> LoadOptions {
    LoadOptions {
        spill: spill.clone(),
        ..support::everything_streamed()
    }
}

// One test, since all parts look for the one store of this process.
#[test]
fn altered_weights_end_a_request_and_never_give_a_wrong_answer() {
    let resident = load(&support::two_threads()).unwrap();
    let expected = answer(&resident).unwrap();
    for spill in [Spill::SharedMemory, Spill::direct(folder())] {
        let Some(model) = load(&streamed_from(&spill)) else {
            continue;
        };
        assert_eq!(answer(&model).unwrap(), expected);
        let host = host(&spill);
        altered_at_rest(&model, &host, &expected);
        altered_while_requests_run(&model, &host, &expected);
        if spill != Spill::SharedMemory {
            truncated(&model, &host, &expected);
        }
    }
    every_cipher(&expected);
    several_sessions(&expected);
    a_budget_counts_what_is_read_ahead();
}

/// One bit in each of several places, and back.
fn altered_at_rest(model: &Model, host: &File, expected: &[f32]) {
    let length = host.metadata().unwrap().len();
    for place in (0..2 * (SIDE * SIDE * 4) as u64).step_by(65_537) {
        let mut byte = [0];
        host.read_exact_at(&mut byte, place).unwrap();
        host.write_all_at(&[byte[0] ^ 1], place).unwrap();
        let outcomes = [0; READ_AHEAD].map(|_| answer(model));
        assert!(
            outcomes[READ_AHEAD - 1].is_err(),
            "place {place} of {length}"
        );
        for outcome in outcomes {
            let error = match outcome {
                Ok(values) => {
                    assert_eq!(values, expected);
                    continue;
                }
                Err(error) => error,
            };
            assert!(
                matches!(error, RunError::Spilled(_)),
                "{error} after place {place} of {length} was altered"
            );
            let said = error.to_string();
            assert!(
                said.contains("panel ") && said.contains(" of layer "),
                "{said}"
            );
            assert!(said.ends_with(" is not authentic"), "{said}");
        }
        host.write_all_at(&byte, place).unwrap();
        settles(model, expected);
    }
}

/// The model answers again, once what was read ahead is used up.
fn settles(model: &Model, expected: &[f32]) {
    for _ in 1..READ_AHEAD {
        let _ = answer(model);
    }
    assert_eq!(answer(model).unwrap(), expected);
}

fn altered_while_requests_run(model: &Model, host: &File, expected: &[f32]) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 1_u64;
            while !over.load(Ordering::Relaxed) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let place = (state >> 33) % (SIDE * SIDE * 4) as u64;
                let mut byte = [0];
                host.read_exact_at(&mut byte, place).unwrap();
                host.write_all_at(&[byte[0] ^ 0x40], place).unwrap();
                host.write_all_at(&byte, place).unwrap();
            }
        });
        let answers: Vec<_> = (0..500).map(|_| answer(model)).collect();
        // Before anything here fails: the scope waits for the writer.
        over.store(true, Ordering::Relaxed);
        let (mut right, mut refused) = (0, 0);
        for answer in answers {
            match answer {
                Ok(values) => {
                    assert_eq!(values, expected);
                    right += 1;
                }
                Err(RunError::Spilled(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(
            right + refused == 500 && refused > 0,
            "{right} right, {refused} refused"
        );
    });
    settles(model, expected);
}

/// The file ends within the second layer, and is whole again.
fn truncated(model: &Model, host: &File, expected: &[f32]) {
    let length = host.metadata().unwrap().len();
    let cut = length * 3 / 4;
    let mut tail = vec![0; (length - cut) as usize];
    host.read_exact_at(&mut tail, cut).unwrap();
    host.set_len(cut).unwrap();
    let outcomes = [0; READ_AHEAD].map(|_| answer(model));
    let said = outcomes[READ_AHEAD - 1].as_ref().unwrap_err().to_string();
    assert!(
        said.starts_with("the store of streamed weights fails: panel "),
        "{said}"
    );
    assert!(
        said.ends_with(" of layer 1 cannot be read: unexpected end of file"),
        "{said}"
    );
    host.write_all_at(&tail, cut).unwrap();
    settles(model, expected);
}

fn every_cipher(expected: &[f32]) {
    for cipher in CipherKind::ALL {
        if !cipher.is_available() {
            println!("skipped: {cipher} needs AES instructions");
            continue;
        }
        let spill = Spill::SharedMemory;
        let options = LoadOptions {
            cipher: Some(cipher),
            ..streamed_from(&spill)
        };
        let model = load(&options).unwrap();
        assert_eq!(model.spill_cipher(), Some(cipher));
        assert_eq!(answer(&model).unwrap(), expected);
        altered_at_rest(&model, &host(&spill), expected);
    }
}

fn several_sessions(expected: &[f32]) {
    let options = LoadOptions {
        sessions: const { NonZeroUsize::new(3).unwrap() },
        ..streamed_from(&Spill::direct(folder()))
    };
    let Some(model) = load(&options) else { return };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(answer(&model).unwrap(), expected);
                }
            });
        }
    });
}

fn a_budget_counts_what_is_read_ahead() {
    let working = |spill: &Spill| {
        let options = LoadOptions {
            memory: ProtectedMemory::Bytes(1),
            ..streamed_from(spill)
        };
        let container = support::opened(&matrix_model());
        match Model::load(support::runtime(), &container, &options) {
            Err(LoadError::Budget { working, .. }) => working,
            Err(LoadError::Resources { .. }) => u64::MAX,
            other => panic!("{:?}", other.err()),
        }
    };
    let mapped = working(&Spill::SharedMemory);
    let usual = working(&Spill::direct(folder()));
    assert!(mapped + (16 << 20) <= usual);
    let more = working(&Spill::Direct {
        folder: folder(),
        read_ahead: 48 << 20,
    });
    // Or there is no such store in this folder.
    assert!(more == usual + (32 << 20) || usual == u64::MAX);
}

#[test]
fn a_folder_that_will_not_do_is_named_with_what_would() {
    let options = |folder: &str| streamed_from(&Spill::direct(folder));
    let said = |folder: &str| {
        let container = support::opened(&matrix_model());
        let loaded = Model::load(support::runtime(), &container, &options(folder));
        match loaded {
            Ok(_) => panic!("a store in {folder}"),
            Err(error) => error.to_string(),
        }
    };
    let missing = said("/nonexistent/folder");
    assert!(
        missing.starts_with("no spill store: /nonexistent/folder: no unnamed file can be made: "),
        "{missing}"
    );
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    if !mounts.contains(" /dev/shm tmpfs ") || !Path::new("/dev/shm").is_dir() {
        println!("skipped: no tmpfs at /dev/shm");
        return;
    }
    let memory = said("/dev/shm");
    assert!(
        memory.starts_with("no spill store: /dev/shm: its file system "),
        "{memory}"
    );
    assert!(
        memory.ends_with("; name a folder on a disk, with a file system such as ext4 or XFS"),
        "{memory}"
    );
}
