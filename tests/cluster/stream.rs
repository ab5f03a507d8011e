//! Traffic that goes on while something happens, and says whether a packet was lost.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use margay_tests::cluster::{MemberPod, wait_until};
use margay_tests::traffic::udp;

/// How long an answer may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);

/// Questions and answers by UDP, one after the other, over one family.
pub(crate) struct Stream<'scope> {
    answered: &'scope AtomicU64,
    stop: &'scope AtomicBool,
    client: Option<ScopedJoinHandle<'scope, u64>>,
}

/// What a stream counts with.
#[derive(Default)]
pub(crate) struct Counters {
    answered: AtomicU64,
    stop: AtomicBool,
}

impl<'scope> Stream<'scope> {
    /// Starts it.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        counters: &'scope Counters,
        (from, to): (&MemberPod, &MemberPod),
        ipv4: bool,
    ) -> Self {
        let Counters { answered, stop } = counters;
        let server = udp(to, SocketAddr::new(to.address(ipv4), 0));
        let client = udp(from, SocketAddr::new(from.address(ipv4), 0));
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        client.connect(server.local_addr().unwrap()).unwrap();
        scope.spawn(move || serve(&server, stop));
        let client = scope.spawn(move || ask(&client, answered, stop));
        Self { answered, stop, client: Some(client) }
    }

    /// Waits until so many more answers have come.
    pub(crate) fn wait_for(&self, answers: u64) {
        let enough = self.answered.load(Ordering::Relaxed) + answers;
        wait_until("answers", || self.answered.load(Ordering::Relaxed) >= enough);
    }

    /// Ends it, and says how many answers did not come.
    pub(crate) fn lost(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.client.take().unwrap().join().unwrap()
    }
}

/// A test that fails must not wait for it for ever.
impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) {
    let mut question = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut question) {
            Ok((_, asker)) => drop(socket.send_to(&question, asker).unwrap()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn ask(socket: &UdpSocket, answered: &AtomicU64, stop: &AtomicBool) -> u64 {
    let mut lost = 0;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // A way that is missing for a moment may be an error right here.
        let sent = socket.send(&number.to_be_bytes());
        let mut answer = [0; 8];
        match sent.and_then(|_| socket.recv(&mut answer)) {
            Ok(_) if answer == number.to_be_bytes() => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            _ => lost += 1,
        }
        thread::sleep(PAUSE);
    }
    lost
}
