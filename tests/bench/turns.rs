//! Taking turns: each peer has a thread and a node of its own, and only one of them runs at a time.
//!
//! Measurements in alternation meet the same noise: sample *i* of one peer and sample *i* of another
//! are a pair.

use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Context, Result, anyhow};
use margay_tests::Node;

/// A thread's right to run until it passes it on.
pub(crate) struct Turn {
    go: Receiver<()>,
    passed: Sender<()>,
}

impl Turn {
    /// Lets every other peer take its turn, and returns when it is this one's again.
    pub(crate) fn pass(&self) {
        // An error is the end of the run: the scheduler has gone.
        _ = self.passed.send(());
        _ = self.go.recv();
    }
}

/// Lets every one of `peers` run `story` on a node of its own: all that it does is done while the
/// others wait, from one [`Turn::pass`] to the next. Each round begins with another peer.
pub(crate) fn in_turns<P, T>(
    peers: &[P],
    story: impl Fn(P, &Node, &Turn) -> Result<T> + Sync,
) -> Result<Vec<(P, T)>>
where
    P: Copy + Debug + Send,
    T: Send,
{
    in_turns_on(peers, |_| Node::new(), story)
}

/// The same on something else than a node, which `make` makes on the thread that is to be in it.
pub(crate) fn in_turns_on<P, N, T>(
    peers: &[P],
    make: impl Fn(P) -> Option<N> + Sync,
    story: impl Fn(P, &N, &Turn) -> Result<T> + Sync,
) -> Result<Vec<(P, T)>>
where
    P: Copy + Debug + Send,
    T: Send,
{
    let (make, story) = (&make, &story);
    thread::scope(|scope| {
        let mut players: Vec<_> = Vec::new();
        for &peer in peers {
            let ((start, go), (passed, pass)) = (mpsc::channel(), mpsc::channel());
            let turn = Turn { go, passed };
            let play = move || -> Result<T> {
                _ = turn.go.recv();
                let node = make(peer).context("a node needs root")?;
                let outcome = story(peer, &node, &turn);
                drop(node);
                // The turn, and with it the scheduler's channel, ends here, after the node.
                drop(turn);
                outcome
            };
            players.push((peer, start, pass, scope.spawn(play)));
        }
        conduct(&players.iter().map(|(_, start, pass, _)| (start, pass)).collect::<Vec<_>>());
        let outcomes = players.into_iter().map(|(peer, _, _, thread)| {
            let outcome = thread.join().map_err(|panic| anyhow!(message(panic.as_ref())));
            let outcome = outcome.and_then(|outcome| outcome);
            Ok((peer, outcome.with_context(|| format!("{peer:?}"))?))
        });
        outcomes.collect()
    })
}

/// Gives the turn to one after the other until all have come to their end.
fn conduct(players: &[(&Sender<()>, &Receiver<()>)]) {
    let mut playing: Vec<bool> = players.iter().map(|_| true).collect();
    let shows_progress = std::io::stderr().is_terminal();
    for round in 0.. {
        if !playing.contains(&true) {
            break;
        }
        if shows_progress {
            eprint!("\r  round {round}");
            _ = std::io::stderr().flush();
        }
        for index in (0..players.len()).map(|index| (index + round) % players.len()) {
            let (start, passed) = players[index];
            // A player that has gone has closed its channels.
            playing[index] = playing[index] && start.send(()).is_ok() && passed.recv().is_ok();
        }
    }
    if shows_progress {
        eprint!("\r             \r");
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn one_runs_at_a_time_and_each_round_begins_with_another() {
        let log = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let mut players = Vec::new();
            // The second one has less to do than the others.
            for (name, rounds) in [('a', 3), ('b', 1), ('c', 3)] {
                let ((start, go), (passed, pass)) = (mpsc::channel(), mpsc::channel());
                let (turn, log) = (Turn { go, passed }, &log);
                scope.spawn(move || {
                    _ = turn.go.recv();
                    for _ in 0..rounds {
                        log.lock().unwrap().push(name);
                        turn.pass();
                    }
                });
                players.push((start, pass));
            }
            conduct(&players.iter().map(|(start, pass)| (start, pass)).collect::<Vec<_>>());
        });
        assert_eq!(log.into_inner().unwrap().iter().collect::<String>(), "abccaca");
    }
}
