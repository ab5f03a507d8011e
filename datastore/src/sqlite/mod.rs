//! The backend of a single node: one SQLite file that many short processes share.
//!
//! Two tables (`schema.rs`): `records` holds the values, `changes` the history that revisions and
//! watches come from. Every write is one `BEGIN IMMEDIATE` transaction over both, so a revision is
//! visible exactly when its value is. Values are text where they are UTF-8, so that
//! `sqlite3 margay.db 'select key, value from records'` reads as what it is.
//!
//! **Durability.** The journal is a write-ahead log with `synchronous = NORMAL`: a commit is in the
//! page cache before the call returns and is fsynced at the next checkpoint. A killed process
//! therefore loses nothing. A power failure can lose the newest commits (never their order, never
//! the file's integrity), and margay can afford that: pods, veths and maps die with the power too.
//! A lost allocation belonged to a pod that no longer exists; a lost release is an allocation of
//! an earlier boot, which the first verb after the reboot reclaims. An fsync per commit would buy
//! nothing and cost each ADD several disk flushes.
//!
//! **Busy.** Readers never wait. Writers queue for one lock with short random sleeps rather than
//! SQLite's own schedule, whose steps grow to 100 ms. Only after [`BUSY_DEADLINE`] does a call fail,
//! with [`BackendError::Busy`].
//!
//! **Checkpoints.** Moving the log into the database costs two fsyncs, 10 ms and more where an ADD
//! takes 4. The last process to close a database normally does it, which here would be every
//! process; that is off. [`Backend::upkeep`] does it from [`UPKEEP_PAGES`] on, in verbs that can
//! afford it, so that a commit has to do it only if the log grows past [`CHECKPOINT_PAGES`] between
//! them. A process that opens the database while no other has it open reads the log once (0.4 ms
//! for 1,000 pages).

mod file;
mod schema;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use margay_failpoints as failpoints;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, Transaction, TransactionBehavior};

use crate::backend::{
    Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write, check_prefix,
};

/// How long a call waits for others before it fails with [`BackendError::Busy`].
const BUSY_DEADLINE: Duration = Duration::from_secs(15);

/// Size of the write-ahead log, in pages of 4 KiB, that makes a commit checkpoint it.
const CHECKPOINT_PAGES: i64 = 1_000;

/// Size of the write-ahead log that makes [`Backend::upkeep`] checkpoint it: about ten verbs.
const UPKEEP_PAGES: i64 = 192;

/// How many changes a watch can lie behind. Pruned in steps, so up to an eighth more are kept.
const REMEMBERED_CHANGES: i64 = 16_384;

/// A store in one SQLite file, shared by any number of processes.
pub struct Sqlite {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl Sqlite {
    /// Opens the database at `path`; makes it (mode 0600) and its directory (mode 0700) if absent.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        Self::open_within(path, BUSY_DEADLINE)
    }

    /// Like [`Sqlite::open`], with another time to wait for others, here and in every later call.
    pub fn open_within(path: &Path, busy_deadline: Duration) -> Result<Self, BackendError> {
        let connection = file::open(path, busy_deadline)?;
        Ok(Self { path: path.to_owned(), connection: Arc::new(Mutex::new(connection)) })
    }

    /// A transaction rolls itself back when a panic drops it, so the connection behind a poisoned
    /// lock is as good as ever.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` in a transaction that holds the write lock from the start, so that nothing it
    /// reads can be outdated when it writes.
    fn transact<T>(
        &self,
        verb: &str,
        key: &str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let operation = || format!("{verb} {key}");
        failpoints::before(failpoints::Kind::Store, format_args!("{verb} {key}"))
            .map_err(|source| file::file_failure(operation(), source))?;
        let fail = |source| failure(operation(), source);
        let connection = self.connection();
        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)
            .map_err(fail)?;
        let outcome = change(&transaction)?;
        transaction.commit().map_err(fail)?;
        Ok(outcome)
    }
}

impl Backend for Sqlite {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        let connection = self.connection();
        let read = || {
            connection
                .prepare_cached("SELECT key, value, revision FROM records WHERE key = ?1")?
                .query_row([key], versioned)
                .optional()
        };
        read().map_err(|source| failure(format!("read {key}"), source))
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.transact(write.verb(), key, |transaction| {
            let found = current_revision(transaction, key)?;
            check(write, key, found)?;
            if let Some(Unchanged { key, since }) = unchanged
                && current_revision(transaction, key)? != Some(*since)
            {
                return Err(BackendError::Outdated { key: key.clone() });
            }
            for Along { key, value } in along {
                set(transaction, key, value.as_deref())
                    .map_err(|source| failure(format!("write {key}"), source))?;
            }
            let value = match write {
                Write::Create(value) | Write::Update(value, _) => Some(value),
                Write::Delete(_) => None,
            };
            let changed = set(transaction, key, value);
            changed.map_err(|source| failure(format!("{} {key}", write.verb()), source))
        })
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        check_prefix(prefix)?;
        let connection = self.connection();
        let read = || {
            // Text compares byte by byte, and nothing in UTF-8 sorts between '/' and '0'.
            let sql = "SELECT key, value, revision FROM records
                       WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) ORDER BY key LIMIT ?3";
            let limit = limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1);
            connection
                .prepare_cached(sql)?
                .query_map((prefix, after_prefix(prefix), limit), versioned)?
                .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source| failure(format!("list {prefix}"), source))
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        newest_revision(&self.connection())
            .map_err(|source| failure("read the newest revision".to_owned(), source))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        check_prefix(prefix)?;
        let watch = watch::Changes::new(Arc::clone(&self.connection), prefix, after)?;
        Ok(Box::new(watch))
    }

    fn upkeep(&self) -> Result<(), BackendError> {
        file::remove_drafts(&self.path);
        let connection = self.connection();
        // Answers with the pages in the log, and how many of them were moved.
        let checkpoint = |mode: &str| {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
            connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], row)
        };
        // A passive checkpoint holds up no writer. Once it has moved everything, emptying the log
        // is a matter of microseconds; without that, a process that opens the database alone would
        // not know what was moved and take the log for a long one again.
        let run = || {
            if checkpoint("NOOP")?.0 < UPKEEP_PAGES {
                return Ok(());
            }
            let (pages, moved) = checkpoint("PASSIVE")?;
            if pages == moved {
                checkpoint("TRUNCATE")?;
            }
            Ok(())
        };
        run().map_err(|source| failure("checkpoint".to_owned(), source))
    }
}

fn current_revision(
    transaction: &Transaction<'_>,
    key: &str,
) -> Result<Option<Revision>, BackendError> {
    let read = || {
        transaction
            .prepare_cached("SELECT revision FROM records WHERE key = ?1")?
            .query_row([key], |row| Ok(from_sql(row.get(0)?)))
            .optional()
    };
    read().map_err(|source| failure(format!("read {key}"), source))
}

/// Whether the change may be made to a key that is at the revision `found`.
fn check(write: Write<'_>, key: &str, found: Option<Revision>) -> Result<(), BackendError> {
    let key = || key.to_owned();
    match (write, found) {
        (Write::Create(_), Some(_)) => Err(BackendError::Exists { key: key() }),
        (Write::Update(..) | Write::Delete(_), None) => Err(BackendError::NotFound { key: key() }),
        (Write::Update(_, expected) | Write::Delete(Some(expected)), Some(found))
            if found != expected =>
        {
            Err(BackendError::Conflict { key: key() })
        }
        _ => Ok(()),
    }
}

/// Writes or removes one record. What is gone already is not removed.
fn set(
    transaction: &Transaction<'_>,
    key: &str,
    value: Option<&[u8]>,
) -> rusqlite::Result<Revision> {
    let Some(value) = value else {
        let sql = "DELETE FROM records WHERE key = ?1";
        return match transaction.prepare_cached(sql)?.execute([key])? {
            0 => newest_revision(transaction),
            _ => append_change(transaction, key, true),
        };
    };
    let revision = append_change(transaction, key, false)?;
    let sql = "INSERT INTO records (value, revision, key) VALUES (?1, ?2, ?3)
               ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision";
    transaction.prepare_cached(sql)?.execute((Readable(value), to_sql(revision), key))?;
    Ok(revision)
}

/// Adds a line to the history. Its row number is the new revision: SQLite gives the largest one
/// plus one, and pruning never takes the largest.
fn append_change(
    transaction: &Transaction<'_>,
    key: &str,
    deleted: bool,
) -> rusqlite::Result<Revision> {
    transaction
        .prepare_cached("INSERT INTO changes (key, deleted) VALUES (?1, ?2)")?
        .execute((key, deleted))?;
    let revision = transaction.last_insert_rowid();
    if revision % (REMEMBERED_CHANGES / 8) == 0 {
        transaction
            .prepare_cached("DELETE FROM changes WHERE revision <= ?1")?
            .execute([revision - REMEMBERED_CHANGES])?;
    }
    Ok(from_sql(revision))
}

fn newest_revision(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT coalesce(max(revision), 0) FROM changes")?
        .query_row([], |row| Ok(from_sql(row.get(0)?)))
}

fn versioned(row: &rusqlite::Row<'_>) -> rusqlite::Result<Versioned> {
    let value = match row.get_ref(1)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        // Only somebody's hand can have written a number; its text is what they meant.
        other => match Value::try_from(other)? {
            Value::Integer(number) => number.to_string().into_bytes(),
            Value::Real(number) => number.to_string().into_bytes(),
            _ => Vec::new(),
        },
    };
    Ok(Versioned { key: row.get(0)?, value, revision: from_sql(row.get(2)?) })
}

/// The first key after all that start with `prefix`; `None` for the empty prefix.
fn after_prefix(prefix: &str) -> Option<String> {
    Some(format!("{}0", prefix.strip_suffix('/')?))
}

/// Revisions start at 1 and count changes; a signed 64-bit number outlives any database.
fn from_sql(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn to_sql(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A value that `sqlite3` shows as text if it is text.
struct Readable<'a>(&'a [u8]);

impl ToSql for Readable<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match std::str::from_utf8(self.0) {
            Ok(_) => ValueRef::Text(self.0),
            Err(_) => ValueRef::Blob(self.0),
        }))
    }
}

/// Sorts SQLite's result codes into what a caller can act on.
fn failure(operation: String, source: rusqlite::Error) -> BackendError {
    let code = source.sqlite_error_code();
    let source = Box::new(source);
    match code {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed,
        ) => BackendError::Busy { operation, source },
        Some(ErrorCode::DiskFull) => BackendError::Full { operation, source },
        Some(ErrorCode::ReadOnly) => BackendError::ReadOnly { operation, source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            BackendError::Damaged { operation, source }
        }
        _ => BackendError::Failed { operation, source },
    }
}

#[cfg(test)]
mod tests;
