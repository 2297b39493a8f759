//! What must survive the controller: objects, identities, reports, logs, users. SQLite, by sqlx.
//!
//! One connection writes, so that transactions stand in a queue of ours and not before SQLite's lock (see [`writer`]); several read.
//! The journal is a write-ahead log and every commit is synced (`synchronous=FULL`), so that what was acknowledged is there after a
//! power cut. Figures that a device sends again a minute later go through [`Store::write_soon`], which leaves the sync out.
//!
//! The modules hold functions over a connection; [`Store::read`] gives one to read with, [`Store::write`] a transaction. Statements
//! keep to what PostgreSQL takes too (`$1`, `ON CONFLICT`, `RETURNING`), and [`Connection`] is the only type that says SQLite.

pub mod boots;
pub mod enrolments;
pub mod identities;
pub mod logs;
pub mod manifests;
pub mod objects;
pub mod reports;
pub mod users;
pub mod waiting;
mod writer;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use onboarding::enrol::MachineId;
use protocol::ids::IdError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Sqlite, SqlitePool, Transaction};
use thiserror::Error;

use self::writer::Turns;
pub use self::writer::Writer;

/// A connection to the database, inside a transaction or not.
pub type Connection = sqlx::SqliteConnection;

/// How long a reader or writer waits for its turn before the request is refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that read at the same time.
const READERS: u32 = 4;
/// SQLite's page cache a connection, in KiB; negative is SQLite's way to say so (PRAGMA cache_size).
const CACHE_KIB: &str = "-2048";
/// Pages of 4 KiB in the write-ahead log after which a commit also writes them into the database, four times SQLite's usual number: many
/// are written again and again, and it syncs twice (PRAGMA wal_autocheckpoint).
const CHECKPOINT_PAGES: &str = "4000";
/// SQLITE_FULL, "insertion failed because database is full" (SQLite, Result and Error Codes).
const SQLITE_FULL: &str = "13";

/// Why the store did not do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database could not be opened or brought up to date.
    #[error(
        "opening the database {path}: {source}; check the directory's owner, mode and free space"
    )]
    Open {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// The database could not be brought up to date.
    #[error("migrating the database {path}: {source}; a newer controller may have written it")]
    Migrate {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// No space is left for it.
    #[error("{action}: the disk is full; reads go on, free some space for writes")]
    Full {
        /// What was tried.
        action: &'static str,
    },
    /// The database said no.
    #[error("{action}: {source}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// It was not this connection's turn in time.
    #[error("{action}: others write for too long; try again")]
    Busy {
        /// What was tried.
        action: &'static str,
    },
    /// A transaction that was to be committed together with others was not.
    #[error(
        "committing together with other transactions: {reason}; nothing was written, try again"
    )]
    NotTogether {
        /// What the database said.
        reason: String,
    },
    /// A row does not hold what it should.
    #[error("{action}: the row of {what} is damaged: {reason}")]
    Damaged {
        /// What was tried.
        action: &'static str,
        /// Whose row.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Gives database errors the name of what was tried.
pub(crate) trait Tried<T> {
    /// Names `action` in the error.
    fn tried(self, action: &'static str) -> Result<T, StoreError>;
}

impl<T> Tried<T> for Result<T, sqlx::Error> {
    fn tried(self, action: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| {
            let full = source
                .as_database_error()
                .and_then(|error| error.code())
                .is_some_and(|code| code == SQLITE_FULL);
            if full {
                StoreError::Full { action }
            } else {
                StoreError::Database { action, source }
            }
        })
    }
}

pub(crate) fn damaged(
    action: &'static str,
    what: impl Into<String>,
    reason: impl ToString,
) -> StoreError {
    StoreError::Damaged {
        action,
        what: what.into(),
        reason: reason.to_string(),
    }
}

/// The database.
#[derive(Clone)]
pub struct Store {
    readers: SqlitePool,
    turns: Turns,
    lazy_writer: SqlitePool,
}

impl Store {
    /// Opens the database in `path`, making it if it is not there, and brings it up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Migrate`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let open_error = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let options = SqliteConnectOptions::from_str("sqlite:")
            .map_err(open_error)?
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(PATIENCE)
            .pragma("cache_size", CACHE_KIB);
        let pool = |connections: u32, synchronous: SqliteSynchronous| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(PATIENCE)
                .connect_with(options.clone().synchronous(synchronous))
        };
        let full = options
            .clone()
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
        let mut writer = Connection::connect_with(&full).await.map_err(open_error)?;
        sqlx::migrate!("./migrations/sqlite")
            .run(&mut writer)
            .await
            .map_err(|source| StoreError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        let readers = pool(READERS, SqliteSynchronous::Full)
            .await
            .map_err(open_error)?;
        let lazy_writer = pool(1, SqliteSynchronous::Normal)
            .await
            .map_err(open_error)?;
        Ok(Self {
            readers,
            turns: Turns::new(writer),
            lazy_writer,
        })
    }

    /// A connection to read with.
    ///
    /// # Errors
    /// [`StoreError::Database`] if none became free in time.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        Ok(Reader(
            self.readers
                .acquire()
                .await
                .tried("waiting for a connection to read")?,
        ))
    }

    /// A transaction. It is rolled back unless [`Writer::commit`] or [`Writer::commit_together`] is called.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if its turn did not come in time, [`StoreError::Database`].
    pub async fn write(&self) -> Result<Writer, StoreError> {
        self.turns.take().await
    }

    /// A transaction whose commit a power cut may undo, though a crash of the controller does not.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the connection did not become free in time.
    pub async fn write_soon(&self) -> Result<LazyWriter, StoreError> {
        // IMMEDIATE takes the write lock at once; a deferred one could fail at its first write, after having read.
        Ok(LazyWriter(
            self.lazy_writer
                .begin_with("BEGIN IMMEDIATE")
                .await
                .tried("beginning a transaction")?,
        ))
    }

    /// Ends what is under way and closes all connections, after those in use are given back.
    pub async fn close(&self) {
        self.readers.close().await;
        self.lazy_writer.close().await;
        self.turns.end().await;
    }
}

/// A connection to read with.
pub struct Reader(PoolConnection<Sqlite>);

impl Deref for Reader {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// A transaction whose commit is not synced.
pub struct LazyWriter(Transaction<'static, Sqlite>);

impl LazyWriter {
    /// Makes everything in it last, a power cut aside.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Database`]; nothing was written then.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.0.commit().await.tried("committing")
    }
}

impl Deref for LazyWriter {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for LazyWriter {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// A statement with its values.
pub(crate) type Statement<'q> = sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments>;

/// The ways in which statements are used; `action` names what was tried in the error.
pub(crate) trait Use {
    /// Writes; gives the number of rows that it wrote.
    async fn write(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<u64, StoreError>;
    /// Reads a row that may be absent.
    async fn find(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<Option<SqliteRow>, StoreError>;
    /// Reads a row that is there.
    async fn get(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<SqliteRow, StoreError>;
    /// Reads all rows.
    async fn all(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<Vec<SqliteRow>, StoreError>;
}

impl Use for Statement<'_> {
    async fn write(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<u64, StoreError> {
        Ok(self
            .execute(connection)
            .await
            .tried(action)?
            .rows_affected())
    }

    async fn find(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<Option<SqliteRow>, StoreError> {
        self.fetch_optional(connection).await.tried(action)
    }

    async fn get(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<SqliteRow, StoreError> {
        self.fetch_one(connection).await.tried(action)
    }

    async fn all(
        self,
        connection: &mut Connection,
        action: &'static str,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        self.fetch_all(connection).await.tried(action)
    }
}

/// Takes the next number of a counter.
pub(crate) async fn next(
    connection: &mut Connection,
    counter: &'static str,
) -> Result<i64, StoreError> {
    sqlx::query_scalar("UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value")
        .bind(counter)
        .fetch_one(connection)
        .await
        .tried("counting")
}

/// Reads an id from its column.
fn parse_id<I: FromStr<Err = IdError>>(action: &'static str, text: &str) -> Result<I, StoreError> {
    text.parse()
        .map_err(|error| damaged(action, format!("object {text}"), error))
}

/// Reads a machine's id from its column.
fn machine_id(action: &'static str, bytes: &[u8]) -> Result<MachineId, StoreError> {
    <[u8; 32]>::try_from(bytes)
        .map(MachineId::from_bytes)
        .map_err(|_| {
            damaged(
                action,
                "a machine",
                format!("its id has {} bytes", bytes.len()),
            )
        })
}

/// Writes JSON into a column.
fn json(action: &'static str, what: &str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| damaged(action, what, error))
}

/// Reads JSON from a column.
fn from_json<T: DeserializeOwned>(
    action: &'static str,
    what: &str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| damaged(action, what, error))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fresh database; the directory must live as long as it.
    pub async fn fresh() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("controller.db"))
            .await
            .unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn what_is_not_committed_is_undone() {
        let (_directory, store) = fresh().await;
        let mut writer = store.write().await.unwrap();
        assert_eq!(next(&mut writer, "device").await.unwrap(), 1);
        drop(writer);
        let mut writer = store.write().await.unwrap();
        assert_eq!(next(&mut writer, "device").await.unwrap(), 1);
        writer.commit().await.unwrap();
        assert_eq!(
            next(&mut store.write().await.unwrap(), "device")
                .await
                .unwrap(),
            2
        );
    }

    #[tokio::test]
    async fn commits_are_synced() {
        let (_directory, store) = fresh().await;
        let level: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(&mut *store.write().await.unwrap())
            .await
            .unwrap();
        assert_eq!(level, 2, "FULL");
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(&mut *store.read().await.unwrap())
            .await
            .unwrap();
        assert_eq!(journal, "wal");
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let error = Store::open(&path).await.err().unwrap().to_string();
        assert!(error.contains("controller.db"), "{error}");
    }
}
