//! From a URL to a TCP connection.
//!
//! A host is an IP address or a name that `/etc/hosts` has. margay's executable is static, and glibc's
//! own name service works in a static executable only where the very same glibc is installed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::Uri;

use super::conf::bare_host;

const HOSTS: &str = "/etc/hosts";

/// Makes connections, each within a time limit.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) timeout: Duration,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = self.timeout;
        Box::pin(async move {
            let connected = timeout(limit, connect(&uri)).await;
            let no_answer = || {
                let reason = format!("no connection within {} ms", limit.as_millis());
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            };
            let stream = connected.unwrap_or_else(|_| no_answer())?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Connection { stream }))
        })
    }
}

/// A connection that lets its user hear the last words of a peer that has hung up.
///
/// A server that does not like a client's certificate says so and closes, after what TLS 1.3 takes
/// for the end of the handshake. The client writes by then, and a failed write would hide the reason, which
/// can still be read. So writing to a peer that is gone succeeds, and reading ends.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(match written {
            Err(error) if is_hung_up(&error) => Ok(bytes.len()),
            written => written,
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Tries the host's addresses in turn.
async fn connect(uri: &Uri) -> io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or_default();
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("{host} is neither an IP address nor in {HOSTS}"),
    );
    for address in addresses(host)? {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let bare = bare_host(host);
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    match std::fs::read_to_string(HOSTS) {
        Ok(hosts) => Ok(in_hosts(&hosts, bare)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The addresses of a name in a text of the form of hosts(5).
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let address_of = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut fields = line.split_whitespace();
        let address = fields.next()?.parse().ok()?;
        fields.any(|field| field.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(address_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_the_hosts_file() {
        let hosts = "# 10.0.0.9 etcd-1\n127.0.0.1 localhost\n10.0.0.1\tetcd-1.local Etcd-1 # one\n\
                     fd00::1 etcd-1\nnot-an-address etcd-1\n";

        assert_eq!(
            in_hosts(hosts, "etcd-1"),
            ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(in_hosts(hosts, "etcd"), [] as [IpAddr; 0]);
        assert_eq!(addresses("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
    }
}
