//! A real etcd for tests: one member or several, plain or with TLS, on loopback.
//!
//! The members are processes in the namespaces of the thread that starts them. They end with the
//! [`EtcdCluster`], also when a test fails, and so does their data.

#![expect(clippy::unwrap_used, reason = "these are tests, built for other crates as well")]

mod admin;
mod tls;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use tls::Tls;

use crate::{Etcd, EtcdConf};

/// How long a member may take to serve before the test fails. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is in a member's log when it serves.
const SERVES: &str = "serving client traffic";

/// Members of etcd that serve.
#[derive(Debug)]
pub struct EtcdCluster {
    // Fields are dropped in this order: the processes end before their data goes.
    members: Vec<Member>,
    tls: Option<Tls>,
    directory: TempDir,
}

/// How to start a cluster.
#[derive(Debug)]
pub struct EtcdOptions {
    /// The address of each member, one a member.
    pub addresses: Vec<IpAddr>,
    /// Whether clients have to use TLS and show a certificate.
    pub tls: bool,
    /// More arguments for each member.
    pub arguments: Vec<String>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        let (addresses, arguments) = (vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], Vec::new());
        Self { addresses, tls: false, arguments }
    }
}

/// One process of a cluster.
#[derive(Debug)]
struct Member {
    client: SocketAddr,
    command: Command,
    log: PathBuf,
    process: Option<Child>,
}

impl EtcdCluster {
    /// Starts one member without TLS.
    pub fn start() -> Self {
        Self::start_with(EtcdOptions::default())
    }

    /// Starts three members without TLS.
    pub fn start_three() -> Self {
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST); 3];
        Self::start_with(EtcdOptions { addresses, ..EtcdOptions::default() })
    }

    /// Starts one member that wants TLS and a client certificate.
    pub fn start_with_tls() -> Self {
        Self::start_with(EtcdOptions { tls: true, ..EtcdOptions::default() })
    }

    /// Starts the members and waits until all serve.
    ///
    /// # Panics
    /// When one does not.
    pub fn start_with(options: EtcdOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("margay-etcd-").tempdir().unwrap();
        let tls = options.tls.then(|| Tls::make(&directory.path().join("tls"), &options.addresses));
        let members = Self::members(directory.path(), tls.as_ref(), &options);
        let mut cluster = Self { members, tls, directory };
        cluster.members.iter_mut().for_each(Member::spawn);
        cluster.members.iter_mut().for_each(Member::wait_until_it_serves);
        cluster
    }

    fn members(directory: &Path, tls: Option<&Tls>, options: &EtcdOptions) -> Vec<Member> {
        // All are found before any is let go, so that none is found twice.
        let ports = options.addresses.iter().map(|ip| (free_port(*ip), free_port(*ip)));
        let ports: Vec<_> = ports.collect::<Vec<_>>();
        let ports: Vec<_> = ports.iter().map(|(client, peer)| (client.1, peer.1)).collect();
        let peer_url = |(_, peer): &(SocketAddr, SocketAddr)| format!("http://{peer}");
        let named = ports.iter().enumerate().map(|(i, at)| format!("m{i}={}", peer_url(at)));
        let initial_cluster = named.collect::<Vec<_>>().join(",");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let member = |(i, at): (usize, &(SocketAddr, SocketAddr))| {
            let (client_url, peer_url) = (format!("{scheme}://{}", at.0), peer_url(at));
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{i}"), "--initial-cluster", &initial_cluster])
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url])
                .args(["--initial-advertise-peer-urls", &peer_url])
                .args(["--logger", "zap", "--log-outputs", "stderr", "--bcrypt-cost", "4"])
                .arg("--data-dir")
                .arg(directory.join(format!("m{i}")))
                .args(tls.iter().flat_map(|tls| tls.server_arguments()))
                .args(&options.arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let log = directory.join(format!("m{i}.log"));
            Member { client: at.0, command, log, process: None }
        };
        ports.iter().enumerate().map(member).collect()
    }

    /// The client URL of every member.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{}", member.client)).collect()
    }

    /// A configuration that reaches the cluster, with certificates where it wants them.
    pub fn conf(&self) -> EtcdConf {
        let mut conf = EtcdConf::new(self.endpoints());
        if let Some(tls) = &self.tls {
            conf.ca_cert_file = Some(tls.ca_cert_file());
            conf.client_cert = Some(tls.client_cert());
        }
        conf
    }

    /// A store in the cluster.
    pub fn open(&self) -> Etcd {
        Etcd::open(self.conf()).unwrap()
    }

    /// The certificates, where the cluster wants some.
    pub fn tls(&self) -> &Tls {
        self.tls.as_ref().expect("started with TLS")
    }

    /// A directory that goes with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends a member without a warning.
    pub fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a member that was ended, with the data that it had.
    pub fn restart(&mut self, member: usize) {
        self.members[member].spawn();
        self.members[member].wait_until_it_serves();
    }

    /// The number of a member's process.
    ///
    /// # Panics
    /// When it was ended.
    pub fn pid(&self, member: usize) -> u32 {
        self.members[member].process.as_ref().expect("it runs").id()
    }

    /// Turns authentication on, with the user `root` and this password.
    pub fn ask_for_password(&self, password: &str) {
        admin::ask_for_password(&self.endpoints()[0], password);
    }

    /// Forgets the history up to a revision.
    pub fn compact(&self, revision: u64) {
        admin::compact(&self.endpoints()[0], revision);
    }
}

/// A port that nobody listens on as soon as the listener is dropped. Not one of those that the kernel
/// gives to outgoing connections: a member that is started again wants its own back.
fn free_port(address: IpAddr) -> (TcpListener, SocketAddr) {
    const BELOW_EPHEMERAL: std::ops::Range<u32> = 12_000..32_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let offset = first.wrapping_add(tried) % (BELOW_EPHEMERAL.end - BELOW_EPHEMERAL.start);
        let found =
            SocketAddr::new(address, u16::try_from(BELOW_EPHEMERAL.start + offset).unwrap());
        if let Ok(listener) = TcpListener::bind(found) {
            return (listener, found);
        }
        assert!(tried < BELOW_EPHEMERAL.end, "no port is free at {address}");
    }
}

impl Member {
    fn spawn(&mut self) {
        let log = File::create(&self.log).unwrap();
        let process = self.command.stderr(log).spawn();
        self.process = Some(process.expect("start etcd, of Debian's package etcd-server"));
    }

    fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            if log.contains(SERVES) {
                return;
            }
            let ended = self.process.as_mut().and_then(|process| process.try_wait().unwrap());
            assert!(ended.is_none(), "etcd has ended, {ended:?}: {log}");
            assert!(Instant::now() < deadline, "etcd does not serve: {log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // One that has ended by itself is what is wanted.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
