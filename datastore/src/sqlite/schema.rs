//! The tables and their version, which is SQLite's `user_version`.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::failure;
use crate::backend::BackendError;

const VERSION: u32 = 1;

/// `revision` of a record is that of the newest line with its key in `changes`. A record's value is
/// text, or a blob if it is not UTF-8.
///
/// The keys have an index of their own rather than being the table's order (`WITHOUT ROWID`): a
/// search in the latter compares whole rows, and would read the overflow pages of every block on
/// its way. `revision` comes before `value` for the same reason.
const TABLES: &str = "
    CREATE TABLE records (
        key      TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        value    ANY NOT NULL
    ) STRICT;
    CREATE TABLE changes (
        revision INTEGER PRIMARY KEY,
        key      TEXT NOT NULL,
        deleted  INTEGER NOT NULL
    ) STRICT;
";

/// Makes the tables if there are none. In a database that has them this is one read of the header.
pub(super) fn ensure(connection: &mut Connection, path: &Path) -> Result<(), BackendError> {
    let fail = |source| failure(format!("open {}", path.display()), source);
    match version(connection).map_err(fail)? {
        VERSION => Ok(()),
        0 => create(connection).map_err(fail),
        found => {
            let path = path.display().to_string();
            Err(BackendError::NewerSchema { path, found, supported: VERSION })
        }
    }
}

/// The version is written last and in the same transaction as the tables, so whoever finds it
/// finds them, and the write-ahead log, too. Losing the race for the switch to the log is
/// `SQLITE_BUSY` at once, without the busy handler; the caller opens again.
fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    if connection.query_row("PRAGMA journal_mode", [], mode)? != "wal" {
        let mode = connection.query_row("PRAGMA journal_mode = WAL", [], mode)?;
        if mode != "wal" {
            tracing::warn!(mode, "this file system has no write-ahead log for the datastore");
        }
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    if version(&transaction)? == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}
