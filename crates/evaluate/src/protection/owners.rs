//! Whoever made a model is hostile: files that reach for other files, and graphs that
//! exhaust whoever reads them.

use std::path::Path;

use occlude_onnx::messages::{
    DataLocation, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto,
};
use occlude_weakening::Weakening;
use prost::Message;

use super::site::{MODEL, Site, judge, run};
use super::{Attacker, Check, Seen, model};
use crate::processes::{DeploymentError, Said, Service, failed, free_address};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "paths-out-of-a-model",
        attacker: Attacker::ModelMaker,
        tried: "have other files of the sealing machine sealed into a model: above its folder, by an \
                absolute path, behind a link",
        weakening: Weakening::AnyPath,
        carry_out: paths_out_of_a_model,
    },
    Check {
        name: "hostile-graphs",
        attacker: Attacker::ModelMaker,
        tried: "seal, and serve if that succeeds, in 8 GiB of address space and a minute: graphs nested \
                without end, tensors of impossible or lying lengths, unknown operators, cycles, \
                tiny files that make huge tensors",
        weakening: Weakening::AnyNesting,
        carry_out: hostile_graphs,
    },
];

/// KiB of address space.
const ADDRESS_SPACE: u32 = 8 << 20;
const SECONDS: u32 = 60;

fn paths_out_of_a_model(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "writing a hostile model";
    let folder = site.owner.at("hostile");
    std::fs::create_dir(&folder).map_err(failed(DOING))?;
    let secret = site.owner.at("secret.bin");
    std::fs::write(&secret, [7; 4096]).map_err(failed(DOING))?;
    std::os::unix::fs::symlink(&secret, folder.join("link.bin")).map_err(failed(DOING))?;
    let absolute = secret.display().to_string();
    let mut attempts = Vec::new();
    for location in ["../secret.bin", absolute.as_str(), "link.bin"] {
        let bytes = with_tensor(external(location, 4096)).encode_to_vec();
        let said = seal(site, &folder, &bytes)?;
        attempts.push(match said.code {
            0 => Err(format!("{location} was sealed")),
            _ => clear(&said),
        });
    }
    Ok(match judge(attempts) {
        Seen::Held(_) => Seen::Held("all three refused".to_owned()),
        broke @ Seen::Broke(_) => broke,
    })
}

fn hostile_graphs(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "writing a hostile model";
    let folder = site.owner.at("hostile");
    std::fs::create_dir(&folder).map_err(failed(DOING))?;
    std::fs::write(folder.join("small.bin"), [7; 4096]).map_err(failed(DOING))?;
    let mut attempts = Vec::new();
    let graphs = graphs();
    let count = graphs.len();
    for (what, bytes) in graphs {
        let said = seal(site, &folder, &bytes)?;
        let came = match said.code {
            0 => served(site)?,
            _ => clear(&said),
        };
        attempts.push(came.map_err(|broke| format!("{what}: {broke}")));
    }
    Ok(match judge(attempts) {
        Seen::Held(_) => Seen::Held(format!("each of {count} refused in words")),
        broke @ Seen::Broke(_) => broke,
    })
}

/// A refusal in words, by a process that went on in good order.
fn clear(said: &Said) -> Result<String, String> {
    match said.code {
        0 => Err("it was taken".to_owned()),
        124 => Err(format!("it took more than {SECONDS} s")),
        1..=3 if said.err.contains("occlude: ") => Ok(String::new()),
        other => Err(format!("exit code {other}: {}", said.reason())),
    }
}

/// Seals a model within bounds, as `hostile.occ`.
fn seal(site: &Site, folder: &Path, bytes: &[u8]) -> Result<Said, DeploymentError> {
    const DOING: &str = "sealing a hostile model";
    std::fs::write(folder.join("hostile.onnx"), bytes).map_err(failed(DOING))?;
    let _ = std::fs::remove_file(site.owner.at("hostile.occ"));
    let script = format!(
        "ulimit -v {ADDRESS_SPACE}; exec timeout {SECONDS} '{}' seal hostile/hostile.onnx -o hostile.occ \
         --key owner.key --id {MODEL}",
        site.binary()?.display()
    );
    run(DOING, &mut site.shell(&script))
}

/// Serves it within the same bounds, and asks it.
fn served(site: &Site) -> Result<Result<String, String>, DeploymentError> {
    const DOING: &str = "serving a hostile model";
    let sealed = site.owner.text("hostile.occ");
    site.owner.must_order(&["add-model", &sealed])?;
    let (address, broker) = (free_address()?, site.owner.broker.url());
    // Processor time: a program that watches the clock would be ended in the server's place.
    let script = format!(
        "ulimit -v {ADDRESS_SPACE}; ulimit -t {SECONDS}; exec '{}' serve --model hostile.occ --broker {broker} \
         --tee {} --listen {address}",
        site.binary()?.display(),
        site.owner.grounds.tee
    );
    let server = site.owner.spawn(site.shell(&script), address)?;
    let server = match server.until(DOING, Service::answers)? {
        Err(said) => return Ok(clear(&said)),
        Ok(server) => server,
    };
    let asked = site.infer(&server.url(), &model::secret_input(40))?;
    Ok(if server.answers() {
        clear(&asked)
    } else {
        Err("a question ends the server".to_owned())
    })
}

fn graphs() -> Vec<(&'static str, Vec<u8>)> {
    let tensor = |dims: &[i64], bytes: usize| TensorProto {
        name: "weight".to_owned(),
        dims: dims.to_vec(),
        data_type: 1,
        raw_data: Some(vec![7; bytes]),
        ..TensorProto::default()
    };
    let node = |operator: &str, input: &str, output: &str| NodeProto {
        op_type: operator.to_owned(),
        name: output.to_owned(),
        input: vec![input.to_owned()],
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let graph = |nodes: Vec<NodeProto>, initializer: Vec<TensorProto>| {
        let mut model = with_tensor(tensor(&[1], 4));
        if let Some(graph) = &mut model.graph {
            graph.node = nodes;
            graph.initializer.extend(initializer);
        }
        model.encode_to_vec()
    };
    let mut cut = with_tensor(tensor(&[1024], 4096)).encode_to_vec();
    cut.truncate(cut.len() / 2);
    let huge = TensorProto {
        name: "shape".to_owned(),
        dims: vec![1],
        data_type: 7,
        raw_data: Some((1_i64 << 40).to_le_bytes().to_vec()),
        ..TensorProto::default()
    };
    vec![
        ("graphs in graphs", nested(200_000)),
        (
            "a tensor of 2^62 numbers",
            with_tensor(tensor(&[1 << 31, 1 << 31], 64)).encode_to_vec(),
        ),
        (
            "a tensor of fewer than no numbers",
            with_tensor(tensor(&[-4], 64)).encode_to_vec(),
        ),
        (
            "values that do not fill their shape",
            with_tensor(tensor(&[1000], 64)).encode_to_vec(),
        ),
        ("a file that is cut", cut),
        (
            "a file of 4 KiB that is said to hold 2^60 bytes",
            with_tensor(external("small.bin", 1 << 60)).encode_to_vec(),
        ),
        (
            "an unknown operator",
            graph(
                vec![node("NoSuchOperator", model::INPUT, model::OUTPUT)],
                Vec::new(),
            ),
        ),
        (
            "a cycle",
            graph(
                vec![
                    node("Relu", "b", "a"),
                    node("Relu", "a", "b"),
                    node("Relu", "a", model::OUTPUT),
                ],
                Vec::new(),
            ),
        ),
        (
            "a constant of 4 TiB",
            graph(
                vec![node("ConstantOfShape", "shape", model::OUTPUT)],
                vec![huge],
            ),
        ),
    ]
}

/// A model that adds a tensor to its input.
fn with_tensor(tensor: TensorProto) -> ModelProto {
    let (input, output) = model::ends();
    let node = NodeProto {
        op_type: "Add".to_owned(),
        name: "sum".to_owned(),
        input: vec![model::INPUT.to_owned(), tensor.name.clone()],
        output: vec![model::OUTPUT.to_owned()],
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: 9,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "hostile".to_owned(),
            node: vec![node],
            initializer: vec![tensor],
            input: vec![input],
            output: vec![output],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// A tensor whose values lie elsewhere.
fn external(location: &str, bytes: i64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: key.to_owned(),
        value,
    };
    TensorProto {
        name: "weight".to_owned(),
        dims: vec![bytes / 4],
        data_type: 1,
        data_location: DataLocation::External.into(),
        external_data: vec![
            entry("location", location.to_owned()),
            entry("length", bytes.to_string()),
        ],
        ..TensorProto::default()
    }
}

/// Graphs inside of each other: a model's graph (field 7) has a node (1) with an attribute
/// (5) that is a graph (6), and so on. Written by hand, since no encoder goes so deep.
fn nested(depth: usize) -> Vec<u8> {
    const FIELDS: [u8; 3] = [1, 5, 6];
    let length_of = |mut number: usize| {
        let mut length = 1;
        while number >= 0x80 {
            number >>= 7;
            length += 1;
        }
        length
    };
    let mut lengths = vec![0_usize];
    for _ in 0..depth {
        let inner = lengths[lengths.len() - 1];
        lengths.push(1 + length_of(inner) + inner);
    }
    let mut bytes = vec![0x08, 9];
    for (level, length) in lengths.iter().rev().enumerate() {
        let field = match level {
            0 => 7,
            level => FIELDS[(level - 1) % 3],
        };
        bytes.push(field << 3 | 2);
        let mut number = *length;
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    }
    bytes
}
