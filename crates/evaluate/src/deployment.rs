//! A whole deployment on this machine: an owner, a broker, a server and a client, all but
//! the client processes of the `occlude` binary, as their users start them.
//!
//! Everything lies in a temporary folder and ends with the [`Deployment`], or when somebody
//! [stops](Running::stop) it meanwhile. Its policy
//! accepts this very machine and program, which the evidence collected here names: enough to
//! measure with, and nobody else's.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use occlude_attest::TeeKind;
use occlude_client::{Client, ClientOptions};
use occlude_inference_protocol::{InferRequest, Tensor};
use occlude_keys::ModelId;
use url::Url;

use crate::bench::Service as Answering;
use crate::owner::{Grounds, Owner, SEALED};
use crate::processes::{Service, failed};

pub use crate::processes::{DeploymentError, Running};

/// What is deployed, and where.
#[derive(Debug)]
pub struct DeploymentOptions {
    /// The `occlude` binary.
    pub binary: PathBuf,
    /// The model, in the clear.
    pub model: PathBuf,
    /// The TEE that the server runs in: this machine's.
    pub tee: TeeKind,
    /// What hardware vendors publish, if the TEE's evidence needs it.
    pub collateral: Option<PathBuf>,
    /// More arguments of `occlude serve`.
    pub serve: Vec<String>,
    /// Where whoever is interrupted stops it.
    pub running: Running,
}

/// A running deployment.
pub struct Deployment {
    client: Client,
    tokio: tokio::runtime::Runtime,
    model: ModelId,
    first_answer: Duration,
    server: Service,
    // Dropped after what uses it.
    owner: Owner,
}

impl Deployment {
    /// Seals the model, starts a broker and a server, and waits for the first answer, which
    /// is to `inputs`.
    ///
    /// # Errors
    /// [`DeploymentError`]; nothing goes on running then.
    pub fn start(options: &DeploymentOptions, inputs: &[Tensor]) -> Result<Self, DeploymentError> {
        let grounds = Grounds::new(
            &options.binary,
            options.tee,
            options.collateral.as_ref(),
            &options.running,
        );
        let owner = Owner::new(&grounds, &options.model, MODEL)?;
        let model: ModelId = MODEL.parse().map_err(failed("naming the model"))?;
        let start = Instant::now();
        let serve: Vec<&str> = options.serve.iter().map(String::as_str).collect();
        let server = owner.serve(SEALED, &serve)?;
        let url: Url = server.url().parse().map_err(failed("naming the server"))?;
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("starting the client"))?;
        let client_options = ClientOptions {
            collateral: options.collateral.clone(),
            ..ClientOptions::default()
        };
        let client = Client::connect(&url, owner.policy(), &client_options);
        let client = tokio
            .block_on(client)
            .map_err(failed("verifying the server"))?;
        let mut deployment = Self {
            client,
            tokio,
            model,
            first_answer: Duration::ZERO,
            server,
            owner,
        };
        deployment
            .infer(inputs)
            .map_err(failed("asking the server"))?;
        deployment.first_answer = start.elapsed();
        Ok(deployment)
    }
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployment").finish_non_exhaustive()
    }
}

impl Answering for Deployment {
    fn first_answer(&self) -> Duration {
        self.first_answer
    }

    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let request = InferRequest {
            inputs: inputs.to_vec(),
            ..InferRequest::default()
        };
        let answer = self.client.infer(&self.model, None, &request);
        let answer = self.tokio.block_on(answer);
        Ok(answer.map_err(|error| error.to_string())?.outputs)
    }

    fn cpu_time(&self) -> Option<Duration> {
        let services = [&self.owner.broker, &self.server];
        let times = services.map(|service| service.process.cpu_time());
        times.into_iter().sum()
    }
}

/// The model's id.
const MODEL: &str = "evaluated";
