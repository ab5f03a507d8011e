//! Following the history of a database that other processes write to.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::{after_prefix, failure, from_sql, newest_revision, to_sql, versioned};
use crate::backend::{BackendError, Event, Revision, Watch};

/// SQLite has no way to wake another process; a look costs two indexed reads.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A walk along `changes`.
pub(super) struct Changes {
    connection: Arc<Mutex<Connection>>,
    prefix: String,
    seen: Revision,
}

impl Changes {
    pub(super) fn new(
        connection: Arc<Mutex<Connection>>,
        prefix: &str,
        after: Revision,
    ) -> Result<Self, BackendError> {
        let changes = Self { connection, prefix: prefix.to_owned(), seen: after };
        changes.check_remembered(&changes.lock())?;
        Ok(changes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to step over changes that were pruned meanwhile.
    fn check_remembered(&self, connection: &Connection) -> Result<(), BackendError> {
        let oldest = connection
            .prepare_cached("SELECT coalesce(min(revision), 1) - 1 FROM changes")
            .and_then(|mut sql| sql.query_row([], |row| Ok(from_sql(row.get(0)?))))
            .map_err(|source| self.failure(source))?;
        if self.seen < oldest {
            return Err(BackendError::Compacted { after: self.seen, oldest });
        }
        Ok(())
    }

    /// The next change under the prefix whose record was not replaced by a later one. All reads
    /// are of one moment.
    fn look(&self) -> Result<(Revision, Option<Event>), BackendError> {
        let connection = self.lock();
        let moment = connection.unchecked_transaction().map_err(|source| self.failure(source))?;
        self.check_remembered(&moment)?;
        let read = || {
            let newest = newest_revision(&moment)?;
            let sql = "SELECT c.key, r.value, c.revision, c.deleted
                       FROM changes c LEFT JOIN records r ON r.key = c.key
                       WHERE c.revision > ?1 AND c.key >= ?2 AND (?3 IS NULL OR c.key < ?3)
                         AND (r.revision = c.revision OR (c.deleted AND r.key IS NULL))
                       ORDER BY c.revision LIMIT 1";
            let event = moment
                .prepare_cached(sql)?
                .query_row((to_sql(self.seen), &self.prefix, after_prefix(&self.prefix)), event)
                .optional()?;
            Ok((newest, event))
        };
        read().map_err(|source| self.failure(source))
    }

    fn failure(&self, source: rusqlite::Error) -> BackendError {
        failure(format!("watch {}", self.prefix), source)
    }
}

impl Watch for Changes {
    fn next(&mut self, timeout: Duration) -> Result<Option<Event>, BackendError> {
        let deadline = Instant::now() + timeout;
        loop {
            let (newest, event) = self.look()?;
            if let Some(event) = event {
                self.seen = event.revision();
                return Ok(Some(event));
            }
            self.seen = self.seen.max(newest);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY.min(left));
        }
    }
}

fn event(row: &rusqlite::Row<'_>) -> rusqlite::Result<Event> {
    if row.get(3)? {
        Ok(Event::Delete { key: row.get(0)?, revision: from_sql(row.get(2)?) })
    } else {
        versioned(row).map(Event::Put)
    }
}
