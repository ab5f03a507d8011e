//! Tells systemd how far the agent is, by the protocol of `sd_notify(3)`.
//!
//! Invariant: nothing is said where nobody asks to hear it, as in a container, and nothing that the agent
//! does depends on being heard.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where systemd listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How long it may take systemd to make room.
const PATIENCE: Duration = Duration::from_secs(1);

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The agent has started.
    Ready,
    /// It is about to end.
    Stopping,
}

/// Tells it, where somebody listens.
pub fn tell(state: State) {
    let Some(socket) = env::var_os(SOCKET).filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?state, "systemd does not hear of it");
    }
}

/// A leading `@` is for a socket that has no file.
fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let message: &[u8] = match state {
        State::Ready => b"READY=1",
        State::Stopping => b"STOPPING=1",
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(PATIENCE))?;
    sender.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_a_file_is_reached_too() {
        let name = format!("margay-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();

        send(OsStr::new(&format!("@{name}")), State::Ready).unwrap();

        let mut message = [0; 16];
        let bytes = systemd.recv(&mut message).unwrap();
        assert_eq!(&message[..bytes], b"READY=1");
    }
}
