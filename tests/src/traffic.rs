//! Traffic between places: sockets are opened inside a namespace and used from the test's thread.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::namespace::NamedNetns;
use crate::node::{self, Node};
use crate::pod::Pod;

/// How long anything here waits for a packet before the test fails: longer than TCP takes to send one
/// again that was lost three times.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test waits before it says that a packet does not arrive.
pub const SILENCE: Duration = Duration::from_millis(300);

/// Somewhere sockets can be opened.
pub trait Place {
    /// Runs `work` there.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T;
}

impl Place for Pod<'_> {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Pod::enter(self, work)
    }
}

impl Place for NamedNetns {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NamedNetns::enter(self, work)
    }
}

impl Place for Node {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }
}

/// A TCP connection with both of its ends in hand.
#[derive(Debug)]
pub struct Connection {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
}

impl Connection {
    /// Connects from `client` to `target`, which reaches `listener`.
    ///
    /// # Errors
    /// When the connection is not made in time.
    pub fn open(
        client: &impl Place,
        target: SocketAddr,
        listener: &TcpListener,
    ) -> io::Result<Self> {
        let client = client.enter(|| TcpStream::connect_timeout(&target, PATIENCE))?;
        Self::accept(client, listener)
    }

    /// As [`open`](Self::open), from a local address that other connections may have as well.
    ///
    /// # Errors
    /// When the connection is not made in time.
    pub fn open_from(
        client: &impl Place,
        local: SocketAddr,
        target: SocketAddr,
        listener: &TcpListener,
    ) -> io::Result<Self> {
        Self::accept(client.enter(|| connect_from(local, target))?, listener)
    }

    fn accept(client: TcpStream, listener: &TcpListener) -> io::Result<Self> {
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    /// Sends bytes both ways and compares what arrives.
    ///
    /// # Errors
    /// When they do not arrive in time.
    ///
    /// # Panics
    /// When other bytes arrive.
    pub fn exchange(&self) -> io::Result<()> {
        let (client, server) = (&self.client, &self.server);
        for (mut from, mut to, text) in
            [(client, server, b"request!"), (server, client, b"response")]
        {
            from.write_all(text)?;
            let mut received = [0; 8];
            to.read_exact(&mut received)?;
            assert_eq!(&received, text);
        }
        Ok(())
    }
}

/// Connects from a local address that other connections may have as well, where the calling thread is.
///
/// # Errors
/// When the connection is not made in time.
pub fn connect_from(local: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    if local.port() != 0 {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        net::bind(&socket, &local)?;
    }
    loop {
        match net::connect(&socket, &target) {
            // The kernel wants the thread for something else; it goes on connecting meanwhile.
            Err(Errno::INTR | Errno::ALREADY) => {}
            Ok(()) | Err(Errno::ISCONN) => return Ok(TcpStream::from(socket)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Listens for TCP connections.
pub fn listen(place: &impl Place, address: SocketAddr) -> TcpListener {
    place.enter(|| TcpListener::bind(address)).expect("listen")
}

/// Opens a UDP socket.
pub fn udp(place: &impl Place, address: SocketAddr) -> UdpSocket {
    let socket = place.enter(|| UdpSocket::bind(address)).expect("bind");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

/// Connects by TCP to `address` at a new port of `server` and exchanges bytes.
///
/// # Panics
/// When that fails.
pub fn assert_tcp(client: &impl Place, server: &impl Place, address: IpAddr) {
    let listener = listen(server, SocketAddr::new(address, 0));
    let target = listener.local_addr().expect("address of the listener");
    let connection = Connection::open(client, target, &listener)
        .unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    connection.exchange().unwrap_or_else(|error| panic!("exchange with {target}: {error}"));
}

/// Sends a datagram from `client` to `target` and an answer back from `server` to where it came
/// from; the client must see the answer come from `target`.
///
/// # Errors
/// When one of the two does not arrive in time.
///
/// # Panics
/// When something else arrives, or from somewhere else.
pub fn udp_exchange(client: &UdpSocket, server: &UdpSocket, target: SocketAddr) -> io::Result<()> {
    client.send_to(b"question", target)?;
    let mut buffer = [0; 16];
    let (length, asker) = receive(server, &mut buffer)?;
    assert_eq!(&buffer[..length], b"question");
    server.send_to(b"answer", asker)?;
    let (length, answerer) = receive(client, &mut buffer)?;
    assert_eq!((&buffer[..length], answerer), (&b"answer"[..], target));
    Ok(())
}

/// The address that a server sees as its client's, by TCP and by UDP, with answers that arrive.
///
/// # Panics
/// When a packet does not arrive, or the two differ.
pub fn source_seen(client: &impl Place, server: &impl Place, target: IpAddr) -> IpAddr {
    let listener = listen(server, SocketAddr::new(target, 0));
    let at = listener.local_addr().expect("address of the listener");
    let connection = Connection::open(client, at, &listener);
    let connection = connection.unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    connection.exchange().unwrap_or_else(|error| panic!("exchange with {target}: {error}"));
    let by_tcp = connection.server.peer_addr().expect("address of the client").ip();

    let socket = udp(server, SocketAddr::new(target, 0));
    let asker = udp(client, SocketAddr::new(any(target), 0));
    let target = socket.local_addr().expect("address of the server");
    udp_exchange(&asker, &socket, target).unwrap_or_else(|error| panic!("ask {target}: {error}"));
    let by_udp = datagram_source(client, server, target.ip());
    assert_eq!(by_tcp, by_udp);
    by_tcp
}

/// The address that a datagram comes from, whether or not an answer would arrive.
///
/// # Panics
/// When it does not arrive.
pub fn datagram_source(client: &impl Place, server: &impl Place, target: IpAddr) -> IpAddr {
    source_of(&[0; 16], client, server, target)
}

/// The same of one that is larger than the MTU.
///
/// # Panics
/// When it does not arrive.
pub fn large_datagram_source(client: &impl Place, server: &impl Place, target: IpAddr) -> IpAddr {
    source_of(&[0; 4000], client, server, target)
}

fn source_of(payload: &[u8], client: &impl Place, server: &impl Place, target: IpAddr) -> IpAddr {
    let socket = udp(server, SocketAddr::new(target, 0));
    let asker = udp(client, SocketAddr::new(any(target), 0));
    let at = socket.local_addr().expect("address of the server");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let started = Instant::now();
    loop {
        asker.send_to(payload, at).expect("send");
        match receive(&socket, &mut [0; 5000]) {
            Ok((_, source)) => return source.ip(),
            // A datagram may be lost.
            Err(_) if started.elapsed() < PATIENCE => {}
            Err(error) => panic!("no datagram came to {at}: {error}"),
        }
    }
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("address")
}

/// Receives a datagram, whatever the kernel wants the thread for meanwhile.
///
/// # Errors
/// When none arrives in time.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Pings `address` three times.
///
/// # Panics
/// When an answer is missing.
pub fn assert_ping(from: &impl Place, address: IpAddr) -> String {
    let address = address.to_string();
    from.enter(|| node::run(&["ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", &address]))
}

/// Pings `address` once and says whether an answer came.
#[must_use]
pub fn answers_ping(from: &impl Place, address: IpAddr) -> bool {
    let address = address.to_string();
    from.enter(|| {
        std::process::Command::new("ping")
            .args(["-n", "-c", "1", "-W", "1", &address])
            .output()
            .expect("start ping")
            .status
            .success()
    })
}

/// What answers at a port, over TCP and UDP.
#[derive(Debug)]
pub struct Served {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Served {
    /// Answers at an address of a place.
    #[must_use]
    pub fn at(place: &impl Place, address: SocketAddr) -> Self {
        Self { tcp: listen(place, address), udp: udp(place, address) }
    }

    /// Asserts that `target`, at which it may be known to others, leads here by both protocols.
    ///
    /// # Panics
    /// When it does not; then with the words for where the client is.
    pub fn assert_reached(&self, client: &impl Place, target: SocketAddr, from: &str) {
        let connection = Connection::open(client, target, &self.tcp)
            .unwrap_or_else(|error| panic!("{target} from {from}: {error}"));
        connection.exchange().unwrap_or_else(|error| panic!("{target} from {from}: {error}"));
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        udp_exchange(&udp(client, SocketAddr::new(any, 0)), &self.udp, target)
            .unwrap_or_else(|error| panic!("UDP, {target} from {from}: {error}"));
    }

    /// Asserts that a port of the node leads here, to where `server` has its own address: from
    /// outside, from the host, from `neighbour` and from the pod itself. And that `neighbour` reaches
    /// it past that port as well, before and after.
    ///
    /// # Panics
    /// When it does not.
    pub fn assert_has_host_port(
        &self,
        node: &Node,
        server: (&impl Place, SocketAddr),
        neighbour: &impl Place,
        host_port: u16,
    ) {
        let (pod, inside) = server;
        let node_port = SocketAddr::new(node::node_address(inside.is_ipv4()), host_port);
        self.assert_reached(node.world(), node_port, "outside");
        self.assert_reached(node, node_port, "the host");
        self.assert_reached(neighbour, node_port, "another pod");
        self.assert_reached(pod, node_port, "the pod itself");
        self.assert_reached(neighbour, inside, "another pod, past the host port");
        self.assert_reached(neighbour, node_port, "another pod again");
        if inside.is_ipv4() {
            let localhost = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), host_port);
            self.assert_reached(node, localhost, "the host, by localhost");
        }
    }
}
