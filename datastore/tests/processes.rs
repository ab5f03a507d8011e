//! Fifty processes on one database, as when a node starts all its pods at once.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic like the tests themselves")]

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use margay_datastore::{AssignRequest, Attachment, Ipam, Pool, Sqlite, Store};

const PROCESSES: usize = 50;
const ROUNDS: usize = 6;
/// Where a child finds the state directory, and which child it is.
const DIRECTORY: &str = "MARGAY_TEST_DIRECTORY";
const NUMBER: &str = "MARGAY_TEST_NUMBER";

#[test]
fn fifty_processes_never_share_an_address_and_never_fail() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("held")).unwrap();

    let children: Vec<_> = (0..PROCESSES)
        .map(|number| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "one_process", "--nocapture"])
                .env(DIRECTORY, directory.path())
                .env(NUMBER, number.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    let store = open(directory.path());
    let ipam = Ipam::new(&store, "node", "boot");
    let held: Vec<IpAddr> = ipam
        .attachments("net")
        .unwrap()
        .iter()
        .flat_map(|attachment| ipam.assigned(attachment).unwrap())
        .collect();
    let distinct: BTreeSet<_> = held.iter().map(ToString::to_string).collect();
    let files: BTreeSet<_> = fs::read_dir(directory.path().join("held"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(held.len(), distinct.len());
    assert_eq!(distinct, files, "what is out is what the processes believe to hold");
    assert_eq!(held.len(), PROCESSES * ROUNDS / 2 * 2, "every other round keeps both families");
    let used: u128 = ipam.usage(&pools()).unwrap().iter().map(|usage| usage.used).sum();
    assert_eq!(used, held.len() as u128);
}

/// One of the fifty; nothing when run as a test.
#[test]
fn one_process() {
    let (Some(directory), Ok(number)) = (env::var_os(DIRECTORY), env::var(NUMBER)) else { return };
    let directory = PathBuf::from(directory);
    for round in 0..ROUNDS {
        // Opened anew every time, as by a verb.
        let store = open(&directory);
        let ipam = Ipam::new(&store, "node", "boot").cool_down(Duration::ZERO);
        let attachment = Attachment::new("net", format!("c{number}-{round}"), "eth0").unwrap();
        let ips = ipam.assign(&request(&attachment)).unwrap();
        for ip in &ips {
            File::create_new(held(&directory, ip)).expect("nobody else holds it");
        }
        if round % 2 == 0 {
            for ip in &ips {
                fs::remove_file(held(&directory, ip)).unwrap();
            }
            assert_eq!(ipam.release(&attachment).unwrap(), ips);
        }
    }
}

fn open(directory: &Path) -> Store {
    Store::new(Sqlite::open(&directory.join("state/margay.db")).unwrap())
}

fn held(directory: &Path, ip: &IpAddr) -> PathBuf {
    directory.join("held").join(ip.to_string())
}

fn request(attachment: &Attachment) -> AssignRequest {
    AssignRequest {
        attachment: attachment.clone(),
        pod: None,
        netns: None,
        pools: pools(),
        ipv4: true,
        ipv6: true,
        requested: Vec::new(),
        strict_affinity: false,
    }
}

fn pools() -> Vec<Pool> {
    ["10.244.0.0/16", "fd00:10:244::/64"].map(|cidr| Pool::new(cidr.parse().unwrap())).to_vec()
}
