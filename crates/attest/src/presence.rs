//! Which technologies this machine shows, and how it is known.
//!
//! What is found here is the machine's own word, good for choosing a collector and for
//! telling a person what is missing. Whether it is true is for evidence to show.

use std::fs::OpenOptions;

use crate::machine::Machine;
use crate::{CollectError, TeeKind, azure, cca, tsm};

/// One technology on one machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Presence {
    /// The technology.
    pub tee: TeeKind,
    /// Whether evidence can be collected here.
    pub present: bool,
    /// How that is known: what is there, and what is missing.
    pub because: Vec<String>,
    /// What its collector was tested on.
    pub collection: Collection,
}

/// What a collector was tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Collection {
    /// It runs here, and proves nothing.
    Simulated,
    /// Made-up devices and files alone.
    NeverRunOnHardware,
    /// A TPM in software.
    RunWithTpmInSoftware,
    /// A TPM in software, and a launch that a test makes.
    RunWithSimulatedLaunch,
}

impl std::fmt::Display for Collection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Simulated => "simulated: proves nothing",
            Self::NeverRunOnHardware => "collection never run on hardware",
            Self::RunWithTpmInSoftware => "collection run with a TPM in software alone",
            Self::RunWithSimulatedLaunch => {
                "collection run with a TPM in software and a simulated launch alone"
            }
        })
    }
}

/// What `auto` chooses from, the most trustworthy first: machines that hide memory from
/// the host and whose hardware vouches for itself before those with software of the
/// cloud's beside the guest, and these before one whose vendor is also the host. Never a TEE that only measures, and never the simulated one.
const AUTOMATIC: [TeeKind; 8] = [
    TeeKind::Tdx,
    TeeKind::Snp,
    TeeKind::Cca,
    TeeKind::Sgx,
    TeeKind::Se,
    TeeKind::AzTdxVtpm,
    TeeKind::AzSnpVtpm,
    TeeKind::Nitro,
];

impl TeeKind {
    /// Whether `auto` may choose it: it hides a whole program's memory from the host.
    #[must_use]
    pub fn is_chosen_automatically(self) -> bool {
        AUTOMATIC.contains(&self)
    }
}

/// Every technology, in the order of [`TeeKind::ALL`].
#[must_use]
pub fn survey(machine: &Machine) -> Vec<Presence> {
    let provider = tsm::provider(machine);
    TeeKind::ALL
        .into_iter()
        .map(|tee| presence(machine, tee, provider.as_deref()))
        .collect()
}

/// The most trustworthy technology of those that are present, if any is.
#[must_use]
pub fn automatic(machine: &Machine) -> Option<TeeKind> {
    let provider = tsm::provider(machine);
    AUTOMATIC
        .into_iter()
        .find(|tee| presence(machine, *tee, provider.as_deref()).present)
}

fn presence(machine: &Machine, tee: TeeKind, provider: Option<&str>) -> Presence {
    let mut because = Vec::new();
    let (present, collection) = match tee {
        TeeKind::Simulated => {
            let built_in = cfg!(feature = "simulated");
            because.push(if built_in {
                "built in, for development only".to_owned()
            } else {
                "this build lacks the `simulated` feature".to_owned()
            });
            (built_in, Collection::Simulated)
        }
        TeeKind::Snp => {
            let by_kernel = told_by(provider, "sev_guest", &mut because);
            let by_device = usable(machine, "/dev/sev-guest", &mut because);
            (by_kernel || by_device, Collection::NeverRunOnHardware)
        }
        TeeKind::Tdx => {
            let by_kernel = told_by(provider, "tdx_guest", &mut because);
            if !by_kernel && machine.path("/dev/tdx_guest").exists() {
                because.push(format!(
                    "/dev/tdx_guest is there, and quotes need {}: Linux 6.7 or later with CONFIG_TSM_REPORTS, configfs mounted",
                    tsm::FOLDER
                ));
            }
            (by_kernel, Collection::NeverRunOnHardware)
        }
        TeeKind::Sgx => {
            let inside = usable(machine, "/dev/attestation/user_report_data", &mut because);
            if !inside && machine.path("/dev/sgx_enclave").exists() {
                because.push(
                    "/dev/sgx_enclave is there, and this process is not in an enclave: start it under Gramine, with sgx.remote_attestation = \"dcap\" in its manifest".to_owned(),
                );
            }
            (inside, Collection::NeverRunOnHardware)
        }
        TeeKind::Nitro => {
            let inside = usable(machine, "/dev/nsm", &mut because);
            (inside, Collection::NeverRunOnHardware)
        }
        TeeKind::Cca => {
            let by_kernel = told_by(provider, cca::PROVIDER, &mut because);
            (by_kernel, Collection::NeverRunOnHardware)
        }
        TeeKind::Tpm => (
            usable(machine, "/dev/tpmrm0", &mut because),
            Collection::RunWithTpmInSoftware,
        ),
        TeeKind::Txt => {
            let tpm = usable(machine, "/dev/tpmrm0", &mut because);
            if tpm {
                because.push("whether there was a launch is in its registers".to_owned());
            }
            (tpm, Collection::RunWithSimulatedLaunch)
        }
        TeeKind::AzSnpVtpm => (
            found(&azure::check_present_snp(machine), &mut because),
            Collection::RunWithTpmInSoftware,
        ),
        TeeKind::AzTdxVtpm => (
            found(&azure::check_present_tdx(machine), &mut because),
            Collection::RunWithTpmInSoftware,
        ),
        TeeKind::Se => (
            usable(machine, "/dev/uv", &mut because),
            Collection::NeverRunOnHardware,
        ),
        TeeKind::TrustZone => {
            because.push(
                "its token is fetched by a command: give one with --evidence-command".to_owned(),
            );
            (false, Collection::NeverRunOnHardware)
        }
        TeeKind::Nvidia => {
            // Not opened: the driver would set the GPU up for it.
            because.push(match machine.path("/dev/nvidia0").exists() {
                true => "/dev/nvidia0 is there".to_owned(),
                false => "/dev/nvidia0 is not there".to_owned(),
            });
            because.push(
                "evidence of a GPU comes along beside a TEE's and is fetched by a command: give one with --gpu-evidence-command".to_owned(),
            );
            (false, Collection::NeverRunOnHardware)
        }
    };
    Presence {
        tee,
        present,
        because,
        collection,
    }
}

/// Whether the kernel's interface for reports is this technology's.
fn told_by(provider: Option<&str>, expected: &str, because: &mut Vec<String>) -> bool {
    let found = provider == Some(expected);
    because.push(match provider {
        Some(_) if found => format!("{} gives reports of {expected}", tsm::FOLDER),
        Some(other) => format!("{} gives reports of {other}", tsm::FOLDER),
        None => format!("{} gives no reports", tsm::FOLDER),
    });
    found
}

/// Whether a machine's TPM is a paravisor's.
fn found(present: &Result<(), CollectError>, because: &mut Vec<String>) -> bool {
    because.push(match present {
        Ok(()) => "the TPM has a paravisor's report".to_owned(),
        Err(CollectError::NotPresent { missing, .. }) => missing.clone(),
        Err(error) => error.to_string(),
    });
    present.is_ok()
}

/// Whether a device is there and may be opened.
fn usable(machine: &Machine, device: &str, because: &mut Vec<String>) -> bool {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .open(machine.path(device))
    {
        Ok(_) => {
            because.push(format!("{device} is there"));
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            because.push(format!("{device} is not there"));
            false
        }
        Err(error) => {
            because.push(format!("{device} is there, and cannot be opened: {error}"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(devices: &[&str]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        for device in devices {
            let path = machine.path(device);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        (root, machine)
    }

    fn of(machine: &Machine, tee: TeeKind) -> Presence {
        let found = survey(machine).into_iter().find(|one| one.tee == tee);
        found.unwrap()
    }

    #[test]
    fn a_machine_without_any_technology_says_what_is_missing_of_each() {
        let (_root, machine) = machine(&[]);
        let found = survey(&machine);
        assert_eq!(found.len(), TeeKind::ALL.len());
        for one in found.iter().filter(|one| one.tee != TeeKind::Simulated) {
            assert!(!one.present, "{one:?}");
        }
        assert_eq!(
            of(&machine, TeeKind::Snp).because,
            [
                "/sys/kernel/config/tsm/report gives no reports",
                "/dev/sev-guest is not there"
            ]
        );
        assert_eq!(automatic(&machine), None);
    }

    #[test]
    fn auto_chooses_the_most_trustworthy_and_never_one_that_only_measures() {
        let (_root, some) = machine(&["/dev/tpmrm0", "/dev/nsm", "/dev/sev-guest"]);
        assert_eq!(automatic(&some), Some(TeeKind::Snp));
        let (_root, nitro) = machine(&["/dev/tpmrm0", "/dev/nsm"]);
        assert_eq!(automatic(&nitro), Some(TeeKind::Nitro));
        let (_root, measured) = machine(&["/dev/tpmrm0"]);
        assert_eq!(automatic(&measured), None);
    }

    #[test]
    fn a_technology_that_is_half_there_says_what_else_it_needs() {
        let (_root, machine) = machine(&["/dev/tdx_guest", "/dev/sgx_enclave"]);
        for (tee, said) in [
            (TeeKind::Tdx, "CONFIG_TSM_REPORTS"),
            (TeeKind::Sgx, "start it under Gramine"),
        ] {
            let found = of(&machine, tee);
            assert!(!found.present);
            assert!(found.because.last().unwrap().contains(said), "{found:?}");
        }
    }

    #[test]
    fn the_kernels_interface_says_whose_reports_it_gives() {
        let (_root, machine) = machine(&[]);
        assert!(told_by(Some("tdx_guest"), "tdx_guest", &mut Vec::new()));
        let mut because = Vec::new();
        assert!(!told_by(Some("tdx_guest"), "sev_guest", &mut because));
        assert_eq!(
            because,
            ["/sys/kernel/config/tsm/report gives reports of tdx_guest"]
        );
        assert_eq!(tsm::provider(&machine), None);
    }
}
