//! Measures sealing against what the machine can do, as lines of JSON.
//!
//! `cargo run --release -p occlude-container --example throughput [FOLDER]`
//!
//! Makes two models in a temporary folder (within FOLDER, else the system's): one of
//! 2 GiB with external data, one of 528 MiB inline. Then measures AES-256-GCM on one
//! core, sealing into `/dev/null`, and sealing into a file against `cp`. Sealing runs
//! in a process of its own, whose peak resident memory is reported. Rates are the
//! best of [`ROUNDS`], in bytes of the model a second, with everything in the page
//! cache. Sealing into a file and `cp` take turns at who is first, since how fast pages
//! can be had depends on what was freed before: [`PAIRS`] times, and the median of
//! their ratios counts. Fails at its end where a goal is missed: on a shared machine,
//! measure again.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use occlude_container::{ChunkSize, Metadata, SealOptions, seal_file, unseal_file};
use occlude_keys::{ModelId, OwnerKey};
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    DataLocation, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto,
};
use prost::Message;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::json;

/// The goals, for the model of 2 GiB.
const LEAST_OF_AEAD: f64 = 0.5;
const LEAST_OF_CP: f64 = 0.8;
const LARGEST_PEAK_MIB: u64 = 100;

const ROUNDS: usize = 7;
const PAIRS: usize = 15;
const MIB: u64 = 1 << 20;
const TENSORS: u64 = 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--seal", model, output] => seal_here(Path::new(model), Path::new(output)),
        ["--unseal", container, output] => unseal_here(Path::new(container), Path::new(output)),
        [] => measure(&std::env::temp_dir()),
        [folder] => measure(Path::new(folder)),
        _ => bail!("usage: throughput [FOLDER]"),
    }
}

fn measure(folder: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let cores = std::thread::available_parallelism()?.get();
    report(&json!({"measurement": "machine", "cores": cores}))?;
    let aead = aead_rate(1 << 20)?;
    let at_chunk_size = aead_rate(ChunkSize::DEFAULT.bytes() as usize)?;
    report(&json!({
        "measurement": "aes-256-gcm, one core",
        "buffers_of_1_mib_gb_per_s": gigabytes(aead),
        "buffers_of_one_chunk_gb_per_s": gigabytes(at_chunk_size),
    }))?;
    let mut missed = Vec::new();
    for (name, length, external) in [("external", 2048 * MIB, true), ("inline", 528 * MIB, false)] {
        let model = make_model(folder.path(), name, length, external)?;
        let rates = measure_model(folder.path(), &model, name, length, aead)?;
        if external {
            missed = rates.missed();
        }
    }
    anyhow::ensure!(missed.is_empty(), "goals missed: {}", missed.join(", "));
    Ok(())
}

/// What there are goals for.
struct Rates {
    of_aead: f64,
    of_cp: f64,
    peak_mib: u64,
}

impl Rates {
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.of_aead < LEAST_OF_AEAD {
            let found = self.of_aead;
            missed.push(format!("{found:.2} of the AEAD, not {LEAST_OF_AEAD}"));
        }
        if self.of_cp < LEAST_OF_CP {
            missed.push(format!("{:.2} of cp, not {LEAST_OF_CP}", self.of_cp));
        }
        if self.peak_mib >= LARGEST_PEAK_MIB {
            let found = self.peak_mib;
            missed.push(format!("{found} MiB, not less than {LARGEST_PEAK_MIB}"));
        }
        missed
    }
}

fn measure_model(
    folder: &Path,
    model: &[PathBuf],
    name: &str,
    length: u64,
    aead: f64,
) -> Result<Rates> {
    let output = folder.join("model.occ");
    let copy = folder.join("copy");
    let back = folder.join("back.onnx");
    let (mut null, mut unseal) = (0_f64, 0_f64);
    let mut memory = [0_u64; 3];
    for _ in 0..ROUNDS {
        let run = child("--seal", &model[0], Path::new("/dev/null"))?;
        null = null.max(length as f64 / run.seconds);
        memory[0] = memory[0].max(run.peak_kib);
    }
    // The file that holds the weights is the last one.
    let weights = model.last().context("a model has a file")?;
    let mut pairs = Vec::new();
    for round in 0..PAIRS {
        let mut seal = || -> Result<f64> {
            let run = child("--seal", &model[0], &output)?;
            memory[1] = memory[1].max(run.peak_kib);
            std::fs::remove_file(&output)?;
            Ok(length as f64 / run.seconds)
        };
        let cp = || -> Result<f64> {
            let started = Instant::now();
            let status = Command::new("cp").arg(weights).arg(&copy).status()?;
            let seconds = started.elapsed().as_secs_f64();
            std::fs::remove_file(&copy)?;
            anyhow::ensure!(status.success(), "cp failed");
            Ok(length as f64 / seconds)
        };
        pairs.push(if round % 2 == 0 {
            let sealed = seal()?;
            (sealed, cp()?)
        } else {
            let copied = cp()?;
            (seal()?, copied)
        });
    }
    child("--seal", &model[0], &output)?;
    for _ in 0..ROUNDS {
        let run = child("--unseal", &output, &back)?;
        unseal = unseal.max(length as f64 / run.seconds);
        memory[2] = memory[2].max(run.peak_kib);
        std::fs::remove_file(&back)?;
        let _ = std::fs::remove_file(folder.join("back.onnx.data"));
    }
    std::fs::remove_file(&output)?;
    for path in model {
        std::fs::remove_file(path)?;
    }
    let best = |rates: &mut dyn Iterator<Item = f64>| rates.fold(0_f64, f64::max);
    let file = best(&mut pairs.iter().map(|&(seal, _)| seal));
    let cp = best(&mut pairs.iter().map(|&(_, cp)| cp));
    let mut of_cp: Vec<f64> = pairs.iter().map(|&(seal, cp)| seal / cp).collect();
    of_cp.sort_unstable_by(f64::total_cmp);
    report(&json!({
        "measurement": "seal",
        "model": name,
        "mib": length / MIB,
        "to_null_gb_per_s": gigabytes(null),
        "to_null_of_aead": ratio(null, aead),
        "to_file_gb_per_s": gigabytes(file),
        "cp_gb_per_s": gigabytes(cp),
        "best_to_file_of_best_cp": ratio(file, cp),
        "to_file_of_cp_in_the_median": ratio(of_cp[PAIRS / 2], 1.0),
        "peak_mib_to_null": memory[0] / 1024,
        "peak_mib_to_file": memory[1] / 1024,
        "unseal_gb_per_s": gigabytes(unseal),
        "peak_mib_unseal": memory[2] / 1024,
    }))?;
    Ok(Rates {
        of_aead: null / aead,
        of_cp: of_cp[PAIRS / 2],
        peak_mib: memory[0].max(memory[1]) / 1024,
    })
}

/// What a child process measured of itself.
struct Run {
    seconds: f64,
    peak_kib: u64,
}

fn child(action: &str, from: &Path, to: &Path) -> Result<Run> {
    let output = Command::new(std::env::current_exe()?)
        .arg(action)
        .args([from, to])
        .output()?;
    if !output.status.success() {
        bail!("{action}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(Run {
        seconds: measured["seconds"].as_f64().context("seconds")?,
        peak_kib: measured["peak_kib"].as_u64().context("peak_kib")?,
    })
}

fn seal_here(model: &Path, output: &Path) -> Result<()> {
    let options = SealOptions {
        id: ModelId::random(),
        version: 1,
        chunk_size: ChunkSize::DEFAULT,
        metadata: Metadata::default(),
    };
    let started = Instant::now();
    seal_file(model, output, &owner(), &options, &mut |_| ())?;
    report_run(started)
}

fn unseal_here(container: &Path, output: &Path) -> Result<()> {
    let started = Instant::now();
    unseal_file(container, output, &owner(), &mut |_| ())?;
    report_run(started)
}

fn report_run(started: Instant) -> Result<()> {
    let seconds = started.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak_kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .context("VmHWM")?
        .trim()
        .parse()?;
    report(&json!({"seconds": seconds, "peak_kib": peak_kib}))
}

/// The same key in all child processes; it protects nothing.
fn owner() -> OwnerKey {
    OwnerKey::from_secret(&[1; 64])
}

fn aead_rate(length: usize) -> Result<f64> {
    let key = UnboundKey::new(&AES_256_GCM, &[1; 32])
        .ok()
        .context("key")?;
    let key = LessSafeKey::new(key);
    let mut buffer = vec![0; length];
    let mut best = 0_f64;
    for _ in 0..5 {
        let started = Instant::now();
        let rounds = 512 * MIB as usize / length;
        for round in 0..rounds as u64 {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&round.to_le_bytes());
            let _tag = key
                .seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::empty(),
                    &mut buffer,
                )
                .ok()
                .context("sealing")?;
        }
        best = best.max((rounds * length) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Writes a model of [`TENSORS`] equal tensors; returns its files, the one with the
/// weights last.
fn make_model(folder: &Path, name: &str, length: u64, external: bool) -> Result<Vec<PathBuf>> {
    let model = folder.join(format!("{name}.onnx"));
    let data = folder.join(format!("{name}.data"));
    let each = length / TENSORS;
    let tensor = |index: u64| TensorProto {
        name: format!("weight{index}"),
        data_type: DataType::Float.number(),
        dims: vec![each as i64 / 4],
        ..Default::default()
    };
    let node = |index: u64| NodeProto {
        op_type: "Add".to_owned(),
        input: vec![format!("x{index}"), format!("weight{index}")],
        output: vec![format!("x{}", index + 1)],
        ..Default::default()
    };
    let mut graph = GraphProto {
        node: (0..TENSORS).map(node).collect(),
        ..Default::default()
    };
    if external {
        graph.initializer = (0..TENSORS)
            .map(|index| TensorProto {
                external_data: vec![
                    pair("location", format!("{name}.data")),
                    pair("offset", (index * each).to_string()),
                    pair("length", each.to_string()),
                ],
                data_location: DataLocation::External as i32,
                ..tensor(index)
            })
            .collect();
        let mut file = BufWriter::new(File::create(&data)?);
        write_noise(&mut file, length)?;
        file.flush()?;
    }
    let start = ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto {
            version: 17,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut file = BufWriter::new(File::create(&model)?);
    file.write_all(&start.encode_to_vec())?;
    if external {
        let graph = graph.encode_to_vec();
        put_field(&mut file, 7, graph.len() as u64)?;
        file.write_all(&graph)?;
    } else {
        // Written by hand, so that making the model does not take its size in memory.
        let nodes = graph.encode_to_vec();
        let heads: Vec<Vec<u8>> = (0..TENSORS)
            .map(|index| {
                let mut head = tensor(index).encode_to_vec();
                put_field(&mut head, 9, each).map(|()| head)
            })
            .collect::<Result<_>>()?;
        let mut total = nodes.len() as u64;
        for head in &heads {
            let tensor = head.len() as u64 + each;
            let mut prefix = Vec::new();
            put_field(&mut prefix, 5, tensor)?;
            total += prefix.len() as u64 + tensor;
        }
        put_field(&mut file, 7, total)?;
        file.write_all(&nodes)?;
        for head in &heads {
            put_field(&mut file, 5, head.len() as u64 + each)?;
            file.write_all(head)?;
            write_noise(&mut file, each)?;
        }
    }
    file.flush()?;
    Ok(if external {
        vec![model, data]
    } else {
        vec![model]
    })
}

/// Tag and length of a length-delimited protobuf field.
fn put_field(out: &mut impl Write, number: u64, length: u64) -> Result<()> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number << 3 | 2, &mut bytes);
    prost::encoding::encode_varint(length, &mut bytes);
    Ok(out.write_all(&bytes)?)
}

fn write_noise(out: &mut impl Write, length: u64) -> Result<()> {
    let mut block = vec![0; MIB as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut block);
    let mut left = length;
    while left > 0 {
        let now = left.min(block.len() as u64);
        out.write_all(&block[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn pair(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value,
    }
}

fn gigabytes(rate: f64) -> f64 {
    (rate / 1e7).round() / 100.0
}

fn ratio(rate: f64, of: f64) -> f64 {
    (rate / of * 100.0).round() / 100.0
}

fn report(line: &serde_json::Value) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
