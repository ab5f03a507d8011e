//! The one table of programs that margay's commands run, and of the packages that have them.

use std::path::Path;

use super::Use;
use crate::bpftool;
use crate::workspace;

/// Something to have on the machine.
pub(super) struct Requirement {
    pub name: &'static str,
    look: Look,
    pub uses: &'static [Use],
    pub why: &'static str,
    /// Sets of packages, each of which will do; the first that the machine's apt knows is taken.
    pub apt: &'static [&'static [&'static str]],
    dnf: &'static str,
    pacman: &'static str,
}

/// How to tell that it is there.
enum Look {
    Program(&'static str),
    /// A bpftool that works.
    Bpftool,
    /// One of these files.
    File(&'static [&'static str]),
}

/// To need one more program, add it here.
pub(super) const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        name: "cc",
        look: Look::Program("cc"),
        uses: &[Use::Build, Use::Check, Use::Test, Use::Demo, Use::Bench],
        why: "links every binary and compiles SQLite",
        apt: &[&["gcc", "libc6-dev"]],
        dnf: "gcc",
        pacman: "gcc",
    },
    Requirement {
        name: "c++",
        look: Look::Program("c++"),
        uses: &[Use::Fuzz],
        why: "compiles libFuzzer",
        apt: &[&["g++"]],
        dnf: "gcc-c++",
        pacman: "gcc",
    },
    Requirement {
        name: "ip",
        look: Look::Program("ip"),
        uses: &[Use::Test, Use::Demo, Use::Bench],
        why: "shows and makes links, addresses and routes",
        apt: &[&["iproute2"]],
        dnf: "iproute",
        pacman: "iproute2",
    },
    Requirement {
        name: "tc",
        look: Look::Program("tc"),
        uses: &[Use::Test, Use::Demo],
        why: "shows filters",
        apt: &[&["iproute2"]],
        dnf: "iproute-tc",
        pacman: "iproute2",
    },
    Requirement {
        name: "bpftool",
        look: Look::Bpftool,
        uses: &[Use::Test, Use::Demo, Use::Bench],
        why: "shows pinned maps and programs",
        apt: &[&["bpftool"], &["linux-tools-common", "linux-tools-generic"]],
        dnf: "bpftool",
        pacman: "bpf",
    },
    Requirement {
        name: "ping",
        look: Look::Program("ping"),
        uses: &[Use::Test, Use::Demo],
        why: "sends echo requests",
        apt: &[&["iputils-ping"]],
        dnf: "iputils",
        pacman: "iputils",
    },
    Requirement {
        name: "nft",
        look: Look::Program("nft"),
        uses: &[Use::Test],
        why: "translates Service addresses, as kube-proxy does, and masquerades",
        apt: &[&["nftables"]],
        dnf: "nftables",
        pacman: "nftables",
    },
    Requirement {
        name: "iptables",
        look: Look::Program("iptables"),
        uses: &[Use::Test, Use::Bench],
        why: "makes the documented rules of hosts without nft, kube-proxy's, and portmap's",
        apt: &[&["iptables"]],
        dnf: "iptables-nft",
        pacman: "iptables-nft",
    },
    Requirement {
        name: "strace",
        look: Look::Program("strace"),
        uses: &[Use::Test],
        why: "shows that a verb starts no process",
        apt: &[&["strace"]],
        dnf: "strace",
        pacman: "strace",
    },
    Requirement {
        name: "shellcheck",
        look: Look::Program("shellcheck"),
        uses: &[Use::Check],
        why: "checks the installer",
        apt: &[&["shellcheck"]],
        dnf: "ShellCheck",
        pacman: "shellcheck",
    },
    Requirement {
        name: "host-local",
        look: Look::File(&[
            "/usr/lib/cni/host-local",
            "/opt/cni/bin/host-local",
            "/usr/libexec/cni/host-local",
        ]),
        uses: &[Use::Test, Use::Bench],
        why: "the standard CNI plugins, to work together with",
        apt: &[&["containernetworking-plugins"]],
        dnf: "containernetworking-plugins",
        pacman: "cni-plugins",
    },
    Requirement {
        name: "containerd",
        look: Look::Program("containerd"),
        uses: &[Use::Test],
        why: "a container runtime, to be the network of",
        apt: &[&["containerd"]],
        dnf: "containerd",
        pacman: "containerd",
    },
    Requirement {
        name: "runc",
        look: Look::Program("runc"),
        uses: &[Use::Test],
        why: "starts containers for the runtime",
        apt: &[&["runc"]],
        dnf: "runc",
        pacman: "runc",
    },
    Requirement {
        name: "podman",
        look: Look::Program("podman"),
        uses: &[Use::Test],
        why: "another container runtime; with the CNI back end, as versions up to 4 have it",
        apt: &[&["podman"]],
        dnf: "podman",
        pacman: "podman",
    },
    Requirement {
        name: "etcd",
        look: Look::Program("etcd"),
        uses: &[Use::Test, Use::Bench],
        why: "the datastore of several nodes",
        apt: &[&["etcd-server"], &["etcd"]],
        dnf: "etcd",
        pacman: "etcd",
    },
    Requirement {
        name: "busybox",
        look: Look::Program("busybox"),
        uses: &[Use::Test],
        why: "runs in the containers",
        apt: &[&["busybox-static"], &["busybox"]],
        dnf: "busybox",
        pacman: "busybox",
    },
];

impl Requirement {
    pub(super) fn is_present(&self) -> bool {
        match self.look {
            Look::Program(name) => workspace::find_program(name).is_some(),
            Look::Bpftool => bpftool::find().is_some(),
            Look::File(paths) => paths.iter().any(|path| Path::new(path).is_file()),
        }
    }
}

/// The command that installs all of these with this machine's package manager, as far as known.
pub(super) fn command(tools: &[&Requirement]) -> String {
    let has = |program: &str| workspace::find_program(program).is_some();
    let names = |package: &dyn Fn(&Requirement) -> String| {
        let mut names: Vec<_> = tools.iter().map(|tool| package(tool)).collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    if has("apt-get") {
        format!("sudo apt-get install {}", names(&|tool| tool.apt[0].join(" ")))
    } else if has("dnf") {
        format!("sudo dnf install {}", names(&|tool| tool.dnf.to_owned()))
    } else if has("pacman") {
        format!("sudo pacman -S {}", names(&|tool| tool.pacman.to_owned()))
    } else {
        format!("install with your package manager: {}", names(&|tool| tool.name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_requirement_can_be_installed_everywhere() {
        for tool in REQUIREMENTS {
            assert!(!tool.apt.is_empty() && tool.apt.iter().all(|set| !set.is_empty()));
            assert!(!tool.dnf.is_empty() && !tool.pacman.is_empty(), "{}", tool.name);
            assert!(!tool.uses.is_empty(), "{} is needed for nothing", tool.name);
        }
    }

    #[test]
    fn nothing_is_required_twice() {
        let names: HashSet<&str> = REQUIREMENTS.iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), REQUIREMENTS.len());
    }

    #[test]
    fn a_file_in_any_of_its_places_is_present() {
        let file = |paths| Requirement { look: Look::File(paths), ..REQUIREMENTS[0] };
        assert!(file(&["/nonexistent", "/proc/self/status"]).is_present());
        assert!(!file(&["/nonexistent"]).is_present());
    }
}
