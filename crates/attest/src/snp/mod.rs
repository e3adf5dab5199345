//! AMD SEV-SNP: a virtual machine whose memory the processor encrypts, and whose
//! integrity it keeps, against the hypervisor.
//!
//! Evidence is the secure processor's report ("SEV Secure Nested Paging Firmware ABI
//! Specification", AMD 56860, section 7.3), signed by a key of the chip (VCEK) or of
//! the cloud that loaded it (VLEK), which AMD certifies for one chip, one set of
//! firmware versions or both ("Versioned Chip Endorsement Key (VCEK) Certificate and
//! KDS Interface Specification", AMD 57230).
//!
//! It travels as the KBS protocol has it: the report as an object, and the
//! certificates that the host gave along, if it gave any.

mod collect;
mod fetch;
mod measure;
mod report;
mod verify;

use std::fmt::{Display, Formatter};

use occlude_keys::hexadecimal_bytes;

pub(crate) use collect::{check_present, collect};
pub use collect::{evidence_of_report, evidence_of_report_and_table};
pub(crate) use fetch::wanted;
pub use measure::{LaunchImage, MeasureError, measure};
pub(crate) use verify::{verify, verify_bytes};

hexadecimal_bytes! {
    /// What a chip calls itself; of Turin's, the last 56 bytes are zero.
    pub ChipId, 64
}

hexadecimal_bytes! {
    /// A digest of 48 bytes: of the key that signed an identity block, or of its author's.
    pub KeyDigest, 48
}

hexadecimal_bytes! {
    /// 16 bytes that the guest's owner chose: a family or an image.
    pub GuestId, 16
}

hexadecimal_bytes! {
    /// 32 bytes that the host chose at launch.
    pub HostData, 32
}

/// A line of processors, each with a root of its own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SnpProduct {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl SnpProduct {
    /// All lines.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];
}

impl Display for SnpProduct {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
            Self::Turin => "turin",
        })
    }
}

/// Whose key signed a report.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SnpEndorsement {
    /// The chip's own.
    Vcek,
    /// One that a cloud provider loaded into many chips: which chip it is stays hidden.
    Vlek,
}

impl Display for SnpEndorsement {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vcek => "vcek",
            Self::Vlek => "vlek",
        })
    }
}

/// Security versions of the firmware and microcode. They are comparable within one
/// line of processors, component by component.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SnpTcb {
    /// Of the first boot code; Turin and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// Of the secure processor's boot loader.
    pub bootloader: u8,
    /// Of its operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// The microcode's patch level.
    pub microcode: u8,
}

impl SnpTcb {
    /// Whether no component is below that of `floor`.
    #[must_use]
    pub fn reaches(&self, floor: &Self) -> bool {
        self.fmc.unwrap_or(0) >= floor.fmc.unwrap_or(0)
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl Display for SnpTcb {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        write!(
            f,
            "bootloader {}, tee {}, snp {}, microcode {}",
            self.bootloader, self.tee, self.snp, self.microcode
        )
    }
}

/// What a verified report says besides what all evidence says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnpPlatform {
    /// The processor's line.
    pub product: SnpProduct,
    /// The security versions that the signing key stands for: the reported ones.
    pub tcb: SnpTcb,
    /// Whose key signed.
    pub endorsement: SnpEndorsement,
    /// The chip, unless it is hidden.
    pub chip_id: Option<ChipId>,
    /// The privilege level that asked for the report; 0 is the highest.
    pub vmpl: u32,
    /// The guest's own security version.
    pub guest_svn: u32,
    /// The guest's family, from its identity block.
    pub family_id: GuestId,
    /// The guest's image, from its identity block.
    pub image_id: GuestId,
    /// What the host chose at launch.
    pub host_data: HostData,
    /// Whose key signed the identity block; zero if nobody's did.
    pub id_key_digest: KeyDigest,
    /// Whose key signed that one; zero if nobody's did.
    pub author_key_digest: KeyDigest,
    /// Whether the owner allows a migration agent, which can then read all memory.
    pub migration: bool,
    /// Whether the guest may run with simultaneous multithreading.
    pub smt: bool,
    /// Whether the host cannot read ciphertext either.
    pub ciphertext_hiding: bool,
    /// Whether memory was searched for aliases since the last reset (against `BadRAM`).
    pub alias_check: bool,
    /// The version of the report's format.
    pub report_version: u32,
}
