//! Where everything is pinned below a root on a BPF file system.
//!
//! `<root>/<ABI version>/maps/<name>`, `…/progs/<build id>/<name>`, `…/node-progs/<build id>/<name>` and
//! `…/links/<interface>-<name>`.
//! Invariant: no path depends on anything that a process remembers, so whoever knows root, build
//! and interface name finds the pin. File names hold no dot: bpffs refuses them.

use std::path::{Path, PathBuf};
use std::{fs, io};

use margay_abi::ABI_VERSION;

use crate::Program;
use crate::program::Group;

/// Ends the name of a folder of programs that are not all there yet.
const UNFINISHED: &str = "-unfinished";

/// The pin paths of one build below one root.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    abi: PathBuf,
    build: String,
}

impl Pins {
    pub(crate) fn new(root: &Path, build: &str) -> Self {
        Self { abi: abi_dir(root), build: build.to_owned() }
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.abi.join("maps")
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The build's name.
    pub(crate) fn build(&self) -> &str {
        &self.build
    }

    /// The folder of every build's programs of a group.
    pub(crate) fn builds(&self, group: Group) -> PathBuf {
        self.abi.join(builds(group))
    }

    /// This build's programs of a group. Exists with all of them in it, or not at all.
    pub(crate) fn programs(&self, group: Group) -> PathBuf {
        self.builds(group).join(&self.build)
    }

    /// Where this build's programs of a group are pinned until they are complete.
    pub(crate) fn unfinished_programs(&self, group: Group) -> PathBuf {
        self.builds(group).join(format!("{}{UNFINISHED}", self.build))
    }

    pub(crate) fn program(&self, program: Program) -> PathBuf {
        self.programs(program.group()).join(program.name())
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.abi.join("links")
    }

    pub(crate) fn link(&self, interface: &str, program: Program) -> PathBuf {
        self.links().join(link_name(interface, program))
    }
}

/// The folder of every build's programs of a group.
fn builds(group: Group) -> &'static str {
    match group {
        Group::Pods => "progs",
        Group::Nodes => "node-progs",
    }
}

/// The builds that have published their programs for pods below `root`, in no order.
pub(crate) fn published_builds(root: &Path) -> io::Result<Vec<String>> {
    builds_in(&abi_dir(root).join(builds(Group::Pods)))
}

/// The same in the folder of programs of any version.
pub(crate) fn builds_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut builds = Vec::new();
    for entry in entries {
        // Whatever is not UTF-8 is not margay's.
        if let Ok(name) = entry?.file_name().into_string()
            && !name.ends_with(UNFINISHED)
        {
            builds.push(name);
        }
    }
    Ok(builds)
}

/// The folder of this ABI version below `root`.
pub(crate) fn abi_dir(root: &Path) -> PathBuf {
    root.join(ABI_VERSION.to_string())
}

/// The pin of a TCX link below `root`, which is the same for every build.
pub(crate) fn link(root: &Path, interface: &str, program: Program) -> PathBuf {
    abi_dir(root).join("links").join(link_name(interface, program))
}

/// `:` stands for a dot, since an interface name may hold dots and never holds a colon (the kernel's
/// `dev_valid_name` refuses it).
fn link_name(interface: &str, program: Program) -> String {
    format!("{}-{}", interface.replace('.', ":"), program.name())
}

/// The interface whose TCX link is pinned by this name.
pub(crate) fn interface_of_link(name: &str) -> Option<String> {
    let interface = |program: Program| name.strip_suffix(program.name())?.strip_suffix('-');
    let programs = Program::OF_POD.into_iter().chain(Program::OF_NODE);
    programs.into_iter().find_map(interface).map(|name| name.replace(':', "."))
}
