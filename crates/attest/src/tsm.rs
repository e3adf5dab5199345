//! configfs-tsm: how Linux, from 6.7 on, hands out reports of SNP, TDX and CCA alike
//! (Documentation/ABI/testing/configfs-tsm-report).
//!
//! A folder is made for each report, the binding written into it, the report read from
//! it and the folder removed, also on failure. The kernel counts what is written there:
//! if anybody else wrote into the folder meanwhile, the report is thrown away.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::machine::Machine;
use crate::{Binding, CollectError, TeeKind};

/// Where reports are asked for.
pub(crate) const FOLDER: &str = "/sys/kernel/config/tsm/report";

/// The longest report and the longest certificates that are read; the kernel itself
/// gives at most 32 KiB (`TSM_REPORT_OUTBLOB_MAX`).
const MAX_BYTES: u64 = 64 * 1024;

/// What the kernel gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TsmReport {
    /// The report or quote.
    pub(crate) report: Vec<u8>,
    /// What the host sent along; empty if nothing.
    pub(crate) auxiliary: Vec<u8>,
}

/// Whether a machine has the interface, for evidence of `tee`. Whose reports it gives shows
/// when one is asked for.
pub(crate) fn check_present(machine: &Machine, tee: TeeKind) -> Result<(), CollectError> {
    if machine.path(FOLDER).is_dir() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee,
        missing: format!("{FOLDER} is not there"),
    })
}

/// Asks for a report that carries `binding`, from the provider of that name.
pub(crate) fn collect(
    machine: &Machine,
    provider: &str,
    binding: &Binding,
) -> Result<TsmReport, CollectError> {
    let folder = new_folder(machine);
    fs::create_dir(&folder).map_err(|source| failed(&folder, source))?;
    let _removed = Removed(&folder);
    exchange(&folder, provider, binding)
}

/// Whose reports the kernel gives, if it gives any and this process may ask.
pub(crate) fn provider(machine: &Machine) -> Option<String> {
    let folder = new_folder(machine);
    fs::create_dir(&folder).ok()?;
    let _removed = Removed(&folder);
    read_text(&folder.join("provider")).ok()
}

/// A name that no other report of this or another process has.
fn new_folder(machine: &Machine) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("occlude-{}-{next}", std::process::id());
    machine.path(FOLDER).join(name)
}

/// Removes the folder, whatever happened.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // An entry that cannot be removed holds one report and nothing secret.
        let _ = fs::remove_dir(self.0);
    }
}

fn exchange(folder: &Path, provider: &str, binding: &Binding) -> Result<TsmReport, CollectError> {
    let found = read_text(&folder.join("provider"))?;
    if found != provider {
        return Err(CollectError::OtherProvider {
            found,
            expected: provider.to_owned(),
        });
    }
    let generation = folder.join("generation");
    let before: u64 = number(&generation)?;
    let input = folder.join("inblob");
    OpenOptions::new()
        .write(true)
        .open(&input)
        .and_then(|mut file| file.write_all(binding.as_bytes()))
        .map_err(|source| failed(&input, source))?;
    let report = read(&folder.join("outblob"))?;
    let auxiliary = match read(&folder.join("auxblob")) {
        Err(CollectError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Vec::new()
        }
        read => read?,
    };
    if number(&generation)? != before + 1 {
        return Err(CollectError::Disturbed {
            path: folder.to_owned(),
        });
    }
    Ok(TsmReport { report, auxiliary })
}

fn number(path: &Path) -> Result<u64, CollectError> {
    let text = read_text(path)?;
    text.parse()
        .map_err(|error| failed(path, std::io::Error::other(error)))
}

fn read_text(path: &Path) -> Result<String, CollectError> {
    let text = String::from_utf8(read(path)?);
    text.map(|text| text.trim().to_owned())
        .map_err(|error| failed(path, std::io::Error::other(error)))
}

fn read(path: &Path) -> Result<Vec<u8>, CollectError> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| failed(path, source))?;
    Ok(bytes)
}

fn failed(path: &Path, source: std::io::Error) -> CollectError {
    CollectError::Io {
        path: PathBuf::from(path),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding::from([0x5a; 64])
    }

    /// An entry as a kernel would show it that took the binding already.
    fn entry(provider: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("provider", format!("{provider}\n").as_bytes()),
            ("generation", b"0\n"),
            ("inblob", b""),
            ("outblob", b"a report"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    /// Counts as the kernel does: once for each time that `inblob` was written.
    fn counting(folder: &Path, more: u64) -> std::thread::JoinHandle<()> {
        let (input, generation) = (folder.join("inblob"), folder.join("generation"));
        // The report is read through a pipe, so that it is made after the write.
        let output = folder.join("outblob");
        fs::remove_file(&output).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &output,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        std::thread::spawn(move || {
            let mut pipe = OpenOptions::new().write(true).open(&output).unwrap();
            let written = fs::read(&input).unwrap();
            fs::write(&generation, format!("{}\n", 1 + more)).unwrap();
            pipe.write_all(b"a report over ").unwrap();
            pipe.write_all(&written).unwrap();
        })
    }

    #[test]
    fn a_report_is_asked_for_with_the_whole_binding() {
        let folder = entry("sev_guest");
        let kernel = counting(folder.path(), 0);
        let report = exchange(folder.path(), "sev_guest", &binding()).unwrap();
        kernel.join().unwrap();
        assert_eq!(
            report.report,
            [b"a report over ", &binding().as_bytes()[..]].concat()
        );
        assert_eq!(report.auxiliary, b"");
    }

    #[test]
    fn what_the_host_sent_along_is_read_too() {
        let folder = entry("sev_guest");
        fs::write(folder.path().join("auxblob"), b"certificates").unwrap();
        let kernel = counting(folder.path(), 0);
        let report = exchange(folder.path(), "sev_guest", &binding()).unwrap();
        kernel.join().unwrap();
        assert_eq!(report.auxiliary, b"certificates");
    }

    #[test]
    fn a_report_is_thrown_away_if_somebody_else_wrote_into_the_folder() {
        let folder = entry("sev_guest");
        let kernel = counting(folder.path(), 1);
        let error = exchange(folder.path(), "sev_guest", &binding()).unwrap_err();
        kernel.join().unwrap();
        assert!(matches!(&error, CollectError::Disturbed { path } if path == folder.path()));
    }

    #[test]
    fn another_technology_than_expected_is_told() {
        let folder = entry("tdx_guest");
        assert_eq!(
            exchange(folder.path(), "sev_guest", &binding())
                .unwrap_err()
                .to_string(),
            "the kernel gives reports of tdx_guest here, not of sev_guest"
        );
    }

    #[test]
    fn a_folder_is_removed_when_no_report_comes() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        fs::create_dir_all(machine.path(FOLDER)).unwrap();
        let error = collect(&machine, "sev_guest", &binding()).unwrap_err();
        assert!(matches!(&error, CollectError::Io { path, .. } if path.ends_with("provider")));
        assert_eq!(fs::read_dir(machine.path(FOLDER)).unwrap().count(), 0);
    }
}
