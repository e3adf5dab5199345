//! The command line, as `--help` teaches it.
//!
//! A flag wins over its environment variable, which wins over the configuration
//! file where the command has one.

mod attest;
mod evaluate;
mod guard;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

pub(crate) use attest::{
    AttestAction, AttestArguments, AttestVerifyArguments, CollateralAction, EvidenceOptions,
    FetchArguments, MeasureAction, RecordedArguments,
};
use bytesize::ByteSize;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
pub(crate) use evaluate::{
    EvaluateAction, EvaluateArguments, EvaluateCostArguments, EvaluateGuardArguments,
    EvaluateProtectionArguments, WrittenArguments,
};
pub(crate) use guard::{
    ClaimArguments, GuardAction, GuardArguments, IssuerKeygenArguments, TokenArguments,
    TuneArguments, WatchArguments,
};
use occlude_attest::TeeChoice;
use occlude_client::ClientOptions;
use occlude_engine::{CipherKind, LargestShape, Spill};
use occlude_evaluate::bench::Budget;
use occlude_keys::{ModelId, ModelVersion, OwnerPublic};
use occlude_server::MemoryBudget;
use url::Url;

use crate::logging::LogFormat;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: a file or an answer is not as it should be
  2  used wrongly: a flag, its environment variable or a setting in a file
  3  refused by policy or verification
  4  not available now";

/// Serve machine-learning models in a cloud that you do not trust.
///
/// The owner seals a model; a server opens it only inside a trusted execution
/// environment whose evidence the owner's broker and every user verify.
#[derive(Debug, Parser)]
#[command(name = "occlude", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "OCCLUDE_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the owner's key, or print its public half.
    Keygen(KeygenArguments),
    /// Encrypt and sign an ONNX model.
    Seal(SealArguments),
    /// Turn a sealed model back into the ONNX model that it was.
    Unseal(UnsealArguments),
    /// Show what a sealed model is: to everybody, or to its owner.
    Inspect(InspectArguments),
    /// Check a sealed model's signature and structure, and with the key every chunk.
    Verify(VerifyArguments),
    /// Run the owner's broker, or give it orders.
    Broker(BrokerArguments),
    /// Serve sealed models inside a trusted execution environment.
    Serve(Box<ServeArguments>),
    /// Show, verify or pin a server's attestation evidence.
    Attest(AttestArguments),
    /// Show which trusted execution environments this machine has.
    Tee(TeeArguments),
    /// Sign policies.
    Policy(PolicyArguments),
    /// Verify a server, then send it one request.
    Infer(InferArguments),
    /// Offer a verified server's inference protocol as plain HTTP on this machine.
    Proxy(ProxyArguments),
    /// Say who may ask a guarded model, look at queries, and tell a copy of it.
    Guard(GuardArguments),
    /// Measure time and memory against plain ONNX Runtime.
    Bench(BenchArguments),
    /// Measure, for others to see, what protection costs, and whether it holds.
    Evaluate(EvaluateArguments),
    /// One process of `bench`, which measures its own memory.
    #[command(hide = true)]
    MeasureMemory,
    /// Print a shell's completions.
    Completions(CompletionsArguments),
}

impl Command {
    /// Whether it may hold somebody's key or data. A process that measures hardens itself
    /// where it measures Occlude; one that attacks has processes of its own attacked, which
    /// would inherit its limits.
    pub(crate) fn holds_secrets(&self) -> bool {
        !matches!(
            self,
            Self::MeasureMemory
                | Self::Evaluate(EvaluateArguments {
                    action: EvaluateAction::Protection(_)
                })
        )
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  occlude keygen -o owner.key
  occlude keygen --public owner.key")]
pub(crate) struct KeygenArguments {
    #[command(flatten)]
    pub(crate) key: NewOrExistingKey,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A key to make, or one whose public half is wanted.
#[derive(Debug, Args)]
pub(crate) struct NewOrExistingKey {
    /// Write a new key here (mode 0600; an existing file is never overwritten).
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "public",
        conflicts_with = "public"
    )]
    pub(crate) output: Option<PathBuf>,
    /// Print the public half of this key.
    #[arg(long, value_name = "KEY")]
    pub(crate) public: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SealArguments {
    /// The ONNX model; its external data is found beside it.
    #[arg(value_name = "MODEL.onnx")]
    pub(crate) model: PathBuf,
    /// Where the sealed model goes.
    #[arg(short, long, value_name = "MODEL.occ")]
    pub(crate) output: PathBuf,
    /// The owner's key.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: PathBuf,
    /// The model's public name; random by default, never the file's name.
    #[arg(long, value_name = "NAME")]
    pub(crate) id: Option<ModelId>,
    /// The model's version; a broker can withdraw all below one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) version: ModelVersion,
    /// How much is encrypted at a time: a power of two from 4KiB to 16MiB.
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    pub(crate) chunk_size: ByteSize,
    /// What makes copying the model by asking it dearer (TOML; docs/guard.md): sealed with it,
    /// so that no server answers without.
    #[arg(long, value_name = "GUARD.toml")]
    pub(crate) guard: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnsealArguments {
    /// The sealed model.
    #[arg(value_name = "MODEL.occ")]
    pub(crate) container: PathBuf,
    /// Where the ONNX model goes.
    #[arg(short, long, value_name = "MODEL.onnx")]
    pub(crate) output: PathBuf,
    /// The owner's key.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With --plan the model is loaded as `occlude serve` loads it, and run on zeros of the
largest shapes. The plan says of each weight what stays in protected memory, what is
streamed, and how much longer a run is estimated to take for that. A budget that is too
small is refused with the smallest one that works, and the layer that needs the most.

Example:
  occlude inspect model.occ --key owner.key --plan --protected-memory 64MiB \\
    --max-shape image=1x3x224x224")]
pub(crate) struct InspectArguments {
    /// The sealed model.
    #[arg(value_name = "MODEL.occ")]
    pub(crate) container: PathBuf,
    /// The owner's key; without it, only what anybody learns is shown.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// Show what would stay in protected memory, layer by layer.
    #[arg(long, requires = "key")]
    pub(crate) plan: bool,
    /// The plan's protected memory: `resident`, `auto` or a size such as 64MiB.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "resident",
        requires = "plan"
    )]
    pub(crate) protected_memory: MemoryBudget,
    /// Inferences of the plan that run at once.
    #[arg(long, value_name = "N", default_value = "1", requires = "plan")]
    pub(crate) sessions: NonZeroUsize,
    /// The largest shape of an input, as for `serve`; may be repeated.
    #[arg(long, value_name = "NAME=SHAPE", requires = "plan")]
    pub(crate) max_shape: Vec<LargestShape>,
    /// Where the plan's streamed weights lie, as for `serve`.
    #[arg(
        long,
        value_name = "shared|direct:FOLDER",
        default_value = "shared",
        requires = "plan"
    )]
    pub(crate) spill: Spill,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("verifier").required(true).multiple(true).args(["owner", "key"])
))]
pub(crate) struct VerifyArguments {
    /// The sealed model.
    #[arg(value_name = "MODEL.occ")]
    pub(crate) container: PathBuf,
    /// The owner's public key: checks signature and structure.
    #[arg(long, value_name = "PUBLIC")]
    pub(crate) owner: Option<OwnerPublic>,
    /// The owner's key: checks every chunk too.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Without a command, the broker runs. The commands are orders to a running broker,
signed by the owner's key."
)]
pub(crate) struct BrokerArguments {
    #[command(flatten)]
    pub(crate) run: BrokerRunArguments,
    #[command(subcommand)]
    pub(crate) order: Option<BrokerOrder>,
}

#[derive(Debug, Args)]
pub(crate) struct BrokerRunArguments {
    /// Where to listen.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        env = "OCCLUDE_BROKER_LISTEN"
    )]
    pub(crate) listen: SocketAddr,
    /// An SQLite file, or the URL of a PostgreSQL database.
    #[arg(
        long,
        value_name = "FILE|URL",
        default_value = "broker.db",
        env = "OCCLUDE_BROKER_DATABASE",
        hide_env_values = true
    )]
    pub(crate) database: String,
    /// The key that wraps stored keys (mode 0600, made at the first start).
    #[arg(long, value_name = "FILE", env = "OCCLUDE_BROKER_MASTER_KEY")]
    pub(crate) master_key: Option<PathBuf>,
    /// The certificate chain to serve HTTPS with (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Where to tell Prometheus, in plain HTTP, how often clients of guarded models asked
    /// unusually.
    #[arg(long, value_name = "ADDRESS", env = "OCCLUDE_BROKER_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) collateral: CollateralArguments,
}

/// What a verifier brings.
#[derive(Debug, Args)]
pub(crate) struct CollateralArguments {
    /// A folder of what hardware vendors publish, certificates and revocation lists, for
    /// evidence that comes without them.
    #[arg(long, value_name = "FOLDER", env = "OCCLUDE_COLLATERAL")]
    pub(crate) collateral: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BrokerOrder {
    /// Give the broker the key of one sealed version.
    AddModel {
        /// The sealed model.
        #[arg(value_name = "MODEL.occ")]
        container: PathBuf,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Say which evidence gets the owner's keys.
    SetPolicy {
        /// The policy.
        #[arg(value_name = "POLICY.toml")]
        policy: PathBuf,
        /// Only for this model; for all of the owner's models by default.
        #[arg(long, value_name = "NAME")]
        model: Option<ModelId>,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Release no key of a model's older versions any more.
    Withdraw {
        /// The model.
        #[arg(long, value_name = "NAME")]
        model: ModelId,
        /// Versions below this one are withdrawn.
        #[arg(long, value_name = "N")]
        below_version: ModelVersion,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Show every decision about the owner's models, checked link by link.
    Audit {
        /// Write the signed head of the log here, to compare with later.
        #[arg(long, value_name = "FILE")]
        export_head: Option<PathBuf>,
        /// Refuse a log that does not continue this earlier head: a rolled-back one.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AdminArguments {
    /// The owner's key, which signs the order.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: PathBuf,
    /// The broker.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        env = "OCCLUDE_BROKER"
    )]
    pub(crate) broker: Url,
    /// The authority that the broker's certificate must come from (PEM), instead of
    /// the system's.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_BROKER_CERTIFICATE")]
    pub(crate) broker_certificate: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  occlude serve --model model.occ --broker https://broker.example --tee simulated

A configuration file has the same names: [serve] with model, broker, tee, listen, …")]
pub(crate) struct ServeArguments {
    /// A sealed model; may be repeated, for models of one owner.
    #[arg(long, value_name = "MODEL.occ", env = "OCCLUDE_MODEL")]
    pub(crate) model: Vec<PathBuf>,
    /// The broker that holds the keys.
    #[arg(long, value_name = "URL", env = "OCCLUDE_BROKER")]
    pub(crate) broker: Option<Url>,
    /// The trusted execution environment that this process runs in, or `auto` for the
    /// most trustworthy that `occlude tee list` shows, never the simulated one.
    #[arg(long, value_name = "KIND", env = "OCCLUDE_TEE")]
    pub(crate) tee: Option<TeeChoice>,
    #[command(flatten)]
    pub(crate) evidence: EvidenceOptions,
    /// Where to listen [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDRESS", env = "OCCLUDE_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// Threads that one inference uses [default: all].
    #[arg(long, value_name = "N", env = "OCCLUDE_THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Inferences that run at once [default: 1].
    #[arg(long, value_name = "N", env = "OCCLUDE_SESSIONS")]
    pub(crate) sessions: Option<NonZeroUsize>,
    /// Protected memory for each model: `resident` (all weights), `auto` (what is
    /// available less a tenth) or a size such as 256MiB, the process included, beyond
    /// which weights are streamed, encrypted, from where --spill says [default: resident].
    #[arg(long, value_name = "SIZE", env = "OCCLUDE_PROTECTED_MEMORY")]
    pub(crate) protected_memory: Option<MemoryBudget>,
    /// The largest shape of an input, such as image=1x3x224x224; may be repeated. Memory
    /// is planned for it, and larger inputs are refused. Where a size limits protected
    /// memory, an open extent that is not given is planned as 1.
    #[arg(
        long,
        value_name = "NAME=SHAPE",
        env = "OCCLUDE_MAX_SHAPE",
        value_delimiter = ','
    )]
    pub(crate) max_shape: Vec<LargestShape>,
    /// Where weights beyond that lie, encrypted: `shared` (memory, where the TEE does
    /// not count shared memory as its own) or `direct:FOLDER` (a file on a disk, read
    /// past the page cache: for confidential virtual machines). Each session reads ahead
    /// into 16 MiB of protected memory, or as `direct:FOLDER,read-ahead=64MiB` says
    /// [default: shared].
    #[arg(long, value_name = "shared|direct:FOLDER", env = "OCCLUDE_SPILL")]
    pub(crate) spill: Option<Spill>,
    /// What they are encrypted with there: aes-256-gcm, or aegis-128l, -128x2 or -128x4
    /// [default: the fastest here].
    #[arg(long, value_name = "CIPHER", env = "OCCLUDE_SPILL_CIPHER")]
    pub(crate) spill_cipher: Option<CipherKind>,
    /// A folder, best on another disk, with copies of the containers under their names;
    /// streamed weights that lie in a file are written there a second time. What is found
    /// altered comes from there and is written back.
    #[arg(long, value_name = "FOLDER", env = "OCCLUDE_MIRROR")]
    pub(crate) mirror: Option<PathBuf>,
    /// The channel's key encapsulation [default: x-wing].
    #[arg(long, value_name = "KEM", env = "OCCLUDE_KEM")]
    pub(crate) kem: Option<KemArgument>,
    /// Largest request, encapsulation included [default: 64MiB].
    #[arg(long, value_name = "SIZE", env = "OCCLUDE_MAXIMUM_REQUEST")]
    pub(crate) maximum_request: Option<ByteSize>,
    /// How often the lease on the keys is renewed, in seconds [default: 3600].
    #[arg(long, value_name = "SECONDS", env = "OCCLUDE_LEASE_SECONDS")]
    pub(crate) lease_seconds: Option<u64>,
    /// A TOML file with the same settings; flags and environment win over it.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KemArgument {
    /// X-Wing: X25519 and ML-KEM-768 together.
    XWing,
    /// X25519 alone.
    X25519,
}

#[derive(Debug, Args)]
pub(crate) struct TeeArguments {
    #[command(subcommand)]
    pub(crate) action: TeeAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TeeAction {
    /// Show for each technology whether it is present here, how that is known, and what
    /// is missing.
    List {
        /// Look at the devices below this folder instead of this machine's.
        #[arg(long, value_name = "FOLDER", default_value = "/", hide = true)]
        root: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PolicySource {
    /// What evidence and service to accept.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_POLICY")]
    pub(crate) policy: PathBuf,
    /// Accept the policy only if this owner signed it.
    #[arg(long, value_name = "PUBLIC", env = "OCCLUDE_POLICY_OWNER")]
    pub(crate) owner: Option<OwnerPublic>,
    #[command(flatten)]
    pub(crate) collateral: CollateralArguments,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    pub(crate) action: PolicyAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyAction {
    /// Sign a policy, so that clients with `--owner` accept it.
    Sign {
        /// The policy.
        #[arg(value_name = "POLICY.toml")]
        policy: PathBuf,
        /// Where the signed policy goes.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The owner's key.
        #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
        key: PathBuf,
    },
    /// Check that a policy can be read, and print what it means.
    Show {
        /// The policy, signed or not.
        #[arg(value_name = "POLICY")]
        policy: PathBuf,
        /// Accept the policy only if this owner signed it.
        #[arg(long, value_name = "PUBLIC")]
        owner: Option<OwnerPublic>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Inputs are NumPy .npy files, or .json files with nested lists. The output's name says
its form: .npz, .json, or a table on standard output when there is none.

Example:
  occlude infer http://127.0.0.1:8000 --model digits --policy policy.toml \\
    --input image=x.npy --output out.npz")]
pub(crate) struct InferArguments {
    /// The server.
    pub(crate) url: Url,
    /// The model's id.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: ModelId,
    /// The model's version; the server's choice by default.
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<ModelVersion>,
    #[command(flatten)]
    pub(crate) policy: PolicySource,
    /// An input tensor; may be repeated.
    #[arg(long, value_name = "NAME=FILE", required = true)]
    pub(crate) input: Vec<String>,
    /// Where the outputs go, replacing what is there: .npz or .json; a table is printed by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asker: AskerArguments,
    /// Print the outputs as JSON.
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArguments {
    /// The server.
    #[arg(env = "OCCLUDE_URL")]
    pub(crate) url: Url,
    #[command(flatten)]
    pub(crate) policy: PolicySource,
    /// Where to listen: on this machine only, unless a token is asked for.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        env = "OCCLUDE_PROXY_LISTEN"
    )]
    pub(crate) listen: SocketAddr,
    /// Ask every request for the bearer token in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asker: AskerArguments,
}

/// What guarded models want of whoever asks.
#[derive(Debug, Args)]
pub(crate) struct AskerArguments {
    /// A token that tells the server who asks, sent with every request: for a model that wants to
    /// know.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_CLIENT_TOKEN")]
    pub(crate) client_token: Option<PathBuf>,
    /// Work done for one request where a model's owner wants that, at most: 2^BITS hashes; 28 take
    /// some 20 seconds.
    #[arg(
        long,
        value_name = "BITS",
        default_value_t = ClientOptions::default().most_work,
        value_parser = clap::value_parser!(u32).range(0..=64),
        env = "OCCLUDE_MOST_WORK"
    )]
    pub(crate) most_work: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The model is sealed in memory, under a key that is thrown away. Plain ONNX Runtime, as it
is by default, and Occlude then run in turns in one process, over one pool of threads:
a few runs of the one, a few of the other, the first of each turn discarded. Ratios
compare the runs of one budget with the plain ones between them. After each answer
Occlude wipes the memory that it took; the next request waits for that, so it is timed
apart from the runs (wipe_ms in the JSON).

Memory is measured in a process for each: the highest anonymous memory (RssAnon) from its
start to its last run, loading included, nothing subtracted. Sealed weights lie in a shared
mapping, which is untrusted memory, and are not in it; with --spill direct:FOLDER they lie
in a file, and the buffers that it is read into are in it.

Budgets:
  resident  all weights stay in protected memory
  25%       a quarter of the weights' bytes does; tables that must stay count in
  0%        everything is streamed that can be
  256MiB    protected memory in total: the process, weights, inputs, intermediate
            results and scratch
A budget that cannot work is shown with the reason; the others are measured.

Inputs are random, the same every time, unless --inputs has them. An open first extent
is the batch; the others are 224 for images (rank 4) and 128 for everything else.

Examples:
  occlude bench model.onnx
  occlude bench model.onnx --budget 0% --budget 64MiB --threads 4 --json
  occlude bench model.onnx --budget 0% --spill direct:/var/tmp
  occlude bench model.onnx --inputs batch-of-16.npz")]
pub(crate) struct BenchArguments {
    /// The ONNX model; its external data is found beside it.
    #[arg(value_name = "MODEL.onnx")]
    pub(crate) model: PathBuf,
    /// A budget of protected memory; may be repeated.
    #[arg(long, value_name = "resident|NN%|NNMiB", default_values = ["resident", "50%", "25%", "0%"])]
    pub(crate) budget: Vec<Budget>,
    /// Where streamed weights lie, encrypted: in memory, or in a file on a disk that is
    /// read past the page cache, 16 MiB ahead or as direct:FOLDER,read-ahead=64MiB says.
    #[arg(long, value_name = "shared|direct:FOLDER", default_value = "shared")]
    pub(crate) spill: Spill,
    /// What they are encrypted with there: aes-256-gcm, or aegis-128l, -128x2 or -128x4
    /// [default: the fastest here].
    #[arg(long, value_name = "CIPHER")]
    pub(crate) spill_cipher: Option<CipherKind>,
    /// Threads of either side.
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) threads: NonZeroUsize,
    /// Examples in one request, where the model leaves their number open.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "inputs")]
    pub(crate) batch: u64,
    /// Measured runs of either side, at least; quick models run more often.
    #[arg(long, value_name = "N", default_value = "30")]
    pub(crate) runs: NonZeroUsize,
    /// Inputs by their names, as numpy.savez writes them.
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) inputs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
