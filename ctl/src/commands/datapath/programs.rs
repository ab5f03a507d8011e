//! `margayctl datapath programs`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::UNIX_EPOCH;

use clap::Args;
use margay::netlink::Netlink;
use margay_datapath::{Datapath, PinnedProgramInfo, ProgramId, pinned_programs};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, DIM, Format, Report, Table, age, bytes};

/// Whether the kernel counts how long programs run.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Interfaces that a table names; a document has all.
const SHOWN_INTERFACES: usize = 3;

/// `datapath programs`.
#[derive(Debug, Args)]
pub(crate) struct Programs {
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(arguments: &Programs, node: &Node, format: Format) -> Result<(), Failure> {
    let root = node.settings()?.paths.bpffs_root;
    let netlink = Netlink::open()?;
    let look = async || {
        let current = node.datapaths()?.first().map(|build| build.build().to_owned());
        let mut interfaces = interfaces(&netlink).await?;
        let programs = pinned_programs(&root)?.into_iter().map(|program| {
            let attached = interfaces.remove(&program.id).unwrap_or_default();
            Row::of(program, attached, current.as_deref())
        });
        let statistics = fs::read_to_string(STATISTICS).is_ok_and(|text| text.trim() != "0");
        Ok(Pinned { statistics, programs: programs.collect() })
    };
    output::show_or_watch(&arguments.watched, format, look).await
}

/// The interfaces that each program is attached to.
async fn interfaces(netlink: &Netlink) -> Result<BTreeMap<ProgramId, Vec<String>>, Failure> {
    let mut interfaces: BTreeMap<ProgramId, Vec<String>> = BTreeMap::new();
    for link in netlink.links().await? {
        // One that goes meanwhile has none.
        let Ok(programs) = Datapath::programs_in_use(netlink.handle(), link.index).await else {
            continue;
        };
        for program in programs {
            interfaces.entry(program).or_default().push(link.name.clone());
        }
    }
    Ok(interfaces)
}

/// What `datapath programs` shows.
#[derive(Debug, Serialize)]
struct Pinned {
    /// Whether the kernel counts how long programs run.
    statistics: bool,
    programs: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    program: String,
    id: u32,
    build: String,
    /// Whether it is of the build that new pods get.
    is_current: bool,
    abi_version: u32,
    tag: String,
    instructions: Option<u32>,
    verified_instructions: Option<u32>,
    machine_code_bytes: Option<u32>,
    memory_bytes: Option<u64>,
    /// Seconds since the Unix epoch.
    loaded_at: Option<u64>,
    run_time_ns: Option<u64>,
    run_count: Option<u64>,
    map_ids: Vec<u32>,
    interfaces: Vec<String>,
}

impl Row {
    fn of(program: PinnedProgramInfo, interfaces: Vec<String>, current: Option<&str>) -> Self {
        let since_epoch = program.loaded_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            is_current: program.abi_version == margay_abi::ABI_VERSION
                && current == Some(program.build.as_str()),
            program: program.name,
            id: program.id.0,
            build: program.build,
            abi_version: program.abi_version,
            tag: program.tag,
            instructions: program.size.map(|size| size.instructions),
            verified_instructions: program.size.map(|size| size.verified),
            machine_code_bytes: program.size.map(|size| size.machine_code_bytes),
            memory_bytes: program.memory_bytes,
            loaded_at: since_epoch.map(|since| since.as_secs()),
            run_time_ns: program.run_time_ns,
            run_count: program.run_count,
            map_ids: program.map_ids,
            interfaces,
        }
    }

    /// Nanoseconds of one run.
    fn ns_a_run(&self) -> Option<u64> {
        self.run_time_ns?.checked_div(self.run_count?)
    }

    fn shown_interfaces(&self) -> String {
        let shown: Vec<_> = self.interfaces.iter().take(SHOWN_INTERFACES).cloned().collect();
        match self.interfaces.len().saturating_sub(SHOWN_INTERFACES) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}

impl Report for Pinned {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut table = Table::new([
            "PROGRAM",
            "ID",
            "BUILD",
            "INSTRUCTIONS",
            "CODE",
            "LOADED",
            "RUNS",
            "NS A RUN",
            "INTERFACES",
        ]);
        for program in &self.programs {
            let mark = if program.is_current { "" } else { ", not current" };
            let number =
                |number: Option<u64>| Cell::number(number.map_or("-".into(), |n| n.to_string()));
            let code = program.machine_code_bytes.map(|code| bytes(code.into()));
            table.row([
                program.program.clone().into(),
                Cell::number(program.id),
                format!("{}{mark}", program.build).into(),
                number(program.instructions.map(u64::from)),
                Cell::number(code.unwrap_or_else(|| "-".to_owned())),
                Cell::number(program.loaded_at.map_or("-".to_owned(), age)),
                number(
                    program.run_count.filter(|_| self.statistics || program.run_count != Some(0)),
                ),
                number(program.ns_a_run()),
                program.shown_interfaces().into(),
            ]);
        }
        write!(out, "{table}")?;
        if !self.statistics {
            writeln!(out, "{DIM}runs are counted with sysctl kernel.bpf_stats_enabled=1{DIM:#}")?;
        }
        Ok(())
    }
}
