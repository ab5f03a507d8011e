use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use super::*;
use crate::testing::contract;

#[test]
fn sqlite_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    contract::check_all(|| {
        count.set(count.get() + 1);
        Box::new(Sqlite::open(&directory.path().join(format!("{}.db", count.get()))).unwrap())
    });
}

#[test]
fn the_file_and_its_directory_are_private() {
    let (_directory, path) = fresh();
    let path = path.parent().unwrap().join("made/margay.db");
    let store = Sqlite::open(&path).unwrap();
    store.create("k", b"v").unwrap();

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let files: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "database, log and index: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn many_that_open_a_new_database_at_once_all_succeed() {
    for _ in 0..5 {
        let (_directory, path) = fresh();
        let barrier = Barrier::new(16);
        thread::scope(|scope| {
            for i in 0..16 {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    Sqlite::open(path).unwrap().create(&format!("k/{i}"), b"v").unwrap();
                });
            }
        });
        assert_eq!(Sqlite::open(&path).unwrap().list("k/", None).unwrap().len(), 16);
    }
}

#[test]
fn what_a_killed_process_left_of_making_a_database_goes() {
    let (_directory, path) = fresh();
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let (dead, alive) = (ended.id(), std::process::id());
    ended.wait().unwrap();
    let draft = |pid| path.with_file_name(format!("margay.db.{pid}.ThreadId(7)"));
    let others =
        [path.with_file_name(format!("margay.db.{dead}")), path.with_file_name("other.1.x")];
    let all = [draft(dead), draft(alive)].into_iter().chain(others.clone());
    all.for_each(|file| fs::write(file, "").unwrap());

    let store = Sqlite::open(&path).unwrap();

    assert!(!draft(dead).exists());
    // Killed a moment later.
    fs::hard_link(&path, draft(dead)).unwrap();
    store.upkeep().unwrap();
    assert!(!draft(dead).exists() && path.exists());
    assert!(draft(alive).exists() && others.iter().all(|file| file.exists()));
}

#[test]
fn a_draft_that_somebody_takes_away_is_made_again() {
    let (_directory, path) = fresh();
    let mut taken = 0;
    let somebody = |draft: &Path| {
        if taken < 3 {
            taken += 1;
            fs::remove_file(draft).unwrap();
        }
    };

    file::ensure_file(&path, somebody).unwrap();

    assert_eq!(taken, 3);
    let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().flatten().collect();
    assert_eq!(files.iter().map(fs::DirEntry::path).collect::<Vec<_>>(), [path]);
}

#[test]
fn what_was_written_is_there_after_closing() {
    let (_directory, path) = fresh();
    let revision = Sqlite::open(&path).unwrap().create("k", b"v").unwrap();

    let reopened = Sqlite::open(&path).unwrap();
    assert_eq!(reopened.get("k").unwrap().unwrap().revision, revision);
    assert!(reopened.create("l", b"v").unwrap() > revision);
}

#[test]
fn text_is_stored_as_text() {
    let (_directory, path) = fresh();
    Sqlite::open(&path).unwrap().create("k", b"{\"a\":1}").unwrap();

    let connection = Connection::open(&path).unwrap();
    let a: i64 = connection
        .query_row("SELECT json_extract(value, '$.a') FROM records", [], |row| row.get(0))
        .unwrap();
    assert_eq!(a, 1);
}

#[test]
fn a_newer_schema_is_refused_by_version() {
    let (_directory, path) = fresh();
    drop(Sqlite::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();

    let error = Sqlite::open(&path).err().unwrap();
    assert!(matches!(error, BackendError::NewerSchema { found: 7, supported: 1, .. }), "{error:?}");
}

#[test]
fn a_file_that_is_no_database_is_reported_as_damaged() {
    let (_directory, path) = fresh();
    fs::write(&path, "this is not a database, and it is longer than a header".repeat(40)).unwrap();

    let error = Sqlite::open(&path).err().unwrap();
    assert!(matches!(error, BackendError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_lock_that_is_never_released_becomes_busy_at_the_deadline() {
    let (_directory, path) = fresh();
    drop(Sqlite::open(&path).unwrap());
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();

    let store = Sqlite::open_within(&path, Duration::from_millis(100)).unwrap();
    let started = Instant::now();
    let error = store.create("k", b"v").unwrap_err();

    assert!(error.is_transient(), "{error:?}");
    assert!(started.elapsed() >= Duration::from_millis(100));
    assert!(store.get("k").unwrap().is_none(), "readers do not wait");
}

#[test]
fn a_full_disk_is_reported_as_full_and_passes() {
    let (_directory, path) = fresh();
    let store = Sqlite::open(&path).unwrap();
    store.connection().execute_batch("PRAGMA max_page_count = 8").unwrap();

    let error = store.create("big", &[b'x'; 100_000]).unwrap_err();

    assert!(matches!(error, BackendError::Full { .. }), "{error:?}");
    store.create("small", b"v").unwrap();
}

#[test]
fn a_database_without_write_permission_is_reported_as_read_only() {
    let (_directory, path) = fresh();
    let store = Sqlite::open(&path).unwrap();
    store.connection().execute_batch("PRAGMA query_only = 1").unwrap();

    let error = store.create("k", b"v").unwrap_err();

    assert!(matches!(error, BackendError::ReadOnly { .. }), "{error:?}");
}

#[test]
fn upkeep_moves_a_long_log_and_leaves_a_short_one() {
    let (_directory, path) = fresh();
    let store = Sqlite::open(&path).unwrap();
    let log_bytes = || fs::metadata(path.with_extension("db-wal")).unwrap().len();
    store.create("k", b"v").unwrap();
    store.upkeep().unwrap();
    assert!(log_bytes() > 0);

    store.create("big", &vec![b'x'; UPKEEP_PAGES as usize * 4096]).unwrap();
    store.upkeep().unwrap();
    assert_eq!(log_bytes(), 0);
    assert_eq!(store.get("k").unwrap().unwrap().value, b"v");
}

#[test]
fn history_is_pruned_and_a_watch_from_before_says_so() {
    let (_directory, path) = fresh();
    let store = Sqlite::open(&path).unwrap();
    let first = store.create("k", b"v").unwrap();
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO changes SELECT i, 'x/' || i, 1 FROM n",
        REMEMBERED_CHANGES + REMEMBERED_CHANGES / 8 - 1
    );
    store.connection().execute_batch(&insert).unwrap();

    let pruning = store.create("l", b"v").unwrap();

    let lines: i64 =
        store.connection().query_row("SELECT count(*) FROM changes", [], |row| row.get(0)).unwrap();
    assert_eq!(lines, REMEMBERED_CHANGES);
    assert!(matches!(store.watch("x/", first), Err(BackendError::Compacted { .. })));
    assert!(store.watch("x/", pruning).is_ok());
    assert_eq!(store.revision().unwrap(), pruning);
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("margay.db");
    (directory, path)
}
