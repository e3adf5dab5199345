//! Collecting evidence inside a TEE.

use std::path::PathBuf;

use crate::machine::Machine;
use crate::{
    AdditionalEvidence, Binding, ConfigurationDigest, Evidence, TeeChoice, TeeKind, VerifyError,
    azure, cca, nitro, nvidia, presence, se, sgx, snp, tdx, tpm, trustzone, txt,
};

/// The TEE that this process runs in.
#[derive(Debug)]
pub struct Attester {
    backend: Backend,
    additional: Vec<(TeeKind, Collect)>,
    machine: Machine,
}

#[derive(Debug)]
enum Backend {
    #[cfg(feature = "simulated")]
    Simulated(crate::simulated::SimulatedTee),
    Machine {
        kind: TeeKind,
        collect: Collect,
    },
    SecureExecution,
}

/// Whether a machine shows one kind of TEE.
type CheckPresent = fn(&Machine) -> Result<(), CollectError>;

/// Collects evidence of one kind that carries a binding.
type Collect = fn(&Machine, &Binding) -> Result<Evidence, CollectError>;

/// Why no evidence can be collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// The simulated TEE was asked for, and this build has none.
    #[error(
        "this build has no simulated TEE: it lacks the `simulated` feature, which is for development only"
    )]
    SimulatedDisabled,
    /// This machine does not show that kind of TEE.
    #[error("this is no {tee}: {missing}")]
    NotPresent {
        /// The kind.
        tee: TeeKind,
        /// What would show it.
        missing: String,
    },
    /// A technology whose evidence a command of the operator's fetches, and there is none.
    #[error("no command fetches this evidence: give one with --evidence-command")]
    NoCommand,
    /// A TEE that answers a verifier's request, and none came.
    #[error(
        "IBM Secure Execution answers a verifier's request, and none came: the verifier needs the machine's host key document and the image's header in its collateral"
    )]
    NoRequest,
    /// A verifier's request that is none.
    #[error("the verifier's request cannot be used: {reason}")]
    Request {
        /// What is wrong with it, cut to 200 characters.
        reason: String,
    },
    /// A GPU whose evidence a command of the operator's fetches, and there is none.
    #[error("no command fetches a GPU's evidence: give one with --gpu-evidence-command")]
    NoGpuCommand,
    /// Something that does not come along beside a TEE.
    #[error(
        "evidence of {tee} does not come along beside another: expected {}",
        TeeKind::ADDITIONAL.map(TeeKind::name).join(" or ")
    )]
    NotAdditional {
        /// The kind.
        tee: TeeKind,
    },
    /// A process whose protections were left out on purpose.
    #[error("a weakened process gets no evidence of hardware: only the simulated TEE")]
    Weakened,
    /// This machine shows no TEE that hides its memory.
    #[error(
        "no TEE that hides memory is present: `occlude tee list` says what is missing of each; the simulated one is never chosen, only named"
    )]
    NonePresent,
    /// The kernel's interface is there, for another technology.
    #[error("the kernel gives reports of {found} here, not of {expected}")]
    OtherProvider {
        /// The provider's name.
        found: String,
        /// The one that was wanted.
        expected: String,
    },
    /// Somebody else asked for a report in the same place at the same time.
    #[error("{}: somebody else wrote into it, so its report is not used", path.display())]
    Disturbed {
        /// The place.
        path: PathBuf,
    },
    /// What the hardware gave cannot be read.
    #[error("what the TEE gave cannot be used: {source}")]
    Unusable {
        /// Why.
        source: VerifyError,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Attester {
    /// Opens the TEE this process runs in. Where that kind measures a
    /// configuration, `configuration` is what it measures.
    ///
    /// # Errors
    /// [`CollectError`]: no such TEE in this build, in this version or here.
    pub fn open(
        choice: impl Into<TeeChoice>,
        configuration: impl Into<ConfigurationDigest>,
    ) -> Result<Self, CollectError> {
        Self::open_on(Machine::default(), choice, configuration)
    }

    /// The same, on a machine whose devices are elsewhere.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn open_on(
        machine: Machine,
        choice: impl Into<TeeChoice>,
        configuration: impl Into<ConfigurationDigest>,
    ) -> Result<Self, CollectError> {
        let kind = match choice.into() {
            TeeChoice::Named(kind) => kind,
            TeeChoice::Automatic => {
                presence::automatic(&machine).ok_or(CollectError::NonePresent)?
            }
        };
        // Hardware would say of it what it says of every other process of this build.
        if occlude_weakening::any() && kind != TeeKind::Simulated {
            return Err(CollectError::Weakened);
        }
        let backend = match kind {
            TeeKind::Simulated => open_simulated(configuration.into())?,
            TeeKind::Se => {
                se::check_present(&machine)?;
                Backend::SecureExecution
            }
            kind => Backend::Machine {
                kind,
                collect: collector(kind, &machine)?,
            },
        };
        Ok(Self {
            backend,
            additional: Vec::new(),
            machine,
        })
    }

    /// The same TEE with evidence of what else the machine has.
    ///
    /// # Errors
    /// [`CollectError`]: not there, or not of a kind that comes along.
    pub fn with_additional(mut self, kinds: &[TeeKind]) -> Result<Self, CollectError> {
        for tee in kinds {
            if !TeeKind::ADDITIONAL.contains(tee) {
                return Err(CollectError::NotAdditional { tee: *tee });
            }
            let collect = collector(*tee, &self.machine)?;
            self.additional.push((*tee, collect));
        }
        Ok(self)
    }

    /// The kind of TEE.
    #[must_use]
    pub fn kind(&self) -> TeeKind {
        match self.backend {
            #[cfg(feature = "simulated")]
            Backend::Simulated(_) => TeeKind::Simulated,
            Backend::Machine { kind, .. } => kind,
            Backend::SecureExecution => TeeKind::Se,
        }
    }

    /// Collects evidence that carries `binding`, with that of what else the machine has.
    ///
    /// # Errors
    /// [`CollectError`] if the TEE gives none.
    pub fn collect(&self, binding: &Binding) -> Result<Evidence, CollectError> {
        self.collect_answering(binding, None)
    }

    /// The same for a verifier that made a request first ([`crate::Verifier::request`]),
    /// which IBM Secure Execution needs and no other kind reads.
    ///
    /// # Errors
    /// [`CollectError`] if the TEE gives none.
    pub fn collect_answering(
        &self,
        binding: &Binding,
        request: Option<&str>,
    ) -> Result<Evidence, CollectError> {
        let additional = self.collect_additional(binding)?;
        let primary = self.collect_primary(&binding.covering(&additional), request)?;
        Ok(primary.with_additional(additional))
    }

    /// Collects evidence of the TEE alone.
    ///
    /// # Errors
    /// [`CollectError`] if the TEE gives none.
    pub fn collect_primary(
        &self,
        binding: &Binding,
        request: Option<&str>,
    ) -> Result<Evidence, CollectError> {
        match &self.backend {
            #[cfg(feature = "simulated")]
            Backend::Simulated(tee) => Ok(tee.collect(binding)),
            Backend::Machine { collect, .. } => collect(&self.machine, binding),
            Backend::SecureExecution => se::collect(binding, request),
        }
    }

    /// Collects evidence of what else the machine has.
    ///
    /// # Errors
    /// [`CollectError`] if a part gives none.
    pub fn collect_additional(
        &self,
        binding: &Binding,
    ) -> Result<AdditionalEvidence, CollectError> {
        let parts = self.additional.iter().map(|(tee, collect)| {
            let evidence = collect(&self.machine, binding)?;
            Ok((*tee, evidence.body().clone()))
        });
        parts.collect()
    }
}

/// What collects evidence of a kind on a machine that shows it.
fn collector(kind: TeeKind, machine: &Machine) -> Result<Collect, CollectError> {
    let (check_present, collect): (CheckPresent, Collect) = match kind {
        // Opened as TEEs of their own, which need more than this.
        TeeKind::Simulated | TeeKind::Se => {
            return Err(CollectError::NotAdditional { tee: kind });
        }
        TeeKind::Nvidia => (nvidia::check_present, nvidia::collect),
        TeeKind::Snp => (snp::check_present, snp::collect),
        TeeKind::Tdx => (tdx::check_present, tdx::collect),
        TeeKind::Sgx => (sgx::check_present, sgx::collect),
        TeeKind::Nitro => (nitro::check_present, nitro::collect),
        TeeKind::AzSnpVtpm => (azure::check_present_snp, azure::collect_snp),
        TeeKind::AzTdxVtpm => (azure::check_present_tdx, azure::collect_tdx),
        TeeKind::Cca => (cca::check_present, cca::collect),
        TeeKind::TrustZone => (trustzone::check_present, trustzone::collect),
        TeeKind::Tpm => (tpm::check_present, tpm::collect),
        TeeKind::Txt => (txt::check_present, txt::collect),
    };
    check_present(machine)?;
    Ok(collect)
}

#[cfg(feature = "simulated")]
fn open_simulated(configuration: ConfigurationDigest) -> Result<Backend, CollectError> {
    let tee = crate::simulated::SimulatedTee::open(configuration)?;
    Ok(Backend::Simulated(tee))
}

#[cfg(not(feature = "simulated"))]
fn open_simulated(_: ConfigurationDigest) -> Result<Backend, CollectError> {
    Err(CollectError::SimulatedDisabled)
}
