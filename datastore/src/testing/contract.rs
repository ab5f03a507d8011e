//! What every [`Backend`] owes, as tests that panic. Each takes an empty backend.

#![expect(clippy::unwrap_used, reason = "these are tests, built for other crates as well")]

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Along, Backend, BackendError, Event, Revision, Unchanged, Watch, Write};

/// Runs the whole contract, each test on an empty backend of its own.
pub fn check_all(empty: impl Fn() -> Box<dyn Backend>) {
    a_key_reads_back_as_written(&*empty());
    create_refuses_a_key_that_exists(&*empty());
    update_and_delete_compare_before_they_swap(&*empty());
    every_change_has_a_later_revision(&*empty());
    what_is_written_along_comes_with_the_change_or_not_at_all(&*empty());
    a_change_that_goes_by_another_key_happens_while_that_is_unchanged(&*empty());
    list_is_in_key_order_and_exact_about_its_prefix(&*empty());
    concurrent_updates_lose_none(&*empty());
    concurrent_creates_have_one_winner(&*empty());
    watch_sees_changes_in_order(&*empty());
    watch_starts_after_the_given_revision(&*empty());
    watch_wakes_for_a_later_change(&*empty());
    big_values_and_odd_bytes_survive(&*empty());
    many_keys_are_listed_completely(&*empty());
}

/// A value that was created or updated is what `get` and `list` answer, with its revision.
pub fn a_key_reads_back_as_written(backend: &dyn Backend) {
    assert_eq!(backend.get("a/b").unwrap(), None);

    let created = backend.create("a/b", b"one").unwrap();
    let read = backend.get("a/b").unwrap().unwrap();
    assert_eq!((read.key.as_str(), read.value.as_slice()), ("a/b", &b"one"[..]));
    assert_eq!(read.revision, created);

    let updated = backend.update("a/b", b"two", created).unwrap();
    let read = backend.get("a/b").unwrap().unwrap();
    assert_eq!((read.value.as_slice(), read.revision), (&b"two"[..], updated));
    assert_eq!(backend.list("a/", None).unwrap(), [read]);

    backend.delete("a/b", Some(updated)).unwrap();
    assert_eq!(backend.get("a/b").unwrap(), None);
    assert_eq!(backend.list("", None).unwrap(), []);
}

/// A key is created once until it is deleted.
pub fn create_refuses_a_key_that_exists(backend: &dyn Backend) {
    backend.create("k", b"first").unwrap();

    let second = backend.create("k", b"second");
    assert!(matches!(second, Err(BackendError::Exists { ref key }) if key == "k"), "{second:?}");
    assert_eq!(backend.get("k").unwrap().unwrap().value, b"first");

    backend.delete("k", None).unwrap();
    backend.create("k", b"third").unwrap();
}

/// A change with an outdated revision does not happen, even if the value is the same again.
pub fn update_and_delete_compare_before_they_swap(backend: &dyn Backend) {
    let missing = backend.update("k", b"v", Revision(1));
    assert!(matches!(missing, Err(BackendError::NotFound { .. })), "{missing:?}");
    for expected in [None, Some(Revision(1))] {
        let missing = backend.delete("k", expected);
        assert!(matches!(missing, Err(BackendError::NotFound { .. })), "{missing:?}");
    }

    let first = backend.create("k", b"same").unwrap();
    let second = backend.update("k", b"same", first).unwrap();
    let outdated = backend.update("k", b"other", first);
    assert!(matches!(outdated, Err(BackendError::Conflict { .. })), "{outdated:?}");
    let outdated = backend.delete("k", Some(first));
    assert!(matches!(outdated, Err(BackendError::Conflict { .. })), "{outdated:?}");
    assert_eq!(backend.get("k").unwrap().unwrap().value, b"same");

    backend.delete("k", Some(second)).unwrap();
    backend.create("k", b"again").unwrap();
    let former_life = backend.update("k", b"v", second);
    assert!(matches!(former_life, Err(BackendError::Conflict { .. })), "{former_life:?}");
}

/// Revisions grow over all keys, also across deletions, and failed changes do not count backwards.
pub fn every_change_has_a_later_revision(backend: &dyn Backend) {
    let mut last = backend.revision().unwrap();
    for round in 0..5 {
        let key = format!("k/{round}");
        let created = backend.create(&key, b"1").unwrap();
        assert!(created > last);
        assert!(backend.create(&key, b"1").is_err());
        let updated = backend.update(&key, b"2", created).unwrap();
        assert!(updated > created);
        backend.delete(&key, None).unwrap();
        last = backend.revision().unwrap();
        assert!(last > updated);
    }
}

/// Keys that are written along are not compared, and are left alone where the change does not happen.
pub fn what_is_written_along_comes_with_the_change_or_not_at_all(backend: &dyn Backend) {
    let put = |key: &str, value: &str| Along { key: key.into(), value: Some(value.into()) };
    let remove = |key: &str| Along { key: key.into(), value: None };
    let value = |key: &str| backend.get(key).unwrap().map(|found| found.value);
    let start = backend.revision().unwrap();

    let along = [put("along/a", "1"), put("along/b", "1"), remove("along/none")];
    let created = backend.write("k", Write::Create(b"1"), &along).unwrap();
    for failing in [Write::Create(b"2"), Write::Update(b"2", start), Write::Delete(Some(start))] {
        let along = [put("along/a", "2"), remove("along/b")];
        assert!(backend.write("k", failing, &along).is_err());
    }
    assert!(backend.write("else", Write::Delete(None), &[remove("along/b")]).is_err());
    assert_eq!((value("along/a"), value("along/b")), (Some(b"1".into()), Some(b"1".into())));

    let updated = Write::Update(b"3", created);
    let updated = backend.write("k", updated, &[put("along/a", "3"), remove("along/b")]).unwrap();
    assert_eq!((value("along/a"), value("along/b")), (Some(b"3".into()), None));
    assert!(backend.get("along/a").unwrap().unwrap().revision <= updated);
    backend.write("k", Write::Delete(Some(updated)), &[remove("along/a")]).unwrap();
    assert_eq!(backend.list("", None).unwrap(), []);

    let mut watch = backend.watch("along/", start).unwrap();
    let mut last = BTreeMap::new();
    while let Some(event) = watch.next(Duration::from_millis(200)).unwrap() {
        last.insert(event.key().to_owned(), matches!(event, Event::Delete { .. }));
    }
    let gone = [("along/a".to_owned(), true), ("along/b".to_owned(), true)];
    assert_eq!(last, BTreeMap::from(gone), "whoever follows hears of them, and of nothing else");
}

/// A change that goes by another key does not happen once that is changed or gone; what is wrong with its
/// own key is said first.
pub fn a_change_that_goes_by_another_key_happens_while_that_is_unchanged(backend: &dyn Backend) {
    let by = |since| Unchanged { key: "by".to_owned(), since };
    let write = |write, by: &Unchanged| {
        let along = [Along { key: "along".to_owned(), value: Some(b"1".to_vec()) }];
        backend.write_if("k", write, &along, Some(by))
    };
    let outdated = |outcome: Result<Revision, BackendError>| {
        let is_outdated = matches!(outcome, Err(BackendError::Outdated { ref key }) if key == "by");
        assert!(is_outdated, "{outcome:?}");
    };

    outdated(write(Write::Create(b"1"), &by(Revision(1))));
    let first = by(backend.create("by", b"1").unwrap());
    let created = write(Write::Create(b"1"), &first).unwrap();
    let updated = write(Write::Update(b"2", created), &first).unwrap();
    let changed = by(backend.update("by", b"1", first.since).unwrap());
    let is_refused = || {
        for change in
            [Write::Update(b"3", updated), Write::Delete(Some(updated)), Write::Delete(None)]
        {
            outdated(write(change, &first));
        }
        let exists = write(Write::Create(b"3"), &first);
        assert!(matches!(exists, Err(BackendError::Exists { .. })), "{exists:?}");
        let conflict = write(Write::Update(b"3", created), &first);
        assert!(matches!(conflict, Err(BackendError::Conflict { .. })), "{conflict:?}");
    };
    is_refused();
    backend.delete("by", None).unwrap();
    is_refused();
    outdated(write(Write::Delete(None), &changed));
    assert_eq!(backend.get("k").unwrap().unwrap().revision, updated, "nothing has changed it");
    let third = by(backend.create("by", b"1").unwrap());
    write(Write::Delete(Some(updated)), &third).unwrap();
    let missing = write(Write::Delete(None), &first);
    assert!(matches!(missing, Err(BackendError::NotFound { .. })), "{missing:?}");
}

/// `list` answers in byte order, up to the limit, and never for a name that only starts alike.
pub fn list_is_in_key_order_and_exact_about_its_prefix(backend: &dyn Backend) {
    for key in ["a/b/2", "a/bc/1", "a/b/10", "a/b", "a/b-/x", "a/b0", "b/1", "a/b/é", "a/b/z"] {
        backend.create(key, key.as_bytes()).unwrap();
    }
    let keys = |prefix: &str, limit| -> Vec<String> {
        backend.list(prefix, limit).unwrap().into_iter().map(|v| v.key).collect()
    };

    assert_eq!(keys("a/b/", None), ["a/b/10", "a/b/2", "a/b/z", "a/b/é"]);
    assert_eq!(keys("a/b/", Some(2)), ["a/b/10", "a/b/2"]);
    assert_eq!(keys("a/b/", Some(0)), [] as [&str; 0]);
    assert_eq!(keys("c/", None), [] as [&str; 0]);
    assert_eq!(keys("", None).len(), 9);
    assert_eq!(backend.keys("a/b/").unwrap(), keys("a/b/", None));
    let half_a_name = backend.list("a/b", None);
    assert!(matches!(half_a_name, Err(BackendError::Prefix { .. })), "{half_a_name:?}");
    assert!(matches!(backend.keys("a/b"), Err(BackendError::Prefix { .. })));
    assert!(matches!(backend.watch("a/b", Revision(0)), Err(BackendError::Prefix { .. })));
}

/// Read-modify-write with retry on conflict counts every increment.
pub fn concurrent_updates_lose_none(backend: &dyn Backend) {
    const THREADS: u32 = 8;
    const ROUNDS: u32 = 25;
    backend.create("counter", b"0").unwrap();

    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..ROUNDS).for_each(|_| increment(backend, "counter")));
        }
    });

    let total = backend.get("counter").unwrap().unwrap();
    assert_eq!(total.value, (THREADS * ROUNDS).to_string().into_bytes());
}

/// Of many that create a key at once, one succeeds.
pub fn concurrent_creates_have_one_winner(backend: &dyn Backend) {
    for round in 0..10 {
        let key = format!("race/{round}");
        let winners: usize = thread::scope(|scope| {
            let racers: Vec<_> =
                (0..6).map(|_| scope.spawn(|| backend.create(&key, b"mine").is_ok())).collect();
            racers.into_iter().map(|racer| usize::from(racer.join().unwrap())).sum()
        });
        assert_eq!(winners, 1);
    }
}

/// Events come with growing revisions, and replaying them gives the state.
pub fn watch_sees_changes_in_order(backend: &dyn Backend) {
    let mut live = backend.watch("w/", Revision(0)).unwrap();
    let a = backend.create("w/a", b"1").unwrap();
    assert_eq!(put(live.as_mut()), ("w/a".into(), b"1".to_vec(), a));
    let b = backend.create("w/b", b"1").unwrap();
    backend.create("wx/other", b"1").unwrap();
    assert_eq!(put(live.as_mut()), ("w/b".into(), b"1".to_vec(), b));
    let a2 = backend.update("w/a", b"2", a).unwrap();
    assert_eq!(put(live.as_mut()), ("w/a".into(), b"2".to_vec(), a2));
    backend.delete("w/b", None).unwrap();
    let event = next(live.as_mut());
    assert!(matches!(event, Event::Delete { ref key, revision } if key == "w/b" && revision > a2));
    assert_eq!(live.next(Duration::ZERO).unwrap(), None);

    // One that starts late may miss replaced values, but replays to the same state.
    let newest = backend.revision().unwrap();
    let mut late = backend.watch("w/", Revision(0)).unwrap();
    let mut state = BTreeMap::new();
    let mut last = Revision(0);
    while last < newest {
        let event = next(late.as_mut());
        assert!(event.revision() > last, "{event:?} after {last:?}");
        last = event.revision();
        match event {
            Event::Put(versioned) => drop(state.insert(versioned.key, versioned.value)),
            Event::Delete { key, .. } => drop(state.remove(&key)),
        }
    }
    assert_eq!(state, BTreeMap::from([("w/a".to_owned(), b"2".to_vec())]));
}

/// A watch does not repeat what its caller has seen, and misses nothing after it.
pub fn watch_starts_after_the_given_revision(backend: &dyn Backend) {
    backend.create("w/before", b"").unwrap();
    let after = backend.revision().unwrap();
    backend.create("w/after", b"").unwrap();

    let mut watch = backend.watch("w/", after).unwrap();

    assert_eq!(next(watch.as_mut()).key(), "w/after");
    assert_eq!(watch.next(Duration::from_millis(30)).unwrap(), None);
}

/// A waiting watcher learns of a change long before its timeout.
pub fn watch_wakes_for_a_later_change(backend: &dyn Backend) {
    let mut watch = backend.watch("w/", backend.revision().unwrap()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            backend.create("w/late", b"").unwrap();
        });
        let started = Instant::now();
        let event = watch.next(Duration::from_secs(20)).unwrap();
        assert_eq!(event.unwrap().key(), "w/late");
        assert!(started.elapsed() < Duration::from_secs(10));
    });
}

/// Values are bytes: empty, not UTF-8, with zeros, a mebibyte.
pub fn big_values_and_odd_bytes_survive(backend: &dyn Backend) {
    let big: Vec<u8> = (0..1u32 << 20).map(|i| i.to_le_bytes()[1]).collect();
    for (key, value) in [
        ("v/empty", &b""[..]),
        ("v/zeros", b"a\0b\0"),
        ("v/not-utf8", b"\xff\xfe\x80"),
        ("v/big", &big),
    ] {
        backend.create(key, value).unwrap();
        assert!(backend.get(key).unwrap().unwrap().value == value, "{key}");
    }
    assert_eq!(backend.list("v/", None).unwrap().len(), 4);
}

/// A list of a few thousand keys is complete and in order.
pub fn many_keys_are_listed_completely(backend: &dyn Backend) {
    const KEYS: usize = 3_000;
    for i in 0..KEYS {
        backend.create(&format!("many/{i:05}"), i.to_string().as_bytes()).unwrap();
    }

    let listed = backend.list("many/", None).unwrap();

    assert_eq!(listed.len(), KEYS);
    assert!(listed.iter().enumerate().all(|(i, v)| v.key == format!("many/{i:05}")));
    assert_eq!(backend.list("many/", Some(7)).unwrap().len(), 7);
}

fn increment(backend: &dyn Backend, key: &str) {
    loop {
        let current = backend.get(key).unwrap().unwrap();
        let count: u32 = String::from_utf8(current.value).unwrap().parse().unwrap();
        match backend.update(key, (count + 1).to_string().as_bytes(), current.revision) {
            Ok(_) => return,
            Err(BackendError::Conflict { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn next(watch: &mut dyn Watch) -> Event {
    watch.next(Duration::from_secs(10)).unwrap().expect("an event within 10 s")
}

fn put(watch: &mut dyn Watch) -> (String, Vec<u8>, Revision) {
    match next(watch) {
        Event::Put(versioned) => (versioned.key, versioned.value, versioned.revision),
        event @ Event::Delete { .. } => panic!("{event:?} is not a put"),
    }
}
