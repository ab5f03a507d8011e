//! Takes margay's programs away: from an interface, and from the node.
//!
//! Invariant: what others have attached stays. Whoever does it sees to it that pods go on by the host's
//! stack first.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::Handle;

use crate::attach::{self, AttachError};
use crate::earlier::{Removed, versions};
use crate::load::{self, LoadOptions};
use crate::{Datapath, DatapathError, Program};

impl Datapath {
    /// Detaches whatever is in margay's places on an interface, of whatever build and version and by
    /// whichever way; `false` if there was nothing. No packet is lost, and an empty clsact qdisc stays. Needs
    /// no pins.
    pub async fn detach_all(
        root: &Path,
        netlink: &Handle,
        ifindex: u32,
        interface: &str,
    ) -> Result<bool, AttachError> {
        let found = attach::clsact::inspect(Program::OF_POD, netlink, ifindex).await?;
        let is_attached = found.iter().any(Option::is_some);
        if is_attached {
            attach::clsact::remove_filters(Program::OF_POD, netlink, ifindex).await?;
        }
        let had_links = attach::tcx::remove_all_links(root, interface)?;
        if had_links {
            wait_for_links_to_go(root, ifindex);
        }
        Ok(is_attached || had_links)
    }

    /// Removes every pin below `root`, of every build and version. What is attached stays so, but for
    /// links of TCX. No process loads meanwhile.
    pub fn remove_all_pins(root: &Path, options: &LoadOptions) -> Result<Removed, DatapathError> {
        let _lock = load::lock(&options.lock_dir)?;
        let failed = |source| DatapathError::Builds { root: root.display().to_string(), source };
        let mut removed = Removed::new();
        for version in versions(root).map_err(failed)? {
            let folder = PathBuf::from(version.to_string());
            load::remove_programs(&root.join(&folder))?;
            removed.push(folder);
        }
        Ok(removed)
    }
}

/// The kernel detaches a link some time after its last pin has gone (`bpf_link_put` leaves it to a worker), and
/// until then the program drops what a pod without an entry sends.
fn wait_for_links_to_go(root: &Path, ifindex: u32) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(1);
    let builds = Datapath::pinned_builds(root).unwrap_or_default();
    let ours: BTreeSet<_> = builds.into_iter().flat_map(|build| build.programs).collect();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match attach::tcx::attached(ifindex) {
            Ok(attached) if attached.iter().any(|program| ours.contains(program)) => {
                thread::sleep(PAUSE);
            }
            _ => return,
        }
    }
}
