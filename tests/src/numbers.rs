//! Streams of numbers between two pods, of which every one must arrive.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::Pod;
use crate::traffic::{self, Connection, PATIENCE};

/// Room for the numbers that wait for a receiver that does not get the processor, in bytes.
const BUFFER_BYTES: usize = 16 << 20;
/// Between two datagrams.
const PAUSE: Duration = Duration::from_micros(300);

/// A UDP stream from the first pod to the second over IPv4, and a TCP stream the other way over IPv6.
pub struct Numbers {
    over: Arc<AtomicBool>,
    arrived: [Arc<AtomicU64>; 2],
    streams: Vec<JoinHandle<u64>>,
}

impl Numbers {
    /// Starts both, each pod with its addresses of both families.
    ///
    /// # Panics
    /// When a connection cannot be made.
    #[must_use]
    pub fn start(from: (&Pod<'_>, IpAddr, IpAddr), to: (&Pod<'_>, IpAddr, IpAddr)) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let arrived = [0, 0].map(|none| Arc::new(AtomicU64::new(none)));
        let sender = traffic::udp(from.0, SocketAddr::new(from.1, 0));
        let receiver = traffic::udp(to.0, SocketAddr::new(to.1, 0));
        sockopt::set_socket_recv_buffer_size_force(&receiver, BUFFER_BYTES).expect("buffer");
        receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        sender.connect(receiver.local_addr().expect("address")).expect("connect");

        let listener = traffic::listen(from.0, SocketAddr::new(from.2, 0));
        let target = listener.local_addr().expect("address");
        let Connection { mut client, mut server } =
            Connection::open(to.0, target, &listener).expect("connect");

        let stop = Arc::clone(&over);
        let send_datagrams = std::thread::spawn(move || {
            let mut sent: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                sender.send(&sent.to_be_bytes()).expect("send a number");
                sent += 1;
                std::thread::sleep(PAUSE);
            }
            sent
        });
        let count = Arc::clone(&arrived[0]);
        let receive_datagrams = std::thread::spawn(move || {
            let mut buffer = [0; 8];
            // The stream is over when nothing more comes.
            while traffic::receive(&receiver, &mut buffer).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            count.load(Ordering::Relaxed)
        });
        let stop = Arc::clone(&over);
        let write = std::thread::spawn(move || {
            let mut written: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                client.write_all(&written.to_be_bytes()).expect("write a number");
                written += 1;
                std::thread::sleep(PAUSE);
            }
            written
        });
        let count = Arc::clone(&arrived[1]);
        let read = std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while server.read_exact(&mut buffer).is_ok() {
                let expected = count.fetch_add(1, Ordering::Relaxed);
                assert_eq!(u64::from_be_bytes(buffer), expected, "numbers come in their order");
            }
            count.load(Ordering::Relaxed)
        });
        Self { over, arrived, streams: vec![send_datagrams, receive_datagrams, write, read] }
    }

    /// Waits until more numbers have arrived by both ways.
    ///
    /// # Panics
    /// When none do in time.
    pub fn wait_for_more(&self) {
        let count = || self.arrived.each_ref().map(|count| count.load(Ordering::Relaxed));
        let (before, started) = (count(), Instant::now());
        while count().iter().zip(before).any(|(now, before)| *now < before + 20) {
            assert!(
                started.elapsed() < PATIENCE,
                "the stream has stopped: {before:?}, {:?}",
                count()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops both.
    ///
    /// # Panics
    /// When a number did not arrive.
    pub fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        let counts: Vec<u64> =
            self.streams.into_iter().map(|stream| stream.join().expect("a stream")).collect();
        assert_eq!(counts[0], counts[1], "datagrams sent and received");
        assert_eq!(counts[2], counts[3], "numbers written and read");
    }
}
