//! A plugin's execution as a runtime sees it: from before it is started until it has been waited
//! for, with what it and its children used.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use margay_tests::Invocation;
use serde_json::Value;

/// What a plugin's execution took.
#[derive(Debug)]
pub(crate) struct Execution {
    /// From before the start to after the end.
    pub(crate) wall: Duration,
    /// User and system time of the process and of those that it waited for.
    pub(crate) cpu: Duration,
    stdout: String,
    stderr: String,
}

impl Execution {
    /// Executes a plugin.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn of(invocation: &Invocation) -> Result<Self> {
        let started = Instant::now();
        let mut child = invocation.start();
        let (status, usage) = wait(&mut child)?;
        let wall = started.elapsed();
        let execution = Self {
            wall,
            cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
            stdout: text(child.stdout)?,
            stderr: text(child.stderr)?,
        };
        ensure!(status.success(), "{status}: {}{}", execution.stdout, execution.stderr);
        Ok(execution)
    }

    /// Calls to the kernel by this process, from `started` to this moment.
    pub(crate) fn of_calls(started: Instant) -> Self {
        let (stdout, stderr) = (String::new(), String::new());
        Self { wall: started.elapsed(), cpu: Duration::ZERO, stdout, stderr }
    }

    /// Wall time, milliseconds.
    pub(crate) fn wall_ms(&self) -> f64 {
        self.wall.as_secs_f64() * 1e3
    }

    /// CPU time, milliseconds.
    pub(crate) fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3
    }

    /// Its answer; null for a verb that has none.
    pub(crate) fn answer(&self) -> Result<Value> {
        if self.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.stdout).context("the plugin's answer")
    }

    /// What [`launch`] found, where it was in between.
    pub(crate) fn launched_peak_rss_kib(&self) -> Result<u64> {
        let mut found = self.stderr.lines().filter_map(|line| line.strip_prefix(PEAK_RSS));
        Ok(found.next_back().context("no launcher in between")?.parse()?)
    }

    /// The phases in margay's log line, in microseconds.
    pub(crate) fn phases(&self) -> Vec<(String, f64)> {
        let quoted = self.stderr.split_once("phases=\"").and_then(|(_, rest)| rest.split_once('"'));
        let words = quoted.map_or("", |(phases, _)| phases).split_whitespace();
        let phase = |word: &str| {
            let (name, time) = word.split_once('=')?;
            Some((name.to_owned(), time.strip_suffix("us")?.parse().ok()?))
        };
        words.filter_map(phase).collect()
    }

    /// A number in a line of margay's log, of a field that only that line has.
    pub(crate) fn logged(&self, field: &str) -> Result<f64> {
        let mut words = self.stderr.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        Ok(value.with_context(|| format!("no {field} in the log"))?.parse()?)
    }
}

/// What [`launch`] writes its finding behind.
const PEAK_RSS: &str = "peak_rss_kib=";

/// First argument of this program where it stands between bench and a plugin.
pub(crate) const LAUNCH: &str = "--launch";

/// Starts a program and prints its largest resident set, KiB, on standard error. A small process
/// for this: what it starts cannot be told to be smaller than itself.
pub(crate) fn launch(mut words: impl Iterator<Item = String>) -> Result<()> {
    let program = words.next().context("a program to launch")?;
    let mut child = Command::new(program).args(words).spawn()?;
    let (status, usage) = wait(&mut child)?;
    eprintln!("\n{PEAK_RSS}{}", usage.ru_maxrss);
    ensure!(status.success(), "{status}");
    Ok(())
}

fn text(pipe: Option<impl Read>) -> Result<String> {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_string(&mut text)?;
    }
    Ok(text)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    seconds + Duration::from_micros(time.tv_usec.unsigned_abs())
}

#[expect(unsafe_code, reason = "wait4(2) has no safe wrapper among the dependencies")]
fn wait(child: &mut Child) -> Result<(ExitStatus, libc::rusage)> {
    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: a struct of integers, for which zeroes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals that live through the call, of the types that it writes.
        if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == pid {
            return Ok((ExitStatus::from_raw(status), usage));
        }
        let error = std::io::Error::last_os_error();
        ensure!(error.kind() == std::io::ErrorKind::Interrupted, "wait4: {error}");
    }
}
