//! A server that answers over TCP and UDP, and questions to it: the answer tells who gave it, and
//! that every byte came as it was sent.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};

use crate::service::Protocol;
use crate::traffic::{PATIENCE, Place, connect_from, listen, receive, udp};

/// How long a server waits before it looks whether it is to stop.
const TURN: Duration = Duration::from_millis(20);
/// UDP questions that a server lets come before it answers the first, if they come without a pause.
const HELD_BACK: usize = 24;
/// For which it waits so long.
const PAUSE: Duration = Duration::from_millis(3);
/// Answered connections that a server keeps, so that it is the client that closes.
const KEPT: usize = 256;
/// Bytes of the longest question.
pub const LONGEST: usize = 1_200;

/// A server.
#[derive(Debug)]
pub struct Echo {
    tcp: TcpListener,
    udp: UdpSocket,
    name: u8,
}

impl Echo {
    /// Opens its sockets, both at one address.
    ///
    /// # Panics
    /// When they cannot be opened.
    pub fn new(place: &impl Place, address: SocketAddr, name: u8) -> Self {
        let (tcp, udp) = (listen(place, address), udp(place, address));
        sockopt::set_socket_timeout(&tcp, Timeout::Recv, Some(TURN)).expect("timeout");
        Self { tcp, udp, name }
    }

    /// Its address.
    ///
    /// # Panics
    /// When the kernel does not tell it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.udp.local_addr().expect("address")
    }

    /// Answers, on threads of its own, until `stop` is set.
    pub fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, stop: &'scope AtomicBool) {
        scope.spawn(|| self.serve_tcp(stop));
        scope.spawn(|| self.serve_udp(stop));
    }

    fn serve_tcp(&self, stop: &AtomicBool) {
        let mut kept = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            let Ok((stream, _)) = self.tcp.accept() else { continue };
            // One that breaks is the client's to report.
            if self.answer_tcp(&stream).is_ok() {
                kept.push_back(stream);
            }
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
    }

    fn answer_tcp(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut question)?;
        stream.write_all(&answer(self.name, &question))
    }

    /// Holds questions back, so that many are open at once.
    fn serve_udp(&self, stop: &AtomicBool) {
        let mut buffer = [0; LONGEST];
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let patience = if held.is_empty() { TURN } else { PAUSE };
            self.udp.set_read_timeout(Some(patience)).expect("timeout");
            if let Ok((len, asker)) = self.udp.recv_from(&mut buffer) {
                held.push((answer(self.name, &buffer[..len]), asker));
                if held.len() < HELD_BACK {
                    continue;
                }
            }
            for (answer, asker) in held.drain(..) {
                self.udp.send_to(&answer, asker).expect("send an answer");
            }
        }
    }
}

/// What a server of this name answers: its name, and the complement of each byte.
fn answer(name: u8, question: &[u8]) -> Vec<u8> {
    std::iter::once(name).chain(question.iter().map(|byte| !byte)).collect()
}

/// A question that waits for its answer, from a socket of its own.
#[derive(Debug)]
pub struct Question {
    socket: Socket,
    text: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Question {
    /// Connects to `target` from where the calling thread is and asks. `port` is the local port, or
    /// 0 for one of the kernel's choice.
    ///
    /// # Errors
    /// When the connection is not made, or the text not sent, in time.
    ///
    /// # Panics
    /// When the protocol is one that this machine has no sockets of.
    pub fn ask(
        protocol: Protocol,
        port: u16,
        target: SocketAddr,
        text: Vec<u8>,
    ) -> io::Result<Self> {
        let any = if target.is_ipv4() { "0.0.0.0" } else { "::" };
        let local = SocketAddr::new(any.parse().expect("address"), port);
        let socket = match protocol {
            Protocol::Tcp => {
                let mut stream = connect_from(local, target)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                stream.write_all(&[&(text.len() as u16).to_be_bytes()[..], &text].concat())?;
                Socket::Tcp(stream)
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(local)?;
                // From here on it takes answers of the target alone.
                socket.connect(target)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(&text)?;
                Socket::Udp(socket)
            }
            Protocol::Sctp => unimplemented!("SCTP goes by raw sockets"),
        };
        Ok(Self { socket, text })
    }

    /// The name of the server that answers.
    ///
    /// # Errors
    /// When the answer does not come in time.
    ///
    /// # Panics
    /// When it is not the answer to this question.
    pub fn answered_by(self) -> io::Result<u8> {
        let mut received = vec![0; self.text.len() + 1];
        match &self.socket {
            Socket::Tcp(stream) => (&*stream).read_exact(&mut received)?,
            Socket::Udp(socket) => {
                let (len, _) = receive(socket, &mut received)?;
                received.truncate(len);
            }
        }
        let name = received[0];
        assert!(received == answer(name, &self.text), "not what was asked");
        Ok(name)
    }
}
