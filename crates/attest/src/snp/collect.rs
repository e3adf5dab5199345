//! Collecting a report inside the virtual machine: through configfs-tsm where the
//! kernel has it, else from `/dev/sev-guest`. Either gives the certificates that the
//! host has for the chip, if it has any.

use sev::firmware::guest::Firmware;
use sev::firmware::host::{CertTableEntry, CertType};
use uuid::Uuid;

use super::report::{Body, Report};
use crate::machine::Machine;
use crate::tsm;
use crate::{Binding, CollectError, Evidence, TeeKind, VerifyError};

/// What the kernel calls the provider of reports.
const PROVIDER: &str = "sev_guest";

/// The device of kernels before 6.7.
const DEVICE: &str = "/dev/sev-guest";

/// Bytes of an entry of the host's table: a GUID, an offset and a length (AMD 56421,
/// "SEV-ES Guest-Hypervisor Communication Block", section 4.1.8.1).
const ENTRY_BYTES: usize = 24;

/// More certificates than a host has for one chip: root, intermediate, the chip's,
/// the cloud's and a revocation list.
const MAX_ENTRIES: usize = 16;

/// Whether this machine can be asked for a report.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    if machine.path(tsm::FOLDER).is_dir() || machine.path(DEVICE).exists() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee: TeeKind::Snp,
        missing: format!("neither {} nor {DEVICE} is there", tsm::FOLDER),
    })
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    if machine.path(tsm::FOLDER).is_dir() {
        let collected = tsm::collect(machine, PROVIDER, binding)?;
        return evidence_of_report_and_table(&collected.report, &collected.auxiliary)
            .map_err(|source| CollectError::Unusable { source });
    }
    check_present(machine)?;
    let path = machine.path(DEVICE);
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| CollectError::Io {
        path: path.clone(),
        source: std::io::Error::other(source),
    };
    let mut device = Firmware::open().map_err(|error| refused(error.into()))?;
    let (report, table) = device
        .get_ext_report(None, Some(*binding.as_bytes()), None)
        .map_err(|error| refused(error.to_string().into()))?;
    evidence(&report, table.unwrap_or_default()).map_err(|source| CollectError::Unusable { source })
}

/// Evidence from a report's bytes and the certificates that came along.
fn evidence(report: &[u8], table: Vec<CertTableEntry>) -> Result<Evidence, VerifyError> {
    let report = Report::parse(report)?;
    let body = Body {
        attestation_report: report.fields,
        cert_chain: (!table.is_empty()).then_some(table),
    };
    let body = serde_json::to_value(body).expect("a report has a JSON form");
    Ok(Evidence::new(TeeKind::Snp, body))
}

/// Evidence from a report's 1,184 bytes, without certificates: those are then to be in
/// the verifier's collateral.
///
/// # Errors
/// [`VerifyError::Malformed`], [`VerifyError::Unsupported`].
pub fn evidence_of_report(report: &[u8]) -> Result<Evidence, VerifyError> {
    evidence(report, Vec::new())
}

/// Evidence from a report and the host's table of certificates, as configfs-tsm gives
/// both.
///
/// # Errors
/// The same, also of the table.
pub fn evidence_of_report_and_table(report: &[u8], table: &[u8]) -> Result<Evidence, VerifyError> {
    evidence(report, host_table(table)?)
}

/// Reads the host's table (GUIDs in the order in which they are written down): entries up to one of zeros, each with the place of its
/// certificate in the same bytes. What is not known there is left out: the host can
/// put anything into it.
fn host_table(bytes: &[u8]) -> Result<Vec<CertTableEntry>, VerifyError> {
    let mut table = Vec::new();
    for entry in bytes.chunks_exact(ENTRY_BYTES).take(MAX_ENTRIES) {
        let (guid, place) = entry.split_at(16);
        if guid.iter().all(|byte| *byte == 0) {
            break;
        }
        let number = |at: usize| {
            let bytes = [place[at], place[at + 1], place[at + 2], place[at + 3]];
            u32::from_le_bytes(bytes) as usize
        };
        let (start, length) = (number(0), number(4));
        let data = start
            .checked_add(length)
            .and_then(|end| bytes.get(start..end))
            .ok_or_else(|| VerifyError::Malformed {
                reason: format!(
                    "the host's table of {} bytes has a certificate of {length} bytes at {start}",
                    bytes.len()
                ),
            })?;
        let kind = Uuid::from_slice(guid)
            .ok()
            .and_then(|guid| CertType::try_from(&guid).ok());
        match kind {
            None | Some(CertType::OTHER(_) | CertType::Empty | CertType::CRL) => {}
            Some(kind) => table.push(CertTableEntry::new(kind, data.to_vec())),
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VCEK: &str = "63da758d-e664-4564-adc5-f4b93be8accd";
    const CRL: &str = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea";

    fn entry(guid: &str, start: u32, length: u32) -> Vec<u8> {
        let guid: Uuid = guid.parse().unwrap();
        [
            &guid.as_bytes()[..],
            &start.to_le_bytes(),
            &length.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn the_hosts_table_is_read_up_to_the_entry_of_zeros() {
        let mut bytes = entry(VCEK, 72, 4);
        bytes.extend(entry(CRL, 0, 72));
        bytes.extend([0; ENTRY_BYTES]);
        bytes.extend(b"vcek, and nothing more");
        assert_eq!(
            host_table(&bytes).unwrap(),
            [CertTableEntry::new(CertType::VCEK, b"vcek".to_vec())]
        );
        assert_eq!(host_table(&[]).unwrap(), []);
        assert_eq!(host_table(&[1; ENTRY_BYTES - 1]).unwrap(), []);
    }

    #[test]
    fn a_certificate_beyond_the_hosts_table_is_refused() {
        for (start, length) in [(24, 1), (25, 0), (u32::MAX, 1), (0, u32::MAX)] {
            assert_eq!(
                host_table(&entry(VCEK, start, length)),
                Err(VerifyError::Malformed {
                    reason: format!(
                        "the host's table of 24 bytes has a certificate of {length} bytes at {start}"
                    )
                })
            );
        }
    }

    #[test]
    fn a_table_without_an_end_is_read_up_to_a_limit() {
        let bytes = entry(VCEK, 0, 1).repeat(100);
        assert_eq!(host_table(&bytes).unwrap().len(), MAX_ENTRIES);
    }

    #[test]
    fn a_machine_without_the_interface_says_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        let said =
            "this is no snp: neither /sys/kernel/config/tsm/report nor /dev/sev-guest is there";
        assert_eq!(check_present(&machine).unwrap_err().to_string(), said);
        let binding = Binding::from([1; 64]);
        assert_eq!(collect(&machine, &binding).unwrap_err().to_string(), said);
    }
}
