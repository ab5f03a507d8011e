//! How the cost of handing out an address grows with the addresses that are out.
//!
//! `cargo run --release -p margay-datastore --example growth [directory]` prints, for 10, 10,000 and
//! 60,000 dual-stack attachments out, the time of an assign and of a release with upkeep, each with
//! the database opened for it alone as a verb does. Times are in microseconds.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use margay_datastore::{AssignRequest, Attachment, Backend, Ipam, PodRef, Pool, Sqlite, Store};

const ROUNDS: usize = 400;
const SIZES: [usize; 3] = [10, 10_000, 60_000];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let parent = env::args_os().nth(1).map_or_else(env::temp_dir, PathBuf::from);
    let directory = parent.join(format!("margay-growth-{}", process::id()));
    let outcome = measure(&directory.join("margay.db"));
    fs::remove_dir_all(&directory)?;
    outcome
}

fn measure(path: &Path) -> Outcome<()> {
    println!(
        "{:>8} {:>18} {:>18} {:>18} {:>18}",
        "out", "open+get", "assign", "release", "has_free"
    );
    println!("{:>8} {}", "", format!("{:>9}{:>10}", "p50", "p99").repeat(4));
    let mut out = 0;
    for size in SIZES {
        {
            let store = Store::new(Sqlite::open(path)?);
            let ipam = Ipam::new(&store, "node", "boot");
            while out < size {
                ipam.assign(&request(&format!("fill{out}"))?)?;
                out += 1;
            }
        }
        let mut times: [Vec<Duration>; 4] = Default::default();
        for round in 0..ROUNDS {
            let [open, assign, release, has_free] = round_trip(path, round)?;
            for (list, time) in times.iter_mut().zip([open, assign, release, has_free]) {
                list.push(time);
            }
        }
        let columns: Vec<String> = times.iter_mut().map(|times| column(times)).collect();
        println!("{size:>8} {}", columns.concat());
    }
    Ok(())
}

fn round_trip(path: &Path, round: usize) -> Outcome<[Duration; 4]> {
    let name = format!("bench{round}");
    let open = timed(|| {
        Sqlite::open(path)?.get("nodes/node")?;
        Ok(())
    })?;
    let assign = timed(|| {
        let store = Store::new(Sqlite::open(path)?);
        Ipam::new(&store, "node", "boot").assign(&request(&name)?)?;
        Ok(())
    })?;
    let has_free = timed(|| {
        let store = Store::new(Sqlite::open(path)?);
        Ipam::new(&store, "node", "boot").has_free(&pools()?, false)?;
        Ok(())
    })?;
    let release = timed(|| {
        let store = Store::new(Sqlite::open(path)?);
        Ipam::new(&store, "node", "boot").release(&attachment(&name)?)?;
        store.upkeep()?;
        Ok(())
    })?;
    Ok([open, assign, release, has_free])
}

fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn column(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    format!("{:>9}{:>10}", at(50), at(99))
}

fn request(name: &str) -> Outcome<AssignRequest> {
    Ok(AssignRequest {
        attachment: attachment(name)?,
        pod: Some(PodRef { namespace: "default".into(), name: format!("web-{name}"), uid: None }),
        netns: Some(format!("/var/run/netns/cni-8f0a4d52-9c1b-4b0e-8f3c-{name:0>12}")),
        pools: pools()?,
        ipv4: true,
        ipv6: true,
        requested: Vec::new(),
        strict_affinity: false,
    })
}

fn attachment(name: &str) -> Outcome<Attachment> {
    Ok(Attachment::new("k8s-pod-network", format!("{name:0>64}"), "eth0")?)
}

fn pools() -> Outcome<Vec<Pool>> {
    Ok(vec![Pool::new("10.244.0.0/16".parse()?), Pool::new("fd00:10:244::/64".parse()?)])
}
