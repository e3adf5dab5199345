//! `occlude attest`: evidence of servers, of files and of this machine.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use occlude_attest::fetch::{AMD, INTEL, NVIDIA};
use occlude_attest::tpm::KeyFingerprint;
use occlude_attest::{Binding, Nonce, TeeChoice, TeeKind, UnixTime};
use occlude_keys::OwnerPublic;
use url::Url;

use super::{CollateralArguments, PolicySource};

#[derive(Debug, Args)]
pub(crate) struct AttestArguments {
    #[command(subcommand)]
    pub(crate) action: AttestAction,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub(crate) enum AttestAction {
    /// Verify a server's evidence and print its claims and service statement.
    Show {
        /// The server.
        url: Url,
        #[command(flatten)]
        collateral: CollateralArguments,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verify a server's evidence, or recorded evidence, and judge it by a policy.
    Verify(AttestVerifyArguments),
    /// Collect evidence of the machine that this runs on, as a server does: to see its keys
    /// and registers before a policy is written.
    Collect {
        /// The trusted execution environment, or `auto`.
        #[arg(long, value_name = "KIND", env = "OCCLUDE_TEE")]
        tee: TeeChoice,
        #[command(flatten)]
        evidence: EvidenceOptions,
        /// The 64 bytes that it is to carry, as 128 hexadecimal digits.
        #[arg(long, value_name = "HEX")]
        report_data: Binding,
        /// Where it goes, replacing what is there [default: standard output].
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Compute what a machine will measure, from its image or its log, and print a policy that
    /// accepts it, to be reviewed.
    Measure {
        #[command(subcommand)]
        action: MeasureAction,
    },
    /// Look at a folder of what hardware vendors publish.
    Collateral {
        #[command(subcommand)]
        action: CollateralAction,
    },
    /// Write a policy from what a server shows now (trust on first use).
    Pin {
        /// The server.
        url: Url,
        #[command(flatten)]
        collateral: CollateralArguments,
        /// Pin even simulated evidence, which proves nothing.
        #[arg(long)]
        simulated: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MeasureAction {
    /// The launch of a virtual machine with AMD SEV-SNP, as QEMU does it.
    #[command(after_help = "\
Example:
  occlude attest measure snp --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img \\
    --append 'console=ttyS0' --processors 4 --processor-type EPYC-v4 > policy.toml")]
    Snp(MeasureSnpArguments),
    /// A measured boot, from the log that the machine's firmware kept of one.
    #[command(after_help = "\
The log is /sys/kernel/security/tpm0/binary_bios_measurements of a machine that booted the
image. It leads to registers 0 to 9; what is measured after the firmware handed over is not in it.

Example:
  occlude attest measure tpm --event-log binary_bios_measurements \\
    --attestation-key 3f…c2 > policy.toml")]
    Tpm {
        /// The log.
        #[arg(long, value_name = "FILE")]
        event_log: PathBuf,
        /// A key that may sign quotes, by the fingerprint that `occlude attest verify` shows; may be repeated.
        #[arg(long, value_name = "HEX")]
        attestation_key: Vec<KeyFingerprint>,
        /// An owner whose models may be served; may be repeated.
        #[arg(long, value_name = "PUBLIC")]
        owner: Vec<OwnerPublic>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MeasureSnpArguments {
    /// The firmware: an OVMF built for SEV.
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware: PathBuf,
    /// The kernel, where the firmware starts one directly.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's initial file system.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub(crate) append: Option<String>,
    /// Virtual processors.
    #[arg(long, value_name = "N")]
    pub(crate) processors: u32,
    /// Their type, as QEMU names it.
    #[arg(long, value_name = "TYPE")]
    pub(crate) processor_type: String,
    /// The guest's SEV features, as hexadecimal digits: 1 is SEV-SNP alone.
    #[arg(long, value_name = "HEX", default_value = "1", value_parser = hexadecimal_number)]
    pub(crate) features: u64,
    /// An owner whose models may be served; may be repeated.
    #[arg(long, value_name = "PUBLIC")]
    pub(crate) owner: Vec<OwnerPublic>,
}

fn hexadecimal_number(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
}

/// Where evidence is collected.
#[derive(Debug, Args)]
pub(crate) struct EvidenceOptions {
    /// The TPM, where the TEE has one: a device, or the socket of a TPM in software
    /// [default: /dev/tpmrm0].
    #[arg(long, value_name = "PATH", env = "OCCLUDE_TPM")]
    pub(crate) tpm: Option<PathBuf>,
    /// What else evidence is collected of, beside the TEE: tpm, nvidia, or both with a comma
    /// between. A policy names it in `additional`.
    #[arg(
        long = "additional-evidence",
        id = "additional-evidence",
        value_name = "KINDS",
        env = "OCCLUDE_ADDITIONAL_EVIDENCE",
        value_delimiter = ','
    )]
    pub(crate) additional: Vec<TeeKind>,
    /// What fetches evidence of GPUs (nvidia): a program and its arguments, with spaces
    /// between, such as `nvattest collect-evidence --nonce`. The nonce of 32 bytes is added
    /// as hexadecimal digits.
    #[arg(
        long = "gpu-evidence-command",
        id = "gpu-evidence-command",
        value_name = "COMMAND",
        env = "OCCLUDE_GPU_EVIDENCE_COMMAND",
        value_delimiter = ' '
    )]
    pub(crate) gpu_command: Vec<String>,
    /// What fetches evidence where no interface of the kernel's gives it (trustzone): a
    /// program and its arguments, with spaces between. The 64 bytes that the evidence is to
    /// carry are added as hexadecimal digits.
    #[arg(
        long = "evidence-command",
        id = "evidence-command",
        value_name = "COMMAND",
        env = "OCCLUDE_EVIDENCE_COMMAND",
        value_delimiter = ' '
    )]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CollateralAction {
    /// Fetch what vendors publish for the hardware that evidence comes from: AMD's
    /// certificate of the chip and revocation list, Intel's collateral, NVIDIA's manifests.
    /// What is there already and still holds is kept.
    Fetch(Box<FetchArguments>),
    /// List certificates, revocation lists and Intel's collateral, with the time that each
    /// holds until; what is over is marked.
    List {
        /// The folder.
        #[arg(long, value_name = "FOLDER", env = "OCCLUDE_COLLATERAL")]
        cache: PathBuf,
        /// As of this time, such as 2026-11-27T12:00:00Z [default: now].
        #[arg(long, value_name = "TIME")]
        at: Option<UnixTime>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing that comes is believed for where it comes from: it is verified where it is used, up to
the vendors' roots, which are part of this program. A service can withhold, not forge.

Examples:
  occlude attest collect --tee snp --report-data 00…00 -o evidence.json
  occlude attest collateral fetch --cache collateral --evidence evidence.json
  occlude attest collateral fetch --cache collateral --evidence quote.bin --tee tdx \\
    --intel-url https://pccs.example")]
pub(crate) struct FetchArguments {
    /// The folder, made if it is not there.
    #[arg(long, value_name = "FOLDER", env = "OCCLUDE_COLLATERAL")]
    pub(crate) cache: PathBuf,
    /// The evidence: a file as `attest verify` takes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) evidence: PathBuf,
    /// Of which kind of TEE it is, if the file does not say.
    #[arg(long, value_name = "KIND")]
    pub(crate) tee: Option<TeeKind>,
    /// AMD's service.
    #[arg(long, value_name = "URL", default_value = AMD)]
    pub(crate) amd_url: Url,
    /// Intel's service, or a cache of it (PCCS).
    #[arg(long, value_name = "URL", default_value = INTEL)]
    pub(crate) intel_url: Url,
    /// NVIDIA's service.
    #[arg(long, value_name = "URL", default_value = NVIDIA)]
    pub(crate) nvidia_url: Url,
    /// Fetch what is there and still holds as well.
    #[arg(long)]
    pub(crate) again: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("from").required(true).args(["url", "evidence"])),
    after_help = "\
Recorded evidence is verified offline. The file is a server's answer, evidence as Occlude
writes it, or with --tee what that technology itself gives: for snp the 1,184 bytes of a
report, for tdx and sgx a quote, for cca and trustzone a token, as they are or as
hexadecimal digits, or the KBS protocol's JSON. What it has to
be bound to is given as --report-data, or as --nonce and the statement of the server that
was asked. Evidence that nobody compares with a binding may have been recorded anywhere:
then its claims are printed, and the exit code is 3.

Examples:
  occlude attest verify https://models.example --policy policy.toml
  occlude attest verify --evidence report.bin --tee snp --collateral amd \\
    --policy policy.toml --report-data 00…00 --at 2025-06-01T00:00:00Z"
)]
pub(crate) struct AttestVerifyArguments {
    /// The server.
    #[arg(value_name = "URL")]
    pub(crate) url: Option<Url>,
    #[command(flatten)]
    pub(crate) recorded: RecordedArguments,
    #[command(flatten)]
    pub(crate) policy: PolicySource,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Evidence in a file, and what it has to be bound to.
#[derive(Debug, Args)]
pub(crate) struct RecordedArguments {
    /// Verify this file instead of a server.
    #[arg(long, value_name = "FILE")]
    pub(crate) evidence: Option<PathBuf>,
    /// The kind of TEE that it is of, where the file does not say so.
    #[arg(long, value_name = "KIND", requires = "evidence")]
    pub(crate) tee: Option<TeeKind>,
    /// The 64 bytes that it has to carry, as 128 hexadecimal digits.
    #[arg(
        long,
        value_name = "HEX",
        requires = "evidence",
        conflicts_with_all = ["nonce", "statement"]
    )]
    pub(crate) report_data: Option<Binding>,
    /// The nonce that the server was asked with.
    #[arg(long, value_name = "HEX", requires = "evidence")]
    pub(crate) nonce: Option<Nonce>,
    /// The server's statement; by default the one in its answer.
    #[arg(long, value_name = "FILE", requires = "nonce")]
    pub(crate) statement: Option<PathBuf>,
    /// Verify as of this time, such as 2026-11-27T12:00:00Z [default: now].
    #[arg(long, value_name = "TIME", requires = "evidence")]
    pub(crate) at: Option<UnixTime>,
}
