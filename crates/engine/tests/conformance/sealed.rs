//! Occlude on a model: sealed, opened, loaded with every weight streamed that can
//! be, and run.

use std::sync::Arc;

use occlude_container::{
    ChunkSize, Container, Metadata, SealError, SealOptions, model_key, seal_file,
};
use occlude_engine::{LoadError, Model, RunError};
use occlude_inference_protocol::Tensor;
use occlude_keys::{ModelId, OwnerKey};
use occlude_onnx::messages::ModelProto;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::support::{everything_streamed, runtime};

/// What the engine did with the weights of one test.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// A weight was opened while the model ran.
    pub(crate) streamed: bool,
    /// A sealed operator ran.
    pub(crate) sealed_operator: bool,
    /// A weight was opened into ONNX Runtime's own operator.
    pub(crate) fallback: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("not sealed: {0}")]
    Seal(#[from] SealError),
    #[error("not opened: {0}")]
    Open(String),
    #[error("not loaded: {}", load_reason(.0))]
    Load(#[from] LoadError),
    #[error("not run: {}", run_reason(.0))]
    Run(#[from] RunError),
    #[error("{0}")]
    Resources(#[from] std::io::Error),
}

/// What became of the weights.
fn facts(model: &Model) -> Facts {
    let counts = model.layer_counts();
    Facts {
        streamed: model.opened_bytes() > 0,
        sealed_operator: counts.sealed > 0,
        fallback: counts.opened_whole > 0,
    }
}

/// Every output, in the model's order.
pub(crate) fn run(
    model: &ModelProto,
    inputs: Vec<Tensor>,
) -> Result<(Vec<Tensor>, Facts), NoAnswer> {
    let folder = tempfile::tempdir()?;
    let (plain, sealed) = (
        folder.path().join("model.onnx"),
        folder.path().join("model.occ"),
    );
    std::fs::write(&plain, model.encode_to_vec())?;
    let key = OwnerKey::generate();
    let options = SealOptions {
        id: ModelId::random(),
        version: 1,
        chunk_size: ChunkSize::SMALLEST,
        metadata: Metadata::default(),
    };
    seal_file(&plain, &sealed, &key, &options, &mut |_| ())?;
    let signed = Container::read(&sealed)
        .and_then(|container| container.verify_owner(&key.public()))
        .map_err(|error| NoAnswer::Open(error.to_string()))?;
    let model_key = model_key(&key, signed.header());
    let opened = signed
        .open(&model_key)
        .map_err(|error| NoAnswer::Open(error.to_string()))?;
    let model = Model::load(runtime(), &Arc::new(opened), &everything_streamed())?;
    let answers = model.run(inputs, &[])?;
    Ok((answers, facts(&model)))
}

/// These models are nobody's secret.
fn load_reason(error: &LoadError) -> String {
    match error {
        LoadError::Rejected(why) => format!("{error}: {}", why.reveal()),
        other => other.to_string(),
    }
}

fn run_reason(error: &RunError) -> String {
    match error {
        RunError::Failed(why) => format!("{error}: {}", why.reveal()),
        other => other.to_string(),
    }
}
