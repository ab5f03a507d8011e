//! The machine's processors: which one a thread runs on, and how much of them is used.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Lets the calling thread, and those that it starts, run on one processor alone.
pub(crate) fn keep_to(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| format!("run on processor {processor}"))
}

/// The first and the last of the processors that this process may use.
pub(crate) fn first_and_last() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(None).context("processors")?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let first = allowed.next().context("no processor")?;
    Ok([first, allowed.next_back().unwrap_or(first)])
}

/// What this process and the kernel on its behalf have used of the processors, whoever else is busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    seconds: f64,
}

impl Used {
    /// Until this moment.
    ///
    /// Packets are handled by the thread that sends them, on its way back from the system call, and
    /// by `ksoftirqd` where that gets too long. A kernel that accounts for interrupts by itself
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`) has the former in `/proc/stat` alone, and there for the whole
    /// machine; any other has it in the thread's time.
    pub(crate) fn now() -> Result<Self> {
        let process = clock_gettime(ClockId::ProcessCPUTime);
        let mut seconds = process.tv_sec as f64 + process.tv_nsec as f64 / 1e9;
        let sources = SOURCES.get_or_init(Sources::find);
        for schedstat in &sources.ksoftirqd {
            seconds += number(&fs::read_to_string(schedstat)?, 0)? / 1e9;
        }
        if sources.has_irq_time {
            let stat = fs::read_to_string("/proc/stat")?;
            // cpu, user, nice, system, idle, iowait, irq, softirq, in units of 10 ms.
            seconds += (number(&stat, 6)? + number(&stat, 7)?) / 100.0;
        }
        Ok(Self { seconds })
    }

    /// Seconds since another moment.
    pub(crate) fn since(self, before: Self) -> f64 {
        self.seconds - before.seconds
    }
}

static SOURCES: OnceLock<Sources> = OnceLock::new();

struct Sources {
    ksoftirqd: Vec<PathBuf>,
    has_irq_time: bool,
}

impl Sources {
    fn find() -> Self {
        let tasks = fs::read_dir("/proc").into_iter().flatten().flatten().map(|task| task.path());
        let is_ksoftirqd = |task: &PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
        };
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        Self {
            ksoftirqd: tasks.filter(is_ksoftirqd).map(|task| task.join("schedstat")).collect(),
            has_irq_time: symbols.lines().any(|line| line.ends_with(" irqtime_account_irq")),
        }
    }
}

fn number(text: &str, index: usize) -> Result<f64> {
    let word = text.split_whitespace().nth(index).context("a number is missing")?;
    word.parse().with_context(|| format!("{word} is no number"))
}
