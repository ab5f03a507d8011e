//! Whether the kernel takes programs, what of them is pinned, and how full the maps are.

use std::path::Path;

use margay::config::Dataplane;
use margay::error::chain;
use margay_abi::ABI_VERSION;
use margay_datapath::{Datapath, PinnedBuild, Pods, ProbeError, probe};

use super::catalogue::{
    BPFFS_NOT_MOUNTED, BPFFS_PRIVATE, BPFFS_UNUSABLE, FLOWS_NEARLY_FULL, KERNEL_REFUSES,
    MAP_NEARLY_FULL, PROGRAMS_MISSING, PROGRAMS_OTHER_BUILD, PROGRAMS_UNUSED,
};
use super::finding::Findings;
use super::picture::Picture;
use super::{Depth, is_nearly_full};

const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

pub(super) async fn look(picture: &Picture<'_>, depth: Depth, findings: &mut Findings) {
    let mut networks = picture.node.whole_networks();
    let wants_programs = networks.any(|conf| conf.dataplane != Dataplane::Linux);
    if !wants_programs && picture.on_programs().next().is_none() {
        return;
    }
    look_at_kernel(&picture.paths().bpffs_root, findings);
    look_at_pins(picture, findings).await;
    look_at_maps(picture, depth, findings);
}

fn look_at_kernel(root: &Path, findings: &mut Findings) {
    match probe(root) {
        Ok(()) if root.starts_with(SYSTEM_BPFFS) && !is_bpffs(Path::new(SYSTEM_BPFFS)) => {
            let text = format!("no BPF file system is mounted on {SYSTEM_BPFFS}");
            findings.add(&BPFFS_NOT_MOUNTED, text);
        }
        Ok(()) => {}
        Err(error @ ProbeError::Bpffs(_)) => findings.add(&BPFFS_UNUSABLE, chain(&error)),
        Err(error) => findings.add(&KERNEL_REFUSES, chain(&error)),
    }
}

fn is_bpffs(path: &Path) -> bool {
    /// `BPF_FS_MAGIC` of `linux/magic.h`.
    const MAGIC: u32 = 0xcafe_4a11;
    rustix::fs::statfs(path).is_ok_and(|file_system| file_system.f_type as u32 == MAGIC)
}

async fn look_at_pins(picture: &Picture<'_>, findings: &mut Findings) {
    let pods = picture.on_programs().count();
    if picture.builds.is_empty() {
        if pods == 0 {
            return;
        }
        let root = picture.paths().bpffs_root.display();
        match runs_programs(picture).await {
            true => findings.add(
                &BPFFS_PRIVATE,
                format!("interfaces of {pods} pods run programs, and none are pinned below {root}"),
            ),
            false => findings.add(
                &PROGRAMS_MISSING,
                format!("no programs are pinned below {root}, for {pods} pods"),
            ),
        }
        return;
    }
    let Some(current) = current(&picture.builds) else { return };
    let Some(ours) =
        findings.or_note("the programs of this executable", Datapath::embedded_build())
    else {
        return;
    };
    if (current.abi_version, current.build.as_str()) != (ABI_VERSION, ours) {
        let PinnedBuild { build, abi_version, .. } = current;
        findings.add(
            &PROGRAMS_OTHER_BUILD,
            format!("new pods get build {build} (ABI {abi_version}); margayctl has {ours} (ABI {ABI_VERSION})"),
        );
    }
    look_for_unused(picture, current, findings).await;
}

async fn runs_programs(picture: &Picture<'_>) -> bool {
    for endpoint in picture.on_programs() {
        let Some(link) = picture.link(&endpoint.host_veth) else { continue };
        let attached = Datapath::programs_in_use(picture.netlink.handle(), link.index).await;
        if attached.is_ok_and(|programs| !programs.is_empty()) {
            return true;
        }
    }
    false
}

/// The build that pods get: of the latest version the one that was published or made current last.
pub(crate) fn current(builds: &[PinnedBuild]) -> Option<&PinnedBuild> {
    builds.iter().max_by_key(|build| (build.abi_version, build.current_since))
}

async fn look_for_unused(picture: &Picture<'_>, current: &PinnedBuild, findings: &mut Findings) {
    let mut in_use = Vec::new();
    for link in picture.links.iter().filter(|link| margay::naming::is_of_a_pod(&link.name)) {
        let attached = Datapath::programs_in_use(picture.netlink.handle(), link.index).await;
        in_use.extend(attached.unwrap_or_default());
    }
    let is_unused = |build: &&PinnedBuild| {
        *build != current && !build.programs.iter().any(|program| in_use.contains(program))
    };
    let unused: Vec<_> = picture.builds.iter().filter(is_unused).collect();
    for PinnedBuild { build, abi_version, .. } in unused {
        let text = format!("build {build} (ABI {abi_version}) is pinned, and no interface runs it");
        findings.add(&PROGRAMS_UNUSED, text);
    }
}

fn look_at_maps(picture: &Picture<'_>, depth: Depth, findings: &mut Findings) {
    let root = &picture.paths().bpffs_root;
    let (Some(entries), Ok(Some(pods))) = (&picture.entries, Pods::open(root)) else { return };
    for (ipv4, name) in [(true, "pods_v4"), (false, "pods_v6")] {
        let used = entries.keys().filter(|address| address.is_ipv4() == ipv4).count();
        let capacity = pods.capacity(ipv4);
        if is_nearly_full(used as u128, capacity.into()) {
            let text = format!("map {name} has {used} entries of {capacity}");
            findings.add(&MAP_NEARLY_FULL, text);
        }
    }
    if depth == Depth::Quick {
        return;
    }
    let opened = Datapath::open_builds(root).map(|builds| builds.into_iter().next());
    let Some(Some(datapath)) = findings.or_note("the pinned programs", opened) else { return };
    for (ipv4, name) in [(true, "flows_v4"), (false, "flows_v6")] {
        let fill = datapath.flows().fill(ipv4);
        let Some((used, capacity)) = findings.or_note(name, fill) else { continue };
        if is_nearly_full(used as u128, capacity.into()) {
            let text = format!("map {name} has {used} entries of {capacity}");
            findings.add(&FLOWS_NEARLY_FULL, text);
        }
    }
}
