//! Opening the database file, alone or with fifty others at the same moment.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::{CHECKPOINT_PAGES, failure, schema};
use crate::backend::BackendError;

/// Opens the database, waiting up to `busy_deadline` for others, here and in every later call.
///
/// Three moments answer `SQLITE_BUSY` without asking the busy handler: the switch to the write-ahead
/// log, the recovery of a log that another process is recovering, and the making of its index. They
/// pass, so opening again is the remedy.
pub(super) fn open(path: &Path, busy_deadline: Duration) -> Result<Connection, BackendError> {
    ensure_file(path, |_| {})
        .map_err(|source| file_failure(format!("create {}", path.display()), source))?;
    let started = Instant::now();
    let mut wait = Waits::new();
    loop {
        match try_open(path, busy_deadline) {
            Err(error) if error.is_transient() && started.elapsed() < busy_deadline => wait.sleep(),
            outcome => return outcome,
        }
    }
}

fn try_open(path: &Path, busy_deadline: Duration) -> Result<Connection, BackendError> {
    let fail = |source| failure(format!("open {}", path.display()), source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(fail)?;
    wait_for_others(&mut connection, busy_deadline).map_err(fail)?;
    let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(no_checkpoint, true).map_err(fail)?;
    schema::ensure(&mut connection, path)?;
    // Both are properties of this connection, not of the file, and answer with a row or none.
    let settings =
        format!("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};");
    connection.execute_batch(&settings).map_err(fail)?;
    Ok(connection)
}

fn wait_for_others(connection: &mut Connection, deadline: Duration) -> rusqlite::Result<()> {
    let mut started = Instant::now();
    let mut waits = Waits::new();
    connection.busy_handler(Some(move |count| {
        if count == 0 {
            (started, waits) = (Instant::now(), Waits::new());
        }
        waits.sleep();
        started.elapsed() < deadline
    }))
}

/// Makes an empty file of mode 0600 (SQLite gives its log and index the same) in a directory of
/// mode 0700, unless the file is there.
///
/// The file is made under another name and linked: closing a descriptor of the database itself
/// would drop every lock that this process's connections hold on it (POSIX `fcntl` locks). `drafted` is
/// what happens, in tests, to the other name before it is linked.
pub(super) fn ensure_file(path: &Path, mut drafted: impl FnMut(&Path)) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    remove_drafts(path);
    while !make_file(path, &mut drafted)? {}
    Ok(())
}

/// False if somebody took the draft for one of a dead process and removed it.
fn make_file(path: &Path, drafted: &mut impl FnMut(&Path)) -> io::Result<bool> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.{:?}", process::id(), thread::current().id()));
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&draft)?;
    drafted(Path::new(&draft));
    let linked = fs::hard_link(&draft, path);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match linked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(true),
    }
}

/// Removes drafts of the database whose process was killed. One of a living process that this one cannot see
/// is made again by that.
pub(super) fn remove_drafts(path: &Path) {
    let Some((parent, name)) = path.parent().zip(path.file_name().and_then(OsStr::to_str)) else {
        return;
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let maker = file_name.to_str().and_then(|draft| maker_of(draft, name));
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(draft = %entry.path().display(), %error, "left as it is");
                }
                _ => {}
            }
        }
    }
}

/// The process that has made a draft of the database of this name, if it is one.
fn maker_of(draft: &str, database: &str) -> Option<u32> {
    let (pid, thread) = draft.strip_prefix(database)?.strip_prefix('.')?.split_once('.')?;
    if thread.starts_with("ThreadId(") { pid.parse().ok() } else { None }
}

pub(super) fn file_failure(operation: String, source: io::Error) -> BackendError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            BackendError::Full { operation, source: Box::new(source) }
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            BackendError::ReadOnly { operation, source: Box::new(source) }
        }
        _ => BackendError::Failed { operation, source: Box::new(source) },
    }
}

/// Sleeps of 0.1 to 2 ms, different in every process, growing a little with the crowd's patience.
struct Waits {
    state: u64,
    ceiling_us: u64,
}

impl Waits {
    fn new() -> Self {
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| u64::from(since.subsec_nanos()));
        Self { state: clock ^ (u64::from(process::id()) << 32) | 1, ceiling_us: 250 }
    }

    fn sleep(&mut self) {
        // xorshift64 (Marsaglia 2003)
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        thread::sleep(Duration::from_micros(100 + self.state % self.ceiling_us));
        self.ceiling_us = (self.ceiling_us * 5 / 4).min(1_900);
    }
}
