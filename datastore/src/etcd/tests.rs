use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::Event;
use crate::testing::contract;
use crate::testing::etcd::{EtcdCluster, EtcdOptions, Tls};

/// Beyond any deadline that is tested here, on a machine however busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn etcd_keeps_the_contract() {
    let cluster = EtcdCluster::start();

    contract::check_all(|| Box::new(empty(&cluster)));
}

#[test]
fn etcd_behind_tls_keeps_the_contract() {
    let cluster = EtcdCluster::start_with_tls();

    contract::check_all(|| Box::new(empty(&cluster)));
}

#[test]
fn three_members_keep_the_contract() {
    let cluster = EtcdCluster::start_three();

    contract::check_all(|| Box::new(empty(&cluster)));
}

#[test]
fn one_member_that_is_lost_is_not_missed() {
    let mut cluster = EtcdCluster::start_three();
    let store = cluster.open();
    let mut watch = store.watch("k/", Revision(0)).unwrap();
    store.create("k/before", b"1").unwrap();
    assert_eq!(watch.next(PATIENCE).unwrap().unwrap().key(), "k/before");

    // The one that the store is connected to.
    cluster.kill(0);

    // A write that nobody knows the outcome of is the caller's to repeat.
    let written = until_not_busy(|| match store.create("k/after", b"1") {
        Err(BackendError::Exists { .. }) => Ok(()),
        outcome => outcome.map(drop),
    });
    assert!(written.is_ok(), "{written:?}");
    assert_eq!(store.list("k/", None).unwrap().len(), 2);
    assert_eq!(next_event(watch.as_mut()).key(), "k/after");
    // Nor by a process that starts after.
    assert!(cluster.open().get("k/before").unwrap().is_some());
}

#[test]
fn a_watch_from_far_back_gets_however_much_has_happened() {
    let cluster = EtcdCluster::start();
    let store = cluster.open();
    // Together more than the 4 MiB that a message of gRPC may have unless said otherwise.
    let value = vec![b'x'; 200_000];
    let mut revision = store.create("k/block", &value).unwrap();
    for _ in 0..30 {
        revision = store.update("k/block", &value, revision).unwrap();
    }

    let mut watch = store.watch("k/", Revision(0)).unwrap();

    while next_event(watch.as_mut()).revision() != revision {}
}

#[test]
fn a_cluster_without_a_majority_is_busy_within_the_deadline_until_it_has_one() {
    let mut cluster = EtcdCluster::start_three();
    let mut conf = cluster.conf();
    conf.request_timeout = Duration::from_secs(2);
    let store = Etcd::open(conf).unwrap();
    store.create("k", b"1").unwrap();

    cluster.kill(1);
    cluster.kill(2);

    let began = Instant::now();
    let read = store.get("k");
    assert!(matches!(read, Err(BackendError::Busy { .. })), "{read:?}");
    let written = store.create("other", b"1");
    assert!(matches!(written, Err(BackendError::Busy { .. })), "{written:?}");
    assert!(began.elapsed() < PATIENCE);

    cluster.restart(2);
    assert!(until_not_busy(|| store.get("k")).unwrap().is_some());
}

#[test]
fn nobody_at_the_endpoint_is_busy_and_names_it() {
    let mut cluster = EtcdCluster::start();
    let store = cluster.open();
    store.create("k", b"1").unwrap();
    cluster.kill(0);

    for store in [&store, &cluster.open()] {
        let error = store.get("k").unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        let text = chain(&error);
        assert!(text.contains(&cluster.endpoints()[0]), "{text}");
        assert!(text.contains("Connection refused"), "{text}");
    }

    cluster.restart(0);
    assert!(until_not_busy(|| store.get("k")).unwrap().is_some());
}

#[test]
fn a_member_that_does_not_answer_is_busy_within_the_deadline() {
    let cluster = EtcdCluster::start();
    let mut conf = cluster.conf();
    conf.request_timeout = Duration::from_millis(300);
    let before = Etcd::open(conf.clone()).unwrap();
    until_not_busy(|| before.create("k", b"1")).unwrap();
    signal(&cluster, rustix::process::Signal::STOP);

    // On the connection that is there, and on one whose handshake nobody completes.
    for store in [before, Etcd::open(conf).unwrap()] {
        let began = Instant::now();
        let read = store.get("k");
        assert!(matches!(read, Err(BackendError::Busy { .. })), "{read:?}");
        assert!(store.create("other", b"1").unwrap_err().is_transient());
        assert!(began.elapsed() < PATIENCE);
    }

    signal(&cluster, rustix::process::Signal::CONT);
}

#[test]
fn a_process_waits_no_longer_than_its_patience_for_all_requests_together() {
    let cluster = EtcdCluster::start();
    signal(&cluster, rustix::process::Signal::STOP);
    let mut conf = cluster.conf();
    conf.request_timeout = Duration::from_millis(100);
    conf.patience = Some(Duration::from_millis(250));
    let store = Etcd::open(conf).unwrap();

    let texts: Vec<_> = (0..4).map(|_| chain(&store.get("k").unwrap_err())).collect();

    assert!(texts[0].contains("no answer within"), "{texts:?}");
    assert!(texts[3].contains("the 250 ms that this process may wait"), "{texts:?}");
    signal(&cluster, rustix::process::Signal::CONT);
}

#[test]
fn wrong_certificates_are_errors_that_say_so() {
    let cluster = EtcdCluster::start_with_tls();
    let other = Tls::make(&cluster.directory().join("other"), &[]);
    let good = cluster.conf();
    let other_ca = EtcdConf { ca_cert_file: Some(other.ca_cert_file()), ..good.clone() };
    let no_client = EtcdConf { client_cert: None, ..good.clone() };
    let others_client = EtcdConf { client_cert: Some(other.client_cert()), ..good.clone() };
    let name = good.endpoints[0].replace("127.0.0.1", "localhost");
    let other_name = EtcdConf { endpoints: vec![name], ..good };

    for (conf, expected) in [
        (other_ca, "invalid peer certificate: UnknownIssuer"),
        (no_client, "received fatal alert"),
        (others_client, "received fatal alert"),
        (other_name, "certificate not valid for name"),
    ] {
        let error = Etcd::open(conf).unwrap().get("k").unwrap_err();
        let text = chain(&error);
        assert!(text.contains(expected), "{text}");
        assert!(!error.is_transient(), "nothing that waiting mends: {text}");
        assert!(error.is_out_of_reach(), "{text}");
    }
}

#[test]
fn plain_requests_to_a_member_with_tls_are_an_error() {
    let cluster = EtcdCluster::start_with_tls();
    let plain = cluster.endpoints()[0].replace("https", "http");
    let store = Etcd::open(EtcdConf::new([plain])).unwrap();

    assert!(store.get("k").is_err());
}

#[test]
fn a_user_needs_the_right_password_and_no_error_shows_it() {
    let cluster = EtcdCluster::start();
    cluster.ask_for_password("right-one");
    let with = |password: Option<&str>| {
        let credentials = password.map(|password| Credentials {
            user: "root".to_owned(),
            password: Password::Text(password.to_owned()),
        });
        Etcd::open(EtcdConf { credentials, ..cluster.conf() }).unwrap()
    };

    let store = with(Some("right-one"));
    store.create("k", b"1").unwrap();
    assert_eq!(store.watch("", Revision(0)).unwrap().next(PATIENCE).unwrap().unwrap().key(), "k");

    for (password, expected) in [
        (Some("wrong-one"), "authentication failed, invalid user ID or password"),
        (None, "user name is empty"),
    ] {
        let error = with(password).get("k").unwrap_err();
        let text = format!("{} {error:?}", chain(&error));
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("-one"), "{text}");
        assert!(!error.is_transient() && error.is_out_of_reach(), "{text}");
    }
    let conf = EtcdConf {
        credentials: Some(Credentials {
            user: "u".into(),
            password: Password::Text("secret".into()),
        }),
        ..cluster.conf()
    };
    assert!(!format!("{conf:?}").contains("secret"));
}

#[test]
fn a_token_that_is_no_longer_good_is_replaced() {
    let arguments = ["--auth-token-ttl", "1"].map(str::to_owned).to_vec();
    let cluster = EtcdCluster::start_with(EtcdOptions { arguments, ..EtcdOptions::default() });
    cluster.ask_for_password("right");
    let credentials =
        Some(Credentials { user: "root".into(), password: Password::Text("right".into()) });
    let store = Etcd::open(EtcdConf { credentials, ..cluster.conf() }).unwrap();
    store.create("k", b"1").unwrap();

    // Longer than a token that nobody uses lives.
    std::thread::sleep(Duration::from_secs(4));

    store.create("other", b"1").unwrap();
    assert_eq!(store.list("", None).unwrap().len(), 2);
}

#[test]
fn a_watch_from_a_forgotten_revision_says_from_where_one_can() {
    let cluster = EtcdCluster::start();
    let store = cluster.open();
    let first = store.create("k", b"1").unwrap();
    let second = store.update("k", b"2", first).unwrap();
    let third = store.update("k", b"3", second).unwrap();
    cluster.compact(second.0);

    let forgotten = store.watch("", Revision(0)).and_then(|mut watch| watch.next(PATIENCE));

    let Err(BackendError::Compacted { after: Revision(0), oldest }) = forgotten else {
        panic!("{forgotten:?}")
    };
    let mut watch = store.watch("", oldest).unwrap();
    assert_eq!(next_event(watch.as_mut()).revision(), third);
}

#[test]
fn a_full_store_is_full() {
    let arguments = ["--quota-backend-bytes", "2000000"].map(str::to_owned).to_vec();
    let cluster = EtcdCluster::start_with(EtcdOptions { arguments, ..EtcdOptions::default() });
    let store = cluster.open();
    let mebibyte = vec![0; 1 << 20];

    let outcome = (0..100).try_for_each(|i| store.create(&format!("k/{i}"), &mebibyte).map(drop));

    assert!(matches!(outcome, Err(BackendError::Full { .. })), "{outcome:?}");
    assert!(store.get("k/0").unwrap().is_some());
    store.delete("k/0", None).unwrap();
}

#[test]
fn more_than_a_message_holds_is_listed() {
    const KEYS: usize = 2_000;
    let cluster = EtcdCluster::start();
    let store = empty(&cluster);
    let value = vec![b'x'; 8 << 10];
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (store, value) = (&store, &value);
            scope.spawn(move || {
                (part..KEYS).step_by(4).for_each(|i| {
                    store.create(&format!("many/{i:05}"), value).unwrap();
                });
            });
        }
    });

    let listed = store.list("many/", None).unwrap();

    assert_eq!(listed.len(), KEYS);
    assert!(listed.iter().enumerate().all(|(i, v)| v.key == format!("many/{i:05}")));
    assert!(listed.iter().map(|v| v.value.len()).sum::<usize>() > 16_000_000);
    assert_eq!(store.list("many/", Some(PAGE + 1)).unwrap().len(), PAGE + 1);
}

#[test]
fn what_is_under_a_lease_goes_with_it() {
    let cluster = EtcdCluster::start();
    let store = cluster.open();
    let lease = store.grant_lease(Duration::from_secs(60)).unwrap();
    store.put_leased("alive/a", b"1", lease).unwrap();
    store.put_leased("alive/a", b"2", lease).unwrap();
    store.create("stays", b"1").unwrap();

    assert!(store.renew_lease(lease).unwrap().unwrap() > Duration::from_secs(30));
    assert_eq!(store.get("alive/a").unwrap().unwrap().value, b"2");
    store.revoke_lease(lease).unwrap();

    assert_eq!(store.get("alive/a").unwrap(), None);
    assert!(store.get("stays").unwrap().is_some());
    assert_eq!(store.renew_lease(lease).unwrap(), None);
    store.revoke_lease(lease).unwrap();
    assert_eq!(store.put_leased("alive/a", b"3", lease).unwrap(), None);
}

#[test]
fn a_caller_may_be_inside_a_runtime() {
    let cluster = EtcdCluster::start();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();

    runtime.block_on(async {
        let store = cluster.open();
        store.create("k", b"1").unwrap();
        assert!(store.get("k").unwrap().is_some());
    });
}

#[test]
fn what_cannot_be_a_configuration_is_refused() {
    let with = |endpoint: &str| Etcd::open(EtcdConf::new([endpoint])).map(drop).unwrap_err();

    for (endpoint, expected) in [
        ("127.0.0.1:2379", "begins with neither"),
        ("ftp://127.0.0.1:2379", "begins with neither"),
        ("http://127.0.0.1", "names no port"),
        ("http://user:secret@127.0.0.1:2379", "keys of their own"),
        ("https://127.0.0.1:2379", "certificates of an authority"),
        ("http:// 127.0.0.1:2379", "no URL"),
    ] {
        let text = with(endpoint).to_string();
        assert!(text.contains(expected), "{endpoint}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    let none: [&str; 0] = [];
    assert!(matches!(Etcd::open(EtcdConf::new(none)), Err(EtcdConfError::NoEndpoint)));
}

/// A store with a prefix of its own.
fn empty(cluster: &EtcdCluster) -> Etcd {
    static STORES: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("/test-{}/", STORES.fetch_add(1, Ordering::Relaxed));
    Etcd::open(EtcdConf { prefix, ..cluster.conf() }).unwrap()
}

/// Repeats what finds the store busy: members elect a leader for a second or two.
fn until_not_busy<T>(mut call: impl FnMut() -> Result<T, BackendError>) -> Result<T, BackendError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call() {
            Err(error) if error.is_transient() && Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

/// The next event, whatever errors come before it.
fn next_event(watch: &mut dyn Watch) -> Event {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(Some(event)) = watch.next(Duration::from_secs(1)) {
            return event;
        }
    }
    panic!("no event");
}

fn signal(cluster: &EtcdCluster, signal: rustix::process::Signal) {
    let pid = i32::try_from(cluster.pid(0)).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
