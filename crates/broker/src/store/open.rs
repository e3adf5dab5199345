//! Opening the database: which one, its tables, and whose master key it has.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, Row};
use tokio::sync::Mutex;

use super::Store;
use super::audit_rows::{End, HEAD, Remembered};
use crate::audit::AuditError;
use crate::master_key::{MasterKey, MasterKeyError};

/// The only version of the tables.
const FORMAT: &str = "2";

const TABLES: [&str; 5] = [
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS models (owner TEXT NOT NULL, header_digest TEXT NOT NULL, \
     model TEXT NOT NULL, version TEXT NOT NULL, sealed_key TEXT NOT NULL, \
     PRIMARY KEY (owner, header_digest))",
    "CREATE TABLE IF NOT EXISTS policies (owner TEXT NOT NULL, model TEXT NOT NULL, \
     sealed TEXT NOT NULL, PRIMARY KEY (owner, model))",
    "CREATE TABLE IF NOT EXISTS withdrawals (owner TEXT NOT NULL, model TEXT NOT NULL, \
     sealed TEXT NOT NULL, PRIMARY KEY (owner, model))",
    "CREATE TABLE IF NOT EXISTS audit (sequence BIGINT PRIMARY KEY, entry TEXT NOT NULL, \
     digest TEXT NOT NULL, hash TEXT NOT NULL)",
];

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither a path nor a `PostgreSQL` URL.
    #[error("{database:?} is not a database: expected a file's path (SQLite) or postgres://…")]
    Url {
        /// What was given, without a password.
        database: String,
    },
    /// A `PostgreSQL` database has no place beside it for a master key.
    #[error("with PostgreSQL, say where the master key's file is")]
    MasterKeyPath,
    /// The master key cannot be had.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The file cannot be made.
    #[error("{}: {source}", path.display())]
    File {
        /// The database's file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Made by another version of this program.
    #[error("the database has format {found:?}, expected {FORMAT:?}")]
    Format {
        /// What it says.
        found: String,
    },
    /// A row was moved or altered, or sealed under another master key.
    #[error("a row of the table {table} is not authentic at its place")]
    Inauthentic {
        /// Which table.
        table: &'static str,
    },
    /// A row that must be there was deleted.
    #[error("a row of the table {table} is missing")]
    Missing {
        /// Which table.
        table: &'static str,
    },
    /// A row was put back to what it was before.
    #[error("a row of the table {table} is older than the audit log says")]
    Outdated {
        /// Which table.
        table: &'static str,
    },
    /// A policy is another one than was set last.
    #[error("a row of the table {table} is not the one that the audit log names")]
    OtherThanLogged {
        /// Which table.
        table: &'static str,
    },
    /// A row that this program never wrote.
    #[error("a row of the table {table} has a malformed {column}")]
    Malformed {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
    },
    /// The audit log does not hold together.
    #[error("the audit log is refused: {0}")]
    Audit(#[from] AuditError),
    /// The database itself.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
}

impl StoreError {
    /// Whether the database works, but a row is not as this program wrote it.
    pub(crate) fn is_tampering(&self) -> bool {
        matches!(
            self,
            Self::Inauthentic { .. }
                | Self::Missing { .. }
                | Self::Outdated { .. }
                | Self::OtherThanLogged { .. }
                | Self::Malformed { .. }
        )
    }
}

enum Location {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Location {
    fn parse(database: &str) -> Result<Self, StoreError> {
        let path = match database.split_once(':') {
            Some(("postgres" | "postgresql", _)) => {
                return Ok(Self::Postgres(database.to_owned()));
            }
            Some(("sqlite", rest)) => rest.trim_start_matches("//"),
            Some((scheme, rest)) if rest.starts_with("//") => {
                return Err(StoreError::Url {
                    database: format!("{scheme}://…"),
                });
            }
            _ => database,
        };
        if path.is_empty() || path.starts_with(':') {
            return Err(StoreError::Url {
                database: database.to_owned(),
            });
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }

    fn default_master_key(&self) -> Result<PathBuf, StoreError> {
        match self {
            Self::Sqlite(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".master-key");
                Ok(PathBuf::from(name))
            }
            Self::Postgres(_) => Err(StoreError::MasterKeyPath),
        }
    }

    async fn connect(&self) -> Result<AnyPool, StoreError> {
        sqlx::any::install_default_drivers();
        let options = AnyPoolOptions::new().acquire_timeout(Duration::from_secs(5));
        match self {
            Self::Sqlite(path) => {
                let file = |source| StoreError::File {
                    path: path.clone(),
                    source,
                };
                // Made here and not by SQLite, so that others cannot read it.
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(path)
                    .map_err(file)?;
                let url = path
                    .canonicalize()
                    .ok()
                    .and_then(|path| url::Url::from_file_path(path).ok())
                    .ok_or_else(|| StoreError::Url {
                        database: path.display().to_string(),
                    })?;
                // SQLite writes one at a time anyway.
                Ok(options
                    .max_connections(1)
                    .connect(&format!("sqlite://{}", url.path()))
                    .await?)
            }
            Self::Postgres(url) => Ok(options.max_connections(8).connect(url).await?),
        }
    }
}

impl Store {
    /// Opens a database, makes its tables if it is new, and its master key if that
    /// is new too; checks that the two belong together and that the audit log holds.
    pub(crate) async fn open(
        database: &str,
        master_key: Option<&Path>,
    ) -> Result<Self, StoreError> {
        let location = Location::parse(database)?;
        let key_path = match master_key {
            Some(path) => path.to_owned(),
            None => location.default_master_key()?,
        };
        let pool = location.connect().await?;
        for table in TABLES {
            sqlx::query(table).execute(&pool).await?;
        }
        let found = format(&pool).await?;
        if found != FORMAT {
            return Err(StoreError::Format { found });
        }
        let key = key_of(&pool, &key_path).await?;
        let store = Self {
            pool,
            key,
            remembered: Mutex::new(Remembered::nothing()),
        };
        store.verify_audit().await?;
        Ok(store)
    }
}

/// The key that the database's rows are sealed under. With a new database it is
/// made or put to use, and the log's end sealed under it in the same step: a
/// database that has the one has the other.
async fn key_of(pool: &AnyPool, path: &Path) -> Result<MasterKey, StoreError> {
    const CHECK: &str = "master-key-check";
    let select = || sqlx::query("SELECT value FROM meta WHERE name = $1").bind(CHECK);
    let mut made = None;
    if select().fetch_optional(pool).await?.is_none() {
        let key = if path.exists() {
            MasterKey::read(path)?
        } else {
            MasterKey::create(path)?
        };
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES ($1, $2), ($3, $4) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(CHECK)
        .bind(key.check().to_owned())
        .bind(HEAD)
        .bind(End::EMPTY.seal(&key))
        .execute(pool)
        .await?;
        made = Some(key);
    }
    let row = select().fetch_one(pool).await?;
    let key = match made {
        Some(key) => key,
        None => MasterKey::read(path)?,
    };
    if row.try_get::<&str, _>("value")? != key.check() {
        return Err(MasterKeyError::OtherDatabase {
            path: path.to_owned(),
        }
        .into());
    }
    Ok(key)
}

/// The format, written first if the database is new. Where two brokers start at
/// once on one, both get what one of them wrote.
async fn format(pool: &AnyPool) -> Result<String, StoreError> {
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('format', $1) ON CONFLICT (name) DO NOTHING",
    )
    .bind(FORMAT)
    .execute(pool)
    .await?;
    let row = sqlx::query("SELECT value FROM meta WHERE name = 'format'")
        .fetch_one(pool)
        .await?;
    Ok(row.try_get("value")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_sqlite_and_a_postgres_url_postgresql() {
        for path in ["broker.db", "sqlite:broker.db", "sqlite://broker.db"] {
            assert!(matches!(
                Location::parse(path),
                Ok(Location::Sqlite(path)) if path == Path::new("broker.db")
            ));
        }
        for url in ["postgres://localhost/broker", "postgresql:///broker"] {
            assert!(matches!(Location::parse(url), Ok(Location::Postgres(_))));
        }
    }

    #[test]
    fn another_database_is_refused_without_its_password() {
        let refused = Location::parse("mysql://root:secret@localhost/broker");
        assert!(matches!(
            refused,
            Err(StoreError::Url { database }) if database == "mysql://…"
        ));
        assert!(matches!(
            Location::parse("sqlite::memory:"),
            Err(StoreError::Url { .. })
        ));
    }

    #[test]
    fn postgresql_has_no_default_place_for_a_master_key() {
        let location = Location::parse("postgres:///broker").unwrap();
        assert!(matches!(
            location.default_master_key(),
            Err(StoreError::MasterKeyPath)
        ));
    }
}
