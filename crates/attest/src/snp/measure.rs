//! What a launch will measure, computed from its image ("SEV Secure Nested Paging Firmware
//! ABI Specification", AMD 56860, section 8.17.2), with the `sev` crate: of QEMU, as it
//! starts a kernel directly or the firmware alone.

use std::path::{Path, PathBuf};

use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};

use crate::Measurement;

/// What a machine is launched from, and how.
#[derive(Debug, Clone)]
pub struct LaunchImage {
    /// The firmware: an OVMF built for SEV.
    pub firmware: PathBuf,
    /// The kernel that the firmware starts, if it is given one.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: Option<String>,
    /// Virtual processors, from 1.
    pub processors: u32,
    /// Their type, as QEMU names it: `EPYC-v4`, `EPYC-Milan`, `EPYC-Genoa-v1`.
    pub processor_type: String,
    /// The guest's features (`SEV_FEATURES`), 1 for SEV-SNP alone.
    pub features: u64,
}

/// Why nothing can be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A type of processor that is not known.
    #[error("{found:?} is no type of processor: expected one of {}", types().join(", "))]
    ProcessorType {
        /// What was given, cut to 80 characters.
        found: String,
    },
    /// No processor, or more than any machine has.
    #[error("{found} processors, a machine has 1 to {MAX_PROCESSORS}")]
    Processors {
        /// What was given.
        found: u32,
    },
    /// A firmware that was not built for this.
    #[error("{}: it is no firmware for SEV-SNP: {reason}", path.display())]
    Firmware {
        /// The file.
        path: PathBuf,
        /// What its parser says, cut to 200 characters.
        reason: String,
    },
}

/// More processors than any machine has: each is measured, a page for each.
const MAX_PROCESSORS: u32 = 4096;

/// Computes what a launch of `image` will measure.
///
/// # Errors
/// [`MeasureError`].
pub fn measure(image: &LaunchImage) -> Result<Measurement, MeasureError> {
    if image.processors == 0 || image.processors > MAX_PROCESSORS {
        return Err(MeasureError::Processors {
            found: image.processors,
        });
    }
    let known = all_types().find(|known| known.to_string() == image.processor_type);
    let vcpu_type = known.ok_or_else(|| MeasureError::ProcessorType {
        found: image.processor_type.chars().take(80).collect(),
    })?;
    // So that an error names the file.
    for path in [
        Some(&image.firmware),
        image.kernel.as_ref(),
        image.initrd.as_ref(),
    ]
    .into_iter()
    .flatten()
    {
        std::fs::File::open(path).map_err(|source| failed(path, source))?;
    }
    let digest = snp_calc_launch_digest(SnpMeasurementArgs {
        vcpus: image.processors,
        vcpu_type,
        ovmf_file: image.firmware.clone(),
        guest_features: GuestFeatures(image.features),
        kernel_file: image.kernel.clone(),
        initrd_file: image.initrd.clone(),
        append: image.command_line.as_deref(),
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    })
    .map_err(|error| MeasureError::Firmware {
        path: image.firmware.clone(),
        reason: crate::canonical::reason(&error),
    })?;
    let digest = hex::decode(digest.get_hex_ld()).ok();
    Ok(digest
        .and_then(|digest| Measurement::from_bytes(&digest))
        .expect("a launch digest has 48 bytes"))
}

fn all_types() -> impl Iterator<Item = CpuType> {
    (0..=u8::MAX).filter_map(|number| CpuType::try_from(number).ok())
}

fn types() -> Vec<String> {
    all_types().map(|known| known.to_string()).collect()
}

fn failed(path: &Path, source: std::io::Error) -> MeasureError {
    MeasureError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::packaged;

    fn image(firmware: PathBuf) -> LaunchImage {
        LaunchImage {
            firmware,
            kernel: Some("/dev/null".into()),
            initrd: Some("/dev/null".into()),
            command_line: None,
            processors: 1,
            processor_type: "EPYC-v4".to_owned(),
            features: 0x21,
        }
    }

    /// The digests are those of AMD's own tool for QEMU's launches, as the `sev` crate's
    /// tests have them.
    #[test]
    fn launches_measure_what_another_tool_says() {
        let Some(firmware) = packaged("sev-8.0.0", "tests/measurement/ovmf_AmdSev_suffix.bin")
        else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("OVMF.fd");
        std::fs::write(&path, firmware).unwrap();
        let image = image(path);
        let measured = |image: &LaunchImage| measure(image).unwrap().to_string();
        assert_eq!(
            measured(&image),
            "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"
        );
        assert_eq!(
            measured(&LaunchImage {
                features: 1,
                ..image.clone()
            }),
            "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"
        );
        assert_eq!(
            measured(&LaunchImage {
                command_line: Some("console=ttyS0 loglevel=7".to_owned()),
                ..image.clone()
            }),
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"
        );
        assert_eq!(
            measured(&LaunchImage {
                kernel: None,
                initrd: None,
                ..image.clone()
            }),
            "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"
        );
        assert_eq!(
            measured(&LaunchImage {
                processors: 4,
                features: 1,
                ..image
            }),
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"
        );
    }

    #[test]
    fn what_cannot_be_measured_is_told_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let firmware = folder.path().join("OVMF.fd");
        let said = |image: &LaunchImage| measure(image).unwrap_err().to_string();
        let absent = image(firmware.clone());
        assert_eq!(
            said(&absent),
            format!(
                "{}: No such file or directory (os error 2)",
                firmware.display()
            )
        );
        std::fs::write(&firmware, [0; 8192]).unwrap();
        let other = said(&image(firmware.clone()));
        assert!(
            other.starts_with(&format!(
                "{}: it is no firmware for SEV-SNP: ",
                firmware.display()
            )),
            "{other}"
        );
        for processors in [0, 4097] {
            assert_eq!(
                said(&LaunchImage {
                    processors,
                    ..image(firmware.clone())
                }),
                format!("{processors} processors, a machine has 1 to 4096")
            );
        }
        let unknown = said(&LaunchImage {
            processor_type: "Opteron".to_owned(),
            ..image(firmware)
        });
        assert!(
            unknown.starts_with("\"Opteron\" is no type of processor: expected one of EPYC, "),
            "{unknown}"
        );
    }
}
