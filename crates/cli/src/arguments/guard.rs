//! `occlude guard`: what an owner of a guarded model needs beside it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use occlude_keys::ModelId;

use super::NewOrExistingKey;

#[derive(Debug, Args)]
pub(crate) struct GuardArguments {
    #[command(subcommand)]
    pub(crate) action: GuardAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GuardAction {
    /// Make the key of an issuer of tokens, or print its public half.
    Keygen(IssuerKeygenArguments),
    /// Make a token that says who a client is.
    Token(TokenArguments),
    /// Show what each threshold of misinformation does to held-out data, and choose one.
    Tune(TuneArguments),
    /// Look for a model's watermark in one that may be a copy of it.
    Claim(ClaimArguments),
    /// Show what a model's telemetry says of queries and what work they cost, to choose thresholds.
    Watch(WatchArguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The public half goes into the guard that a model is sealed with (docs/guard.md):

  [[issuers]]
  name = \"https://issuer.example\"
  key = \"\"\"
  -----BEGIN PUBLIC KEY-----
  …
  -----END PUBLIC KEY-----
  \"\"\"

Example:
  occlude guard keygen -o issuer.pem")]
pub(crate) struct IssuerKeygenArguments {
    #[command(flatten)]
    pub(crate) key: NewOrExistingKey,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A JSON Web Token, signed with Ed25519, that says iss, sub, aud and exp: any other issuer can
make the same. Whoever has it asks in the client's name and at its expense.

Example:
  occlude guard token --key issuer.pem --issuer https://issuer.example --subject alice \\
    --model digits > alice.token
  occlude infer http://127.0.0.1:8000 --model digits --client-token alice.token …")]
pub(crate) struct TokenArguments {
    /// The issuer's key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// The issuer's name, as the guard has it.
    #[arg(long, value_name = "NAME")]
    pub(crate) issuer: String,
    /// The client's name, whatever tells it from the others.
    #[arg(long, value_name = "NAME")]
    pub(crate) subject: String,
    /// A model that may be asked; may be repeated.
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) model: Vec<ModelId>,
    /// How long it holds.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) days: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The model is what `python -m occlude.guard train` wrote; the data has `inputs`, `labels` and
`outliers`, as numpy.savez writes them. For each threshold it shows how many of the inputs stay
right and how many outliers keep their label. With --tau and --guard the threshold that you chose
by looking is written for occlude seal --guard.

The Python package of this project does it, and has to be installed (docs/guard.md).

Example:
  occlude guard tune guarded.onnx --data held-out.npz --plot tune.svg
  occlude guard tune guarded.onnx --data held-out.npz --tau 0.8 --guard guard.toml")]
pub(crate) struct TuneArguments {
    /// The model with its misinformation model.
    #[arg(value_name = "GUARDED.onnx")]
    pub(crate) model: PathBuf,
    /// Held-out data, which nothing was trained with.
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) data: PathBuf,
    /// The output with the probabilities; the last but the misinformation by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) answers: Option<String>,
    /// How sharp the threshold is [default: 1000].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) nu: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw it into this file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// The threshold that was chosen.
    #[arg(long, value_name = "NUMBER", requires = "guard")]
    pub(crate) tau: Option<f64>,
    /// Where the guard with that threshold goes.
    #[arg(long, value_name = "GUARD.toml", requires = "tau")]
    pub(crate) guard: Option<PathBuf>,
    /// Python [default: .venv/bin/python if it is there, else python3].
    #[arg(long, value_name = "PYTHON")]
    pub(crate) python: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The owner's model, sealed with a watermark, and the suspect are asked about the same inputs. Of
those whose answers the watermark changes, a copy that learned the answers by heart says the
changed class; any other model does so no more often than chance, and the p-value says how
likely it would be by chance, at most.

Try inputs that the suspect may have asked with, and all of them: who picks inputs by what the
suspect says of them proves nothing. Tiny changes of an input make it another one.

Example:
  occlude guard claim answers.npy --model model.occ --key owner.key --inputs public.npz")]
pub(crate) struct ClaimArguments {
    /// The model that may be a copy, or what it answered to the inputs, in their order: labels or
    /// classes. A stranger's model runs beside the owner's key; answers are safer, and all that
    /// there is of a model behind an interface.
    #[arg(value_name = "SUSPECT.onnx|ANSWERS.npy")]
    pub(crate) suspect: PathBuf,
    /// The owner's sealed model.
    #[arg(long, value_name = "MODEL.occ")]
    pub(crate) model: PathBuf,
    /// The owner's key.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: PathBuf,
    /// Inputs by their names, as numpy.savez writes them: the first extent counts examples.
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) inputs: PathBuf,
    /// The suspect's output with labels or classes; its first by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) output: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The queries of each file are answered here as if one client asked them, in their order, and each
window is judged as a server would. Try queries of honest users first: what telemetry finds unusual of
those is a false alarm. A threshold beyond what 99 windows in 100 of honest users have raises
one alarm in 100 of their windows. Where answers cost work, what each client gained is shown, the
bits of one more answer, and the bits of all of them on average, asked in one window of budgets.

Example:
  occlude guard watch model.occ --key owner.key --guard guard.toml --inputs queries.npz")]
pub(crate) struct WatchArguments {
    /// The owner's sealed model.
    #[arg(value_name = "MODEL.occ")]
    pub(crate) model: PathBuf,
    /// The owner's key.
    #[arg(long, value_name = "FILE", env = "OCCLUDE_OWNER_KEY")]
    pub(crate) key: PathBuf,
    /// Queries by the names of inputs, as numpy.savez writes them: the first extent counts
    /// them. May be repeated: each file is another client's.
    #[arg(long, value_name = "FILE.npz", required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Another guard than the one that was sealed with the model.
    #[arg(long, value_name = "GUARD.toml")]
    pub(crate) guard: Option<PathBuf>,
    /// Print JSON: every window.
    #[arg(long)]
    pub(crate) json: bool,
}
