//! The kinds of trusted execution environment, by the names they have in
//! policies, statements, evidence and on the command line.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// A kind of trusted execution environment.
///
/// The names are those of the KBS protocol where it has one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TeeKind {
    /// No TEE at all: a program that says it is one. For development.
    Simulated,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// Intel SGX.
    Sgx,
    /// AMD SEV-SNP behind Azure's vTPM.
    AzSnpVtpm,
    /// Intel TDX behind Azure's vTPM.
    AzTdxVtpm,
    /// AWS Nitro Enclaves.
    Nitro,
    /// Arm Confidential Compute Architecture.
    Cca,
    /// A platform built on Arm `TrustZone`.
    #[serde(rename = "trustzone")]
    TrustZone,
    /// IBM Secure Execution.
    Se,
    /// A TPM: measured boot, which does not hide memory.
    Tpm,
    /// Intel TXT: measured launch, which does not hide memory.
    Txt,
    /// An NVIDIA GPU in confidential computing mode.
    Nvidia,
}

impl TeeKind {
    /// All kinds.
    pub const ALL: [Self; 13] = [
        Self::Simulated,
        Self::Snp,
        Self::Tdx,
        Self::Sgx,
        Self::AzSnpVtpm,
        Self::AzTdxVtpm,
        Self::Nitro,
        Self::Cca,
        Self::TrustZone,
        Self::Se,
        Self::Tpm,
        Self::Txt,
        Self::Nvidia,
    ];

    /// What a policy accepts that names no kinds: those whose hardware hides
    /// memory from the machine's administrator.
    pub const DEFAULT: [Self; 8] = [
        Self::Snp,
        Self::Tdx,
        Self::Sgx,
        Self::AzSnpVtpm,
        Self::AzTdxVtpm,
        Self::Nitro,
        Self::Cca,
        Self::Se,
    ];

    /// What can come along beside a TEE, bound to the same nonce and statement.
    pub const ADDITIONAL: [Self; 2] = [Self::Tpm, Self::Nvidia];

    /// The name, as in policies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::Sgx => "sgx",
            Self::AzSnpVtpm => "az-snp-vtpm",
            Self::AzTdxVtpm => "az-tdx-vtpm",
            Self::Nitro => "nitro",
            Self::Cca => "cca",
            Self::TrustZone => "trustzone",
            Self::Se => "se",
            Self::Tpm => "tpm",
            Self::Txt => "txt",
            Self::Nvidia => "nvidia",
        }
    }
}

impl Display for TeeKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// No TEE has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
#[non_exhaustive]
pub struct TeeKindError {
    /// What was given, cut to 80 characters.
    pub found: String,
}

/// A name that comparisons of TEEs have, and that nothing can be run on.
const SILENT_LAKE: &str = "silent-lake";

impl TeeKindError {
    fn reason(&self) -> String {
        if self.found == SILENT_LAKE {
            return "Silent Lake, of Intel's Atom processors, cannot be had any more, and neither \
                    its attestation nor anything to verify it was ever published: use sgx for an \
                    enclave or tdx for a virtual machine, which are what Intel has instead"
                .to_owned();
        }
        format!(
            "{:?} is not a kind of TEE: expected one of {}",
            self.found,
            TeeKind::ALL.map(TeeKind::name).join(", ")
        )
    }
}

impl FromStr for TeeKind {
    type Err = TeeKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| TeeKindError {
                found: text.chars().take(80).collect(),
            })
    }
}

/// Which TEE a server is to use: one that is named, or the most trustworthy that the
/// machine shows, `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TeeChoice {
    /// The most trustworthy that is present, never the simulated one.
    Automatic,
    /// This one.
    Named(TeeKind),
}

/// The word for [`TeeChoice::Automatic`].
const AUTOMATIC: &str = "auto";

impl Display for TeeChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Automatic => f.write_str(AUTOMATIC),
            Self::Named(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for TeeChoice {
    type Err = TeeKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == AUTOMATIC {
            return Ok(Self::Automatic);
        }
        text.parse().map(Self::Named)
    }
}

impl TryFrom<String> for TeeChoice {
    type Error = TeeKindError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TeeChoice> for String {
    fn from(choice: TeeChoice) -> Self {
        choice.to_string()
    }
}

impl From<TeeKind> for TeeChoice {
    fn from(kind: TeeKind) -> Self {
        Self::Named(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name_in_text_and_json() {
        for kind in TeeKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(
                serde_json::to_value(kind).unwrap(),
                serde_json::Value::from(kind.name())
            );
        }
    }

    #[test]
    fn a_choice_is_a_kind_or_auto() {
        assert_eq!("auto".parse(), Ok(TeeChoice::Automatic));
        assert_eq!("snp".parse(), Ok(TeeChoice::Named(TeeKind::Snp)));
        for choice in [TeeChoice::Automatic, TeeKind::Tdx.into()] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            assert_eq!(serde_json::json!(choice), choice.to_string());
        }
        assert_eq!(
            "best".parse::<TeeChoice>(),
            Err(TeeKindError {
                found: "best".to_owned()
            })
        );
    }

    #[test]
    fn another_name_is_refused() {
        assert_eq!(
            "sample".parse::<TeeKind>(),
            Err(TeeKindError {
                found: "sample".to_owned()
            })
        );
    }

    #[test]
    fn the_default_kinds_leave_out_the_simulated_one() {
        assert!(!TeeKind::DEFAULT.contains(&TeeKind::Simulated));
    }
}
