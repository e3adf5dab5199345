//! A `PostgreSQL` cluster in a temporary folder, one for all tests of the process.
//!
//! It listens on a Unix socket in that folder only. `PostgreSQL` refuses to run as
//! root, so there `runuser -u postgres` starts it.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) struct Postgres {
    socket: PathBuf,
    databases: AtomicU32,
    binaries: PathBuf,
}

const PROGRAMS: [&str; 3] = ["initdb", "pg_ctl", "createdb"];

static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();

impl Postgres {
    /// The cluster, or `None` where `PostgreSQL` is not installed.
    pub(super) fn shared() -> Option<&'static Self> {
        SHARED
            .get_or_init(|| {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folder = binaries(Path::new("/usr/lib/postgresql"), &path)?;
                Some(Self::start(folder))
            })
            .as_ref()
    }

    /// Makes an empty database and gives its URL.
    pub(super) fn new_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        let mut create = as_postgres(&self.binaries.join("createdb"));
        succeed(create.arg("-h").arg(&self.socket).arg(&name));
        let user = if is_root() { "&user=postgres" } else { "" };
        format!("postgres:///{name}?host={}{user}", self.socket.display())
    }

    fn start(binaries: PathBuf) -> Self {
        // Removed by what stops the cluster, below.
        let folder = tempfile::tempdir().unwrap().keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = folder.join("data");
        let mut initdb = as_postgres(&binaries.join("initdb"));
        succeed(initdb.arg("-D").arg(&data).args([
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--no-locale",
        ]));
        let mut start = as_postgres(&binaries.join("pg_ctl"));
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c fsync=off",
            folder.display()
        );
        succeed(
            start
                .arg("-D")
                .arg(&data)
                .args(["-w", "-o", &options, "-l"])
                .arg(folder.join("log"))
                .arg("start"),
        );
        stop_with_this_process(&binaries, &data, &folder);
        Self {
            socket: folder,
            databases: AtomicU32::new(0),
            binaries,
        }
    }
}

/// Statics are not dropped: a shell waits for this process to end, however it
/// ends, then stops the cluster and removes its folder.
fn stop_with_this_process(binaries: &Path, data: &Path, folder: &Path) {
    let mut stop = as_postgres(&binaries.join("pg_ctl"));
    stop.arg("-D").arg(data).args(["-m", "immediate", "stop"]);
    let stop: Vec<String> = std::iter::once(stop.get_program())
        .chain(stop.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let script = format!(
        "(while kill -0 {} 2>/dev/null; do sleep 0.2; done; {}; rm -rf '{}') &",
        std::process::id(),
        stop.join(" "),
        folder.display()
    );
    succeed(
        Command::new("setsid")
            .args(["sh", "-c", &script])
            .current_dir("/"),
    );
}

/// The folder of the programs that are needed: of the newest of Debian's `versions`,
/// else the first in the search path.
fn binaries(versions: &Path, path: &OsStr) -> Option<PathBuf> {
    let entries = std::fs::read_dir(versions).ok();
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    found.sort();
    found.reverse();
    found.extend(std::env::split_paths(path));
    found
        .into_iter()
        .find(|folder| PROGRAMS.iter().all(|program| folder.join(program).exists()))
}

fn as_postgres(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn succeed(command: &mut Command) {
    // Not captured by pipes: what stays running would keep them open.
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command:?} failed: {status}");
}

#[test]
fn postgresql_is_installed_only_where_all_its_programs_lie_together() {
    let root = tempfile::tempdir().unwrap();
    let (versions, elsewhere) = (root.path().join("versions"), root.path().join("elsewhere"));
    let install = |folder: &Path, programs: &[&str]| {
        std::fs::create_dir_all(folder).unwrap();
        for program in programs {
            std::fs::write(folder.join(program), "").unwrap();
        }
    };
    assert_eq!(binaries(&versions, OsStr::new("")), None);
    assert_eq!(binaries(&versions, elsewhere.as_os_str()), None);
    install(&elsewhere, &PROGRAMS[..2]);
    install(&versions.join("16/bin"), &PROGRAMS[1..]);
    assert_eq!(binaries(&versions, elsewhere.as_os_str()), None);
    install(&elsewhere, &PROGRAMS);
    assert_eq!(
        binaries(&versions, elsewhere.as_os_str()),
        Some(elsewhere.clone())
    );
    for version in ["14/bin", "15/bin"] {
        install(&versions.join(version), &PROGRAMS);
    }
    assert_eq!(
        binaries(&versions, elsewhere.as_os_str()),
        Some(versions.join("15/bin"))
    );
}
