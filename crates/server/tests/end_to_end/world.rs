//! An owner with sealed models, its broker, and servers that serve them.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use occlude_attest::{Attester, Binding, Policy, TeeKind, UnixTime, Verifier};
use occlude_broker::{AdminClient, BrokerOptions, ConnectOptions, Listening, ModelRecord};
use occlude_channel::Sender;
use occlude_client::{Client, ClientError, ClientOptions};
use occlude_container::{ChunkSize, Container, Metadata, SealOptions, model_key, seal_file};
use occlude_engine::{LIBRARY_FILE_NAME, LibrarySearch};
use occlude_guard::{GuardConfiguration, METADATA_KEY};
use occlude_inference_protocol::{InferRequest, Tensor};
use occlude_keys::{ModelId, ModelVersion, OwnerKey, OwnerPublic};
use occlude_onnx::DataType;
use occlude_onnx::messages::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use occlude_server::{Server, ServerOptions, Settings, StartError};
use prost::Message;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use url::Url;

/// Inputs of one example, and rows of the weight.
pub(crate) const FEATURES: usize = 64;

/// Outputs of one example, and columns of the weight.
pub(crate) const CLASSES: usize = 8;

/// The weight's element at row and column, times a model's own factor.
pub(crate) fn weight(row: usize, column: usize, factor: f32) -> f32 {
    ((row * CLASSES + column) as f32 * 12.9898).sin() * factor
}

/// `scores = image x secret_projection`, where `image` is `[any, 64]`.
fn model(factor: f32) -> ModelProto {
    let weights = (0..FEATURES * CLASSES)
        .flat_map(|index| weight(index / CLASSES, index % CLASSES, factor).to_le_bytes())
        .collect();
    let projection = TensorProto {
        name: "secret_projection".to_owned(),
        data_type: DataType::Float.number(),
        dims: vec![FEATURES as i64, CLASSES as i64],
        raw_data: Some(weights),
        ..TensorProto::default()
    };
    of_one_node("MatMul", projection, CLASSES)
}

/// How often [`tiled`] repeats its input.
const TILES: usize = 4096;

/// `scores` = each row of `image`, repeated [`TILES`] times: 1 MiB for each row of 256
/// bytes.
fn tiled() -> ModelProto {
    let repeats = TensorProto {
        name: "repeats".to_owned(),
        data_type: DataType::Int64.number(),
        dims: vec![2],
        raw_data: Some([1, TILES as i64].map(i64::to_le_bytes).concat()),
        ..TensorProto::default()
    };
    of_one_node("Tile", repeats, FEATURES * TILES)
}

/// `scores = softmax(image x secret_projection)`, which is sure of the class whose value in
/// `image` is large, and of none where all are the same.
fn certain() -> ModelProto {
    let mut model = model(0.0);
    let graph = model.graph.as_mut().unwrap();
    let ones = (0..FEATURES * CLASSES).map(|index| index / CLASSES == index % CLASSES);
    let ones = ones.flat_map(|one| f32::from(u8::from(one)).to_le_bytes());
    graph.initializer[0].raw_data = Some(ones.collect());
    graph.node[0].output = vec!["logits".to_owned()];
    graph.node.push(NodeProto {
        op_type: "Softmax".to_owned(),
        input: vec!["logits".to_owned()],
        output: vec!["scores".to_owned()],
        ..NodeProto::default()
    });
    model
}

/// `scores = operator(image, constant)`, `[any, 64]` to `[any, scores]`.
fn of_one_node(operator: &str, constant: TensorProto, scores: usize) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            name: "graph".to_owned(),
            node: vec![NodeProto {
                op_type: operator.to_owned(),
                input: vec!["image".to_owned(), constant.name.clone()],
                output: vec!["scores".to_owned()],
                ..NodeProto::default()
            }],
            input: vec![value("image", FEATURES)],
            output: vec![value("scores", scores)],
            initializer: vec![constant],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// A tensor of shape `[any, extent]`.
fn value(name: &str, extent: usize) -> ValueInfoProto {
    let dimension = |value| tensor_shape_proto::Dimension {
        value,
        ..tensor_shape_proto::Dimension::default()
    };
    let fixed = tensor_shape_proto::dimension::Value::DimValue(extent as i64);
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: DataType::Float.number(),
                shape: Some(TensorShapeProto {
                    dim: vec![dimension(None), dimension(Some(fixed))],
                }),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// One example that no two tests of leaks can miss: no two bytes groups alike.
pub(crate) fn example() -> Vec<f32> {
    (0..FEATURES)
        .map(|index| (index as f32 * 78.233).cos())
        .collect()
}

/// What the model with this factor computes from the example.
pub(crate) fn expected(factor: f32) -> Vec<f32> {
    let example = example();
    (0..CLASSES)
        .map(|column| {
            (0..FEATURES)
                .map(|row| example[row] * weight(row, column, factor))
                .sum()
        })
        .collect()
}

pub(crate) fn request() -> InferRequest {
    request_of(1)
}

/// As many examples at once.
pub(crate) fn request_of(rows: usize) -> InferRequest {
    let images = example().repeat(rows);
    let shape = vec![rows as u64, FEATURES as u64];
    InferRequest {
        inputs: vec![Tensor::from_values("image", shape, &images).unwrap()],
        ..InferRequest::default()
    }
}

pub(crate) fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
}

/// The measurement of this process, as its simulated TEE tells it.
pub(crate) fn measurement() -> String {
    let attester = Attester::open(TeeKind::Simulated, [0; 32]).unwrap();
    let binding = Binding::from([0; 64]);
    let evidence = attester.collect(&binding).unwrap();
    let claims = Verifier::default()
        .verify(&evidence, &binding, UnixTime::now())
        .unwrap();
    claims.measurement().to_string()
}

/// What the owner's policies say about evidence, for a measurement.
fn evidence_policy(measurement: &str) -> String {
    format!(
        "format = 1\nreviewed = true\n[evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\n\
         measurements = [\"{measurement}\"]\n"
    )
}

/// Something that runs until it is stopped.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    fn start<F: Future<Output = ()> + Send + 'static>(
        run: impl FnOnce(oneshot::Receiver<()>) -> F,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop: Some(stop),
            task: tokio::spawn(run(stopped)),
        }
    }

    /// Asks it to stop.
    pub(crate) fn ask_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(mut self) {
        if self.stop.is_some() {
            self.ask_to_stop();
        }
        self.task.await.unwrap();
    }
}

pub(crate) struct World {
    pub(crate) owner: OwnerKey,
    pub(crate) broker: Option<Running>,
    pub(crate) broker_address: SocketAddr,
    pub(crate) broker_metrics: SocketAddr,
    pub(crate) admin: AdminClient,
    folder: TempDir,
}

/// A server and the address that it answers at.
pub(crate) struct Serving {
    pub(crate) url: Url,
    pub(crate) address: SocketAddr,
    pub(crate) statement: occlude_attest::ServiceStatement,
    pub(crate) running: Running,
}

impl World {
    /// An owner and a broker with a policy that releases keys to this process.
    pub(crate) async fn new() -> Self {
        let world = Self::without_policy().await;
        world.release_to(&measurement()).await;
        world
    }

    pub(crate) async fn without_policy() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let (broker, listening) = start_broker(folder.path(), listen).await;
        let broker_address = listening.address;
        let admin = AdminClient::new(
            &format!("http://{broker_address}"),
            &ConnectOptions::default(),
        )
        .unwrap();
        Self {
            owner: OwnerKey::generate(),
            broker: Some(broker),
            broker_address,
            broker_metrics: listening.metrics.unwrap(),
            admin,
            folder,
        }
    }

    /// Sets the owner's policy on the broker.
    pub(crate) async fn release_to(&self, measurement: &str) {
        self.admin
            .set_policy(&self.owner, None, &evidence_policy(measurement))
            .await
            .unwrap();
    }

    pub(crate) async fn stop_broker(&mut self) {
        self.broker.take().unwrap().stopped().await;
    }

    /// Starts the broker again, on the same database and port.
    pub(crate) async fn start_broker(&mut self) {
        let (broker, listening) = start_broker(self.folder.path(), self.broker_address).await;
        self.broker = Some(broker);
        self.broker_metrics = listening.metrics.unwrap();
    }

    /// Seals a model whose weights are multiplied with `factor`, keeping the key.
    pub(crate) fn seal(&self, id: &str, version: ModelVersion, factor: f32) -> PathBuf {
        self.seal_model(id, version, &model(factor), Metadata::default())
    }

    fn seal_model(
        &self,
        id: &str,
        version: ModelVersion,
        model: &ModelProto,
        metadata: Metadata,
    ) -> PathBuf {
        let plain = self.folder.path().join(format!("{id}-{version}.onnx"));
        let sealed = self.folder.path().join(format!("{id}-{version}.occ"));
        std::fs::write(&plain, model.encode_to_vec()).unwrap();
        let options = SealOptions {
            id: id.parse().unwrap(),
            version,
            chunk_size: ChunkSize::SMALLEST,
            metadata,
        };
        seal_file(&plain, &sealed, &self.owner, &options, &mut |_| ()).unwrap();
        std::fs::remove_file(plain).unwrap();
        sealed
    }

    /// Seals a model and gives its key to the broker.
    pub(crate) async fn publish(&self, id: &str, version: ModelVersion, factor: f32) -> PathBuf {
        let sealed = self.seal(id, version, factor);
        self.give_key(&sealed).await;
        sealed
    }

    /// Seals a model with an entry of metadata and gives its key to the broker.
    pub(crate) async fn publish_with(&self, id: &str, entry: &str, value: &str) -> PathBuf {
        let metadata = Metadata {
            entries: [(entry.to_owned(), value.to_owned())].into(),
            outputs: vec![],
        };
        let sealed = self.seal_model(id, 1, &model(1.0), metadata);
        self.give_key(&sealed).await;
        sealed
    }

    /// Seals a model with a guard, as its owner writes it, and gives its key to the broker.
    pub(crate) async fn publish_guarded(
        &self,
        id: &str,
        version: ModelVersion,
        guard: &str,
    ) -> PathBuf {
        let model = model(version as f32);
        self.publish_model(id, version, &model, guarded(guard))
            .await
    }

    /// The same with a model whose answers are probabilities.
    pub(crate) async fn publish_certain(&self, id: &str, guard: &str) -> PathBuf {
        self.publish_model(id, 1, &certain(), guarded(guard)).await
    }

    async fn publish_model(
        &self,
        id: &str,
        version: ModelVersion,
        model: &ModelProto,
        metadata: Metadata,
    ) -> PathBuf {
        let sealed = self.seal_model(id, version, model, metadata);
        self.give_key(&sealed).await;
        sealed
    }

    /// Seals a model with answers of 1 MiB for each row and gives its key to the broker.
    pub(crate) async fn publish_tiled(&self, id: &str) -> PathBuf {
        self.publish_model(id, 1, &tiled(), Metadata::default())
            .await
    }

    async fn give_key(&self, sealed: &Path) {
        let container = Container::read(sealed).unwrap();
        let header = container.header();
        let record = ModelRecord {
            id: header.id().clone(),
            version: header.version(),
            header_digest: header.digest(),
        };
        self.admin
            .add_model(&self.owner, &record, &model_key(&self.owner, header))
            .await
            .unwrap();
    }

    pub(crate) fn options(&self, models: &[&Path]) -> ServerOptions {
        let settings = Settings {
            model: models.iter().map(|path| path.to_path_buf()).collect(),
            broker: Some(format!("http://{}", self.broker_address).parse().unwrap()),
            tee: Some(TeeKind::Simulated.into()),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            maximum_request: Some(bytesize::ByteSize::mib(1)),
            ..Settings::default()
        };
        let mut options = settings.resolve().unwrap();
        options.library = LibrarySearch::only(library());
        options
    }

    pub(crate) async fn serve(&self, models: &[&Path]) -> Serving {
        serve(self.options(models)).await.unwrap()
    }

    /// The owner's policy for clients.
    pub(crate) fn policy(&self) -> Policy {
        policy(&self.owner.public(), "")
    }

    /// The owner's policy for clients, with more under `[service]`.
    pub(crate) fn policy_with(&self, more: &str) -> Policy {
        policy(&self.owner.public(), more)
    }
}

/// What is sealed with a guarded model.
fn guarded(guard: &str) -> Metadata {
    let guard = GuardConfiguration::from_toml(guard).unwrap();
    Metadata {
        entries: [(METADATA_KEY.to_owned(), guard.to_json())].into(),
        outputs: vec![],
    }
}

fn policy(owner: &OwnerPublic, more: &str) -> Policy {
    let text = format!(
        "{}[service]\nowners = [\"{owner}\"]\n{more}\n",
        evidence_policy(&measurement())
    );
    Policy::parse(&text).unwrap()
}

async fn start_broker(folder: &Path, listen: SocketAddr) -> (Running, Listening) {
    let options = BrokerOptions {
        listen,
        database: folder.join("broker.db").to_str().unwrap().to_owned(),
        master_key: None,
        tls: None,
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        collateral: None,
    };
    let (ready, listening) = oneshot::channel();
    let running = Running::start(async |stopped| {
        occlude_broker::serve(
            options,
            move |listening| ready.send(listening).unwrap(),
            async move { stopped.await.unwrap_or_default() },
        )
        .await
        .unwrap();
    });
    (running, listening.await.unwrap())
}

pub(crate) async fn serve(options: ServerOptions) -> Result<Serving, StartError> {
    let server = Server::bind(options).await?;
    let address = server.local_address();
    Ok(Serving {
        url: format!("http://{address}/").parse().unwrap(),
        address,
        statement: server.statement(),
        running: Running::start(async |stopped| {
            server
                .run(async move { stopped.await.unwrap_or_default() })
                .await
                .unwrap();
        }),
    })
}

/// The library that the build placed in `target/onnxruntime`.
pub(crate) fn library() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("target/onnxruntime").join(LIBRARY_FILE_NAME))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("no target/onnxruntime/{LIBRARY_FILE_NAME}: run `make onnxruntime`")
        })
}

impl Serving {
    pub(crate) async fn client(&self, policy: Policy) -> Result<Client, ClientError> {
        Client::connect(&self.url, policy, &ClientOptions::default()).await
    }

    /// Seals a request the way a client does that skips verification.
    pub(crate) fn seal(
        &self,
        request: &Request<Bytes>,
    ) -> (Vec<u8>, occlude_channel::ResponseOpener) {
        Sender::from_key_configurations(&self.statement.channel_keys)
            .unwrap()
            .seal(request)
            .unwrap()
    }

    /// Asks through the channel the way a client does that judges nothing.
    pub(crate) async fn ask(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let (sealed, opener) = self.seal(request);
        let answer = self.post(sealed).await;
        assert_eq!(answer.status(), 200);
        opener.open(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Posts to the channel in the clear, headers included.
    pub(crate) async fn post(&self, body: Vec<u8>) -> reqwest::Response {
        http()
            .post(format!("{}.well-known/occlude/channel", self.url))
            .header("content-type", "message/ohttp-req")
            .body(body)
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        http()
            .get(self.url.join(path).unwrap())
            .send()
            .await
            .unwrap()
    }
}

pub(crate) fn http() -> reqwest::Client {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub(crate) fn id(text: &str) -> ModelId {
    text.parse().unwrap()
}

/// The text of a protocol error.
pub(crate) fn error_text(body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body).unwrap()["error"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// A status and the text of its protocol error.
pub(crate) async fn refusal(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    (status, error_text(&response.bytes().await.unwrap()))
}

/// The same through the channel.
pub(crate) fn inner_refusal(response: &Response<Bytes>) -> (u16, String) {
    (response.status().as_u16(), error_text(response.body()))
}

/// Waits for something that happens in the background.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
