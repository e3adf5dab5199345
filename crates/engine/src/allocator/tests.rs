//! The allocator under ONNX Runtime.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use occlude_inference_protocol::Tensor;
use occlude_onnx::DataType;
use occlude_onnx::messages::{ModelProto, TensorProto};
use prost::Message;
use zeroize::Zeroizing;

use super::heap::ALIGNMENT;
use super::*;
use crate::support::{
    floats, graph, integers_attribute, load, model, node, one_thread, opened, pattern, plain_run,
    runtime, value, with,
};
use crate::{LoadOptions, Model, RunError};

/// Widths of the intermediate results of [`chain`]: every second one is large.
const WIDTHS: [usize; 4] = [100, 50_000, 30_000, 20_000];

/// Three matrices, one after the other, `[rows, WIDTHS[0]]` to `[rows, WIDTHS[3]]`, whose
/// weights are vectors: only intermediate results are large.
fn chain() -> ModelProto {
    model(graph(
        vec![
            node("MatMul", &["x", "narrow0"], &["n0"]),
            node("Mul", &["n0", "wide0"], &["w0"]),
            with(
                node("ReduceMax", &["w0"], &["n1"]),
                integers_attribute("axes", &[1]),
            ),
            node("Mul", &["n1", "wide1"], &["w1"]),
            with(
                node("ReduceMax", &["w1"], &["n2"]),
                integers_attribute("axes", &[1]),
            ),
            node("Mul", &["n2", "wide2"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[-1, WIDTHS[0] as i64])],
        vec![value("y", DataType::Float, &[-1, WIDTHS[3] as i64])],
        vec![
            floats("narrow0", &[WIDTHS[0] as i64, 1], &pattern(WIDTHS[0])),
            floats("wide0", &[1, WIDTHS[1] as i64], &pattern(WIDTHS[1])),
            floats("wide1", &[1, WIDTHS[2] as i64], &pattern(WIDTHS[2])),
            floats("wide2", &[1, WIDTHS[3] as i64], &pattern(WIDTHS[3])),
        ],
    ))
}

fn rows(count: usize) -> Vec<f32> {
    pattern(count * WIDTHS[0])
}

fn request(count: usize) -> Vec<Tensor> {
    let shape = vec![count as u64, WIDTHS[0] as u64];
    vec![Tensor::from_values("x", shape, &rows(count)).unwrap()]
}

/// Runs `count` rows and compares the answer with plain ONNX Runtime's.
fn run(model: &Model, count: usize) {
    assert_right(
        &model.run(request(count), &[]).unwrap()[0],
        &expected(count),
    );
}

fn assert_right(answer: &Tensor, expected: &[f32]) {
    let answer = answer.to_values::<f32>().unwrap();
    assert_eq!(answer.len(), expected.len());
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4;
    assert!(answer.iter().zip(expected).all(close), "a wrong answer");
}

fn expected(count: usize) -> Vec<f32> {
    let dims = [count as i64, WIDTHS[0] as i64];
    plain_run(&chain(), &[("x", &dims, &rows(count))]).remove(0)
}

fn sessions(count: usize) -> LoadOptions {
    LoadOptions {
        sessions: NonZeroUsize::new(count).unwrap(),
        ..one_thread()
    }
}

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_peak_of_a_run_is_that_of_its_intermediate_results() {
    let model = load(&chain()).unwrap();
    let memory = &model.memories()[0];
    let before = memory.in_use();
    memory.reset_peak();
    assert_eq!(memory.peak(), before);

    let count = 7;
    run(&model, count);
    let bytes = |widths: &[usize]| widths.iter().sum::<usize>() * count * 4;
    // A wide one is in memory with a narrow one, which comes from it or led to it.
    let widest = bytes(&[WIDTHS[1], 1]);
    let first = memory.peak() - before;
    assert!(
        (widest..=widest + 2 * ALIGNMENT).contains(&first),
        "{first} for {widest}"
    );
    assert_eq!(memory.in_use(), before);

    // From the second run of a shape on, ONNX Runtime asks for one block for all of a
    // run, in which they follow each other as they did, and for the output.
    memory.reset_peak();
    run(&model, count);
    let planned = bytes(&[WIDTHS[1], 1, WIDTHS[3]]);
    let second = memory.peak() - before;
    assert!(
        (planned..=planned + 8 * ALIGNMENT).contains(&second),
        "{second} for {planned}"
    );
    assert!(memory.held().peak < memory.peak() + (256 << 10));
}

#[test]
fn runs_of_known_shapes_take_nothing_from_the_kernel() {
    let model = load(&chain()).unwrap();
    let memory = &model.memories()[0];
    for count in [5, 5, 3, 3, 1, 1, 5] {
        run(&model, count);
    }
    let (calls, held) = (memory.kernel_calls(), memory.held().now);
    for count in [5, 1, 3, 3, 5, 1, 1, 5, 3] {
        run(&model, count);
    }
    assert_eq!((memory.kernel_calls(), memory.held().now), (calls, held));
}

#[test]
fn a_request_beyond_the_limit_is_refused_and_smaller_ones_go_on() {
    let model = load(&chain()).unwrap();
    let memory = &model.memories()[0];
    for _ in 0..2 {
        run(&model, 4);
    }
    let limit = memory.held().peak;
    memory.set_limit(limit);
    for _ in 0..3 {
        assert_eq!(
            model.run(request(8), &[]),
            Err(RunError::MemoryBudget { limit })
        );
        run(&model, 4);
        run(&model, 2);
    }
    assert!(memory.held().peak <= limit);
    memory.set_limit(usize::MAX);
    run(&model, 8);
}

#[test]
fn whichever_request_for_memory_is_refused_the_run_fails_and_the_next_one_is_right() {
    let mut refused = 0;
    for case in node_vectors() {
        let path = case.join("model.onnx");
        let model = ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap();
        let loaded = load(&model).unwrap();
        let memory = &loaded.memories()[0];
        let expected = loaded.run(inputs(&case), &[]).unwrap();
        for grants in 0.. {
            memory.lock().heap.grants = grants;
            let outcome = loaded.run(inputs(&case), &[]);
            memory.lock().heap.grants = usize::MAX;
            match outcome {
                Ok(_) => break,
                Err(error) => {
                    let limit = usize::MAX;
                    assert_eq!(error, RunError::MemoryBudget { limit }, "{case:?}");
                    refused += 1;
                }
            }
            assert_eq!(loaded.run(inputs(&case), &[]).unwrap(), expected);
        }
    }
    assert!(refused >= 19, "{refused} requests refused");
}

#[test]
fn whichever_request_for_memory_is_refused_while_loading_the_model_is_refused() {
    let container = opened(&constants());
    let environment = runtime().environment();
    let create = |memory: &Arc<Allocator>| {
        let builder = ort::session::Session::builder(environment)
            .and_then(|builder| Ok(builder.with_env_allocators()?));
        memory.lend_to_session(environment, || {
            builder?.commit_from_memory(&constants().encode_to_vec())
        })
    };
    let memory = Allocator::new().unwrap();
    let session = create(&memory).unwrap().unwrap();
    assert!(memory.in_use() > 0);
    drop(session);
    assert_eq!(memory.in_use(), 0);
    drop(container);

    for grants in 0.. {
        memory.lock().heap.grants = grants;
        let outcome = create(&memory).unwrap();
        memory.lock().heap.grants = usize::MAX;
        if outcome.is_ok() {
            assert!(grants > 0);
            break;
        }
        assert_eq!(memory.in_use(), 0);
    }
}

/// `y = x + a + b`, with constants that the session keeps.
fn constants() -> ModelProto {
    model(graph(
        vec![
            node("Add", &["x", "a"], &["s"]),
            node("Mul", &["s", "b"], &["y"]),
        ],
        vec![value("x", DataType::Float, &[1, 8])],
        vec![value("y", DataType::Float, &[1, 8])],
        vec![
            floats("a", &[1, 8], &pattern(8)),
            floats("b", &[1, 8], &pattern(8)),
        ],
    ))
}

#[test]
fn after_an_answer_everything_that_is_free_is_zero() {
    let model = load(&chain()).unwrap();
    let memory = &model.memories()[0];
    for count in [3, 3, 1] {
        run(&model, count);
        until(|| memory.dirty_bytes() == 0);
        assert!(memory.free_bytes().iter().all(|&byte| byte == 0));
    }
    // A run that fails leaves intermediate results as well.
    memory.lock().heap.grants = 1;
    assert!(model.run(request(3), &[]).is_err());
    memory.lock().heap.grants = usize::MAX;
    until(|| memory.dirty_bytes() == 0);
    assert!(memory.free_bytes().iter().all(|&byte| byte == 0));
}

#[test]
fn a_session_is_not_lent_again_before_its_memory_is_wiped() {
    let model = load(&chain()).unwrap();
    let memory = &model.memories()[0];
    for _ in 0..50 {
        model.run(request(2), &[]).unwrap();
        // Whoever has the session next finds nothing.
        model.with_session(|| {
            assert_eq!(memory.dirty_bytes(), 0);
            assert!(memory.free_bytes().iter().all(|&byte| byte == 0));
        });
    }
}

#[test]
fn sessions_at_work_are_not_disturbed_by_the_wiping_of_others() {
    let model = Model::load(runtime(), &opened(&chain()), &sessions(3)).unwrap();
    let expected = [expected(1), expected(2), expected(3)];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (model, expected) = (&model, &expected);
            scope.spawn(move || {
                for turn in 0..60 {
                    let count = (thread + turn) % 3 + 1;
                    let answers = model.run(request(count), &[]).unwrap();
                    assert_right(&answers[0], &expected[count - 1]);
                }
            });
        }
    });
    let held: Vec<_> = model
        .memories()
        .iter()
        .map(|memory| memory.regions())
        .collect();
    for (index, regions) in held.iter().enumerate() {
        for region in regions {
            let elsewhere = held[..index].iter().flatten();
            for other in elsewhere {
                assert!(region.end <= other.start || other.end <= region.start);
            }
        }
    }
}

#[test]
fn models_loaded_at_once_have_memory_of_their_own() {
    let models: Vec<Model> = std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| load(&chain()).unwrap()))
            .collect();
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    for model in &models {
        model.memories()[0].reset_peak();
    }
    run(&models[1], 5);
    let peaks: Vec<usize> = models
        .iter()
        .map(|model| model.memories()[0].peak())
        .collect();
    assert!(peaks[1] > WIDTHS[1] * 5 * 4, "{peaks:?}");
    assert!(
        peaks[0] < 4096 && peaks[2] < 4096 && peaks[3] < 4096,
        "{peaks:?}"
    );
}

#[test]
fn sessions_that_do_not_ask_for_it_do_not_get_this_memory() {
    let memory = Allocator::new().unwrap();
    let environment = runtime().environment();
    let session = memory.lend_to_session(environment, || {
        let mut builder = ort::session::Session::builder(environment).unwrap();
        builder.commit_from_memory(&constants().encode_to_vec())
    });
    drop(session.unwrap().unwrap());
    assert_eq!(memory.held().peak, 0);
}

#[test]
fn a_dropped_model_leaves_no_memory() {
    let model = load(&chain()).unwrap();
    run(&model, 3);
    let memory = Arc::downgrade(&model.memories()[0]);
    let regions = model.memories()[0].regions();
    assert!(regions.iter().map(ExactSizeIterator::len).sum::<usize>() > WIDTHS[1] * 3 * 4);
    drop(model);
    assert_eq!(memory.strong_count(), 0);
}

#[test]
fn operators_find_the_memory_of_the_session_that_is_being_created() {
    let memory = Allocator::new().unwrap();
    let found = memory
        .lend_to_session(runtime().environment(), Allocator::of_starting_session)
        .unwrap();
    assert!(Arc::ptr_eq(&found.unwrap(), &memory));
    assert!(Allocator::of_starting_session().is_none());
}

#[test]
fn scratch_is_aligned_counted_and_each_thread_s_own() {
    runtime();
    let memory = Allocator::new().unwrap();
    std::thread::scope(|scope| {
        for thread in 0_u16..4 {
            let memory = &memory;
            scope.spawn(move || {
                for length in 1..200 {
                    let mut scratch = memory.scratch(length).unwrap();
                    assert_eq!(scratch.as_ptr().addr() % ALIGNMENT, 0);
                    assert_eq!(scratch.len(), length);
                    scratch.fill(thread.into());
                    std::thread::yield_now();
                    assert!(scratch.iter().all(|&value| value == f32::from(thread)));
                }
            });
        }
    });
    assert_eq!(memory.in_use(), 0);
    assert!((199 * 4..=4 * 832).contains(&memory.peak()));
    memory.wipe_idle();
    assert!(memory.free_bytes().iter().all(|&byte| byte == 0));
}

#[test]
fn wiping_leaves_scratch_in_use_alone() {
    runtime();
    let memory = Allocator::new().unwrap();
    let (first, mut kept, last) = (
        memory.scratch(1000).unwrap(),
        memory.scratch(1000).unwrap(),
        memory.scratch(1000).unwrap(),
    );
    kept.fill(1.5);
    drop((first, last));
    memory.wipe_idle();
    assert!(kept.iter().all(|&value| value == 1.5));
}

#[test]
fn scratch_beyond_the_limit_is_refused() {
    runtime();
    let memory = Allocator::new().unwrap();
    memory.set_limit(1 << 20);
    assert_eq!(memory.scratch(1 << 20).err(), Some(Refusal::Limit(1 << 20)));
    assert_eq!(memory.scratch(usize::MAX).err(), Some(Refusal::Kernel));
    assert_eq!(memory.scratch(1 << 18).unwrap().len(), 1 << 18);
}

#[test]
fn a_thread_of_the_pool_is_given_memory_beyond_the_limit_and_the_run_fails() {
    runtime();
    let memory = Allocator::new().unwrap();
    memory.set_limit(1 << 20);
    let pointer = Arc::as_ptr(&memory)
        .cast_mut()
        .cast::<OrtAllocator>()
        .addr();
    let (block, refusal) = memory.watch(|| {
        let pool = std::thread::spawn(move || {
            // SAFETY: the allocator lives until the thread is joined; a thread that did
            // not call `watch` is not thrown at.
            unsafe { allocate(ptr::with_exposed_provenance_mut(pointer), 2 << 20) }.addr()
        });
        pool.join().unwrap()
    });
    assert_ne!(block, 0);
    assert_eq!(refusal, Some(Refusal::Limit(1 << 20)));
    let block = ptr::with_exposed_provenance_mut(block);
    // SAFETY: the block came from `allocate` just now.
    unsafe { Allocator::free(Arc::as_ptr(&memory), block) };
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn a_block_keeps_its_allocator_alive() {
    runtime();
    let memory = Allocator::new().unwrap();
    let raw = Arc::as_ptr(&memory);
    let weak = Arc::downgrade(&memory);
    let block = memory.allocate(100, Purpose::Values, Limit::Holds).unwrap();
    drop(memory);
    assert_eq!(weak.strong_count(), 1);
    // SAFETY: the block came from this allocator, which it kept alive.
    unsafe { Allocator::free(raw, block.as_ptr()) };
    assert_eq!(weak.strong_count(), 0);
}

fn node_vectors() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_dir()).collect()
}

fn inputs(case: &Path) -> Vec<Tensor> {
    use occlude_inference_protocol::DataType as Protocol;
    let files = (0..).map(|index| case.join(format!("input_{index}.pb")));
    files
        .take_while(|path| path.exists())
        .map(|path| {
            let stored = TensorProto::decode(fs::read(path).unwrap().as_slice()).unwrap();
            let shape: Vec<u64> = stored.dims.iter().map(|&extent| extent as u64).collect();
            let datatype = match stored.data_type {
                1 => Protocol::Fp32,
                6 => Protocol::Int32,
                7 => Protocol::Int64,
                8 => return Tensor::from_bytes(&stored.name, shape, &stored.string_data).unwrap(),
                9 => Protocol::Bool,
                other => panic!("a vector of type {other}"),
            };
            let data = Zeroizing::new(stored.raw_data.clone().unwrap_or_default());
            Tensor::new(&stored.name, datatype, shape, data).unwrap()
        })
        .collect()
}
