//! Empty databases for tests: `SQLite`, and `PostgreSQL` where it is installed.

mod postgres;

use std::path::PathBuf;

use crate::store::{Store, StoreError};
use postgres::Postgres;

/// An empty database and the place of its master key, kept for as long as this.
pub(crate) struct TestDatabase {
    url: String,
    master_key: Option<PathBuf>,
    _folder: tempfile::TempDir,
}

impl TestDatabase {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a broker?.db");
        Self {
            url: path.to_str().unwrap().to_owned(),
            master_key: None,
            _folder: folder,
        }
    }

    /// `None` where `PostgreSQL` is not installed.
    pub(crate) fn postgresql() -> Option<Self> {
        let url = Postgres::shared()?.new_database();
        let folder = tempfile::tempdir().unwrap();
        Some(Self {
            url,
            master_key: Some(folder.path().join("master-key")),
            _folder: folder,
        })
    }

    pub(crate) async fn open(&self) -> Store {
        self.try_open().await.unwrap()
    }

    pub(crate) async fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(&self.url, self.master_key.as_deref()).await
    }
}

/// Makes of each `async fn(TestDatabase)` named a test on either database.
///
/// A function that is not named is dead code to the compiler. Each test that
/// cannot run says so itself, so that it is counted as skipped.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                use crate::test_databases::TestDatabase;

                #[tokio::test]
                async fn on_sqlite() {
                    super::$name(TestDatabase::sqlite()).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                async fn on_postgresql() {
                    match TestDatabase::postgresql() {
                        Some(database) => super::$name(database).await,
                        None => eprintln!("skipped: PostgreSQL is not installed"),
                    }
                }
            }
        )*
    };
}

pub(crate) use on_both_databases;
