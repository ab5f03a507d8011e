//! A load generator: blocking sockets, and a thread for each end of a flow.
//!
//! Sockets are opened inside of the pods' namespaces, and both ends are bound to processors, so that
//! every peer is measured with the same placement. Rates are those of what arrives.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use margay_tests::traffic::{self, PATIENCE};
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, sockopt};

use crate::peer::Pair;
use crate::processors::{self, Used};

/// What a client and a server do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// So many TCP connections that the client fills. Counts bits.
    Stream { flows: usize },
    /// One UDP flow of small packets. Counts packets.
    Datagrams,
    /// One TCP connection with small requests and answers, one at a time. Counts answers.
    Exchanges,
    /// A TCP connection for each small request and its answer. Counts connections.
    Connections,
}

/// Where the two ends run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Both on one processor, so that the rate is what all of the work costs.
    Together,
    /// Each on one of its own, as far as there are two.
    Apart,
}

/// Traffic between the pods of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) pattern: Pattern,
    pub(crate) placement: Placement,
    pub(crate) ipv4: bool,
}

/// What was seen of traffic in a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// What the pattern counts, per second.
    pub(crate) rate: f64,
    /// Seconds of processor time, of both ends and of the kernel between them, for one of them.
    pub(crate) cpu: f64,
}

/// Payload of a request, of an answer and of a datagram.
const MESSAGE: usize = 64;
/// What a stream writes and reads at once.
const CHUNK: usize = 128 * 1024;
/// Until windows have opened and tables know the flows; no longer than is then watched.
const WARM_UP: Duration = Duration::from_millis(200);
/// The kernel's default, in place of the machine's: with one that paces, as BBR does, a stream runs as
/// fast as timers and its guesses let it, and not as fast as the way is.
const CONGESTION_CONTROL: &str = "cubic";
/// How soon a server to which no packet comes sees that it is over.
const BLINK: Duration = Duration::from_millis(50);

/// Lets the pods of a pair open one connection after the other for as long as they like.
pub(crate) fn prepare(pair: &Pair<'_>) -> Result<()> {
    for (pod, sysctl, value) in [
        (&pair.client, "ip_local_port_range", "1024 65535"),
        // The server closes first, and forgets a connection at once when these are taken.
        (&pair.server, "tcp_max_tw_buckets", "1024"),
    ] {
        pod.enter(|| fs::write(format!("/proc/sys/net/ipv4/{sysctl}"), value)).context(sysctl)?;
    }
    Ok(())
}

impl Traffic {
    /// Lets it run, and watches it for a while.
    pub(crate) fn watch(self, pair: &Pair<'_>, window: Duration) -> Result<Seen> {
        let progress = Progress::default();
        let flows = if let Pattern::Stream { flows } = self.pattern { flows } else { 1 };
        let servers = (0..flows).map(|_| Server::open(pair, self));
        let servers = servers.collect::<io::Result<Vec<_>>>()?;
        let targets = servers.iter().map(Server::address).collect::<io::Result<Vec<_>>>()?;
        let [client_at, server_at] = self.placement.processors()?;
        let watched = thread::scope(|scope| {
            let mut ends = Vec::new();
            for (server, target) in servers.iter().zip(targets) {
                let progress = &progress;
                ends.push(scope.spawn(move || {
                    processors::keep_to(server_at)?;
                    server.serve(self.pattern, progress).context("server")
                }));
                ends.push(scope.spawn(move || {
                    processors::keep_to(client_at)?;
                    pair.client
                        .enter(|| request(self.pattern, target, progress))
                        .with_context(|| format!("client of {target}"))
                }));
            }
            let watched = progress.watch(window);
            progress.is_over.store(true, Ordering::Relaxed);
            servers.iter().for_each(Server::wake);
            for end in ends {
                end.join().map_err(|_| anyhow!("a thread panicked"))??;
            }
            watched
        });
        let (count, seconds, used) = watched.with_context(|| format!("{self:?}"))?;
        Ok(Seen { rate: count as f64 / seconds, cpu: used / count as f64 })
    }
}

impl Placement {
    /// Those of the client and of the server.
    fn processors(self) -> Result<[usize; 2]> {
        let [first, last] = processors::first_and_last()?;
        Ok(match self {
            Self::Together => [last, last],
            Self::Apart => [first, last],
        })
    }
}

/// What the threads of one measurement share.
#[derive(Default)]
struct Progress {
    count: AtomicU64,
    is_over: AtomicBool,
}

impl Progress {
    fn add(&self, amount: usize) {
        self.count.fetch_add(amount as u64, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// What is counted in a window, its length in seconds, and the processor time in it.
    fn watch(&self, window: Duration) -> Result<(u64, f64, f64)> {
        self.wait_for_more_than(0)?;
        thread::sleep(WARM_UP.min(window));
        let (count, started, used) = (self.count(), Instant::now(), Used::now()?);
        thread::sleep(window);
        // On a busy machine nothing may have come in a short window.
        self.wait_for_more_than(count)?;
        let (seconds, used) = (started.elapsed().as_secs_f64(), Used::now()?.since(used));
        Ok((self.count() - count, seconds, used))
    }

    fn wait_for_more_than(&self, count: u64) -> Result<()> {
        let started = Instant::now();
        while self.count() <= count {
            ensure!(started.elapsed() < PATIENCE, "nothing arrives");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// The end that waits.
enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Server {
    fn open(pair: &Pair<'_>, traffic: Traffic) -> io::Result<Self> {
        let ip: IpAddr = if traffic.ipv4 { pair.server_v4 } else { pair.server_v6 };
        let address = SocketAddr::new(ip, 0);
        if traffic.pattern == Pattern::Datagrams {
            let socket = traffic::udp(&pair.server, address);
            socket.set_read_timeout(Some(BLINK))?;
            return Ok(Self::Udp(socket));
        }
        let listener = traffic::listen(&pair.server, address);
        // What it accepts has it as well.
        set_congestion_control(&listener)?;
        Ok(Self::Tcp(listener))
    }

    /// Lets it see that it is over while it waits for a connection.
    fn wake(&self) {
        if let Self::Tcp(listener) = self {
            _ = shutdown(listener, Shutdown::Both);
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }

    fn serve(&self, pattern: Pattern, progress: &Progress) -> io::Result<()> {
        match (self, pattern) {
            (Self::Udp(socket), _) => {
                let mut message = [0; 2 * MESSAGE];
                while progress.goes_on() {
                    if ready(socket.recv(&mut message))?.is_some() {
                        progress.add(1);
                    }
                }
            }
            (Self::Tcp(listener), Pattern::Connections) => {
                while let Some(stream) = accept(listener, progress)? {
                    answer(&stream)?;
                }
            }
            (Self::Tcp(listener), _) => {
                let Some(mut stream) = accept(listener, progress)? else { return Ok(()) };
                set_up(&stream)?;
                if pattern == Pattern::Exchanges {
                    while answer(&stream)? {}
                    return Ok(());
                }
                let mut chunk = vec![0; CHUNK];
                loop {
                    match stream.read(&mut chunk)? {
                        0 => break,
                        bytes => progress.add(8 * bytes),
                    }
                }
            }
        }
        Ok(())
    }
}

/// The next connection. `None` when it is over.
fn accept(listener: &TcpListener, progress: &Progress) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(_) if !progress.goes_on() => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` where there was nothing for a blink.
fn ready<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Answers a request. False where the client has closed the connection.
fn answer(mut stream: &TcpStream) -> io::Result<bool> {
    let mut message = [0; MESSAGE];
    match stream.read_exact(&mut message) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        outcome => outcome?,
    }
    stream.write_all(&message)?;
    Ok(true)
}

/// The client's end, where the calling thread is.
fn request(pattern: Pattern, target: SocketAddr, progress: &Progress) -> io::Result<()> {
    match pattern {
        Pattern::Stream { .. } => {
            let (mut stream, chunk) = (connect(target)?, vec![0; CHUNK]);
            while progress.goes_on() {
                stream.write_all(&chunk)?;
            }
        }
        Pattern::Datagrams => {
            let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(target)?;
            while progress.goes_on() {
                socket.send(&[0; MESSAGE])?;
            }
        }
        Pattern::Exchanges => {
            let stream = connect(target)?;
            while progress.goes_on() {
                ask(&stream)?;
                progress.add(1);
            }
        }
        Pattern::Connections => {
            while progress.goes_on() {
                match connect_and_ask(target) {
                    // The last one may come too late.
                    Err(_) if !progress.goes_on() => break,
                    outcome => outcome?,
                }
                progress.add(1);
            }
        }
    }
    Ok(())
}

/// A connection, where the calling thread is.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = open(target)?;
    set_up(&stream)?;
    // The time limit for a write holds for this as well.
    net::connect(&stream, &target)?;
    Ok(stream)
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_congestion_control(&socket)?;
    Ok(socket.into())
}

/// Before it connects: who has had a pace goes on in it, whatever else is set afterwards.
fn set_congestion_control(socket: &impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_congestion(socket, CONGESTION_CONTROL)?)
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Sends a request and waits for its answer.
fn ask(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(&[1; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])
}

/// A transaction of its own. The server closes first, so that the port is free at once.
fn connect_and_ask(target: SocketAddr) -> io::Result<()> {
    let mut stream = open(target)?;
    net::connect(&stream, &target)?;
    ask(&stream)?;
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than an answer")),
    }
}

#[cfg(test)]
mod tests {
    use margay_tests::Node;

    use super::*;
    use crate::peer::Peer;

    #[test]
    fn each_connection_is_a_flow_that_the_programs_have_not_seen() {
        thread::spawn(|| {
            let Some(node) = Node::new() else { return };
            let pair = Peer::Margay.pair(&node).unwrap();
            prepare(&pair).unwrap();
            let pattern = Pattern::Connections;
            let traffic = Traffic { pattern, placement: Placement::Together, ipv4: true };
            let window = Duration::from_millis(100);
            for _ in 0..2 {
                node.datapath().flows().clear().unwrap();
                let seen = traffic.watch(&pair, window).unwrap();
                let flows = node.datapath().flows().count().unwrap() as f64;
                assert!(flows >= seen.rate * window.as_secs_f64(), "{flows} flows, {seen:?}");
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn every_pattern_is_seen_over_both_families() {
        // A thread of its own: it becomes the node.
        thread::spawn(|| {
            let Some(node) = Node::new() else { return };
            let pair = Peer::Veth.pair(&node).unwrap();
            prepare(&pair).unwrap();
            for pattern in [
                Pattern::Stream { flows: 2 },
                Pattern::Datagrams,
                Pattern::Exchanges,
                Pattern::Connections,
            ] {
                for ipv4 in [true, false] {
                    let traffic = Traffic { pattern, placement: Placement::Apart, ipv4 };
                    let seen = traffic.watch(&pair, Duration::from_millis(10)).unwrap();
                    assert!(seen.rate > 0.0 && seen.cpu > 0.0, "{traffic:?}: {seen:?}");
                }
            }
        })
        .join()
        .unwrap();
    }
}
