//! margay-ipam's verbs on the datastore, shared by `margay` (in process) and `margay-ipam`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use margay_datastore::{
    AssignRequest, Attachment, Etcd, EtcdConf, PodRef, Sqlite, Store, StoreError, Unopened,
};

use super::{AssignedIp, IpamError, IpamResult};
use crate::args::CniArgs;
use crate::config::{Datastore, PoolSet};
use crate::error::chain;
use crate::netns::Netns;
use crate::protocol::Target;

/// margay-ipam on a datastore.
pub struct Builtin<'a> {
    /// Where allocations are.
    pub store: &'a Store,
    /// Name of this node.
    pub node: &'a str,
    /// The kernel's boot ID, see [`boot_id`].
    pub boot_id: &'a str,
    /// The network's pools.
    pub pools: &'a PoolSet,
}

impl Builtin<'_> {
    /// Reserves addresses. Each comes with its pool's prefix length and gateway.
    pub fn add(
        &self,
        attachment: &Attachment,
        target: &Target,
        requested: &[IpAddr],
    ) -> Result<IpamResult, IpamError> {
        if self.pools.is_calicos_default {
            let pools = self.pools.all.iter().map(|pool| pool.cidr.to_string());
            let pools = pools.collect::<Vec<_>>().join(", ");
            tracing::warn!(
                pools,
                "ipam.pools is not there: pods get addresses of Calico's default"
            );
        }
        let request = AssignRequest {
            attachment: attachment.clone(),
            pod: pod_ref(&target.args),
            netns: target.netns.as_ref().map(|path| path.to_string_lossy().into_owned()),
            pools: self.pools.usable.iter().map(Into::into).collect(),
            ipv4: self.pools.assign_ipv4,
            ipv6: self.pools.assign_ipv6,
            requested: requested.to_vec(),
            strict_affinity: self.pools.strict_affinity,
        };
        let ips = self.ipam().assign_chosen(&request, &self.pools.chosen())?;
        let assigned = |ip: IpAddr| {
            let pool = self.pools.usable.iter().find(|pool| pool.cidr.contains(ip));
            let prefix = pool.map(|pool| pool.cidr.prefix());
            let network = prefix.and_then(|prefix| IpNetwork::new(ip, prefix).ok());
            AssignedIp {
                network: network.unwrap_or_else(|| IpNetwork::from(ip)),
                gateway: pool.and_then(|pool| pool.gateway()),
            }
        };
        Ok(IpamResult { ips: ips.into_iter().map(assigned).collect(), ..IpamResult::default() })
    }

    /// Refuses an attachment that has addresses, whatever else an ADD of it would fail by.
    pub fn refuse_second(&self, attachment: &Attachment) -> Result<(), IpamError> {
        let ipam = self.ipam();
        if !ipam.is_known(attachment)? {
            return Ok(());
        }
        let (attachment, addresses) = (attachment.clone(), ipam.assigned(attachment)?);
        Err(margay_datastore::IpamError::AlreadyAssigned { attachment, addresses }.into())
    }

    /// Gives everything back that the attachment holds.
    pub fn del(&self, attachment: &Attachment) -> Result<(), IpamError> {
        self.ipam().release(attachment)?;
        Ok(())
    }

    /// Verifies that the attachment holds those of the `expected` addresses that are in the network's pools, and
    /// none besides `expected`; or anything at all if none of them is in a pool.
    pub fn check(&self, attachment: &Attachment, expected: &[IpAddr]) -> Result<(), IpamError> {
        let is_in_pool = |ip: &IpAddr| self.pools.all.iter().any(|pool| pool.cidr.contains(*ip));
        let held = self.ipam().assigned(attachment)?;
        let is_held = |ip: &IpAddr| !is_in_pool(ip) || held.contains(ip);
        let as_expected = !expected.iter().any(is_in_pool)
            || (expected.iter().all(is_held) && held.iter().all(|ip| expected.contains(ip)));
        if as_expected && !held.is_empty() {
            return Ok(());
        }
        let expected = expected.iter().copied().filter(is_in_pool).collect();
        Err(IpamError::Mismatch { attachment: attachment.clone(), held, expected })
    }

    /// Gives back what belongs to no valid attachment of the network, and says whose that was.
    /// Tries all of them before it returns the first error.
    pub fn gc(&self, network: &str, valid: &[Attachment]) -> Result<Vec<Attachment>, IpamError> {
        let ipam = self.ipam();
        let mut stale = ipam.attachments(network)?;
        stale.retain(|attachment| !valid.contains(attachment));
        let mut first_error = None;
        for attachment in &stale {
            if let Err(error) = ipam.release(attachment) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(stale), |error| Err(error.into()))
    }

    /// Whether every family that pods get has an address left.
    pub fn status(&self) -> Result<(), IpamError> {
        let pools: Vec<margay_datastore::Pool> = self.pools.usable.iter().map(Into::into).collect();
        let free = self.ipam().has_free(&pools, self.pools.strict_affinity)?;
        for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
            let of_family =
                || pools.iter().zip(&free).filter(|(pool, _)| pool.cidr.is_ipv4() == ipv4);
            if of_family().count() > 0 && of_family().all(|(_, free)| !free) {
                let pools: Vec<_> = of_family().map(|(pool, _)| pool.cidr.to_string()).collect();
                return Err(IpamError::NoneLeft { family, pools: pools.join(", ") });
            }
        }
        Ok(())
    }

    fn ipam(&self) -> margay_datastore::Ipam<'_> {
        margay_datastore::Ipam::new(self.store, self.node, self.boot_id)
    }
}

/// Opens the datastore that is configured; `database` is where the local one is. One that is etcd is
/// not talked to yet.
pub fn open_store(datastore: &Datastore, database: &Path) -> Result<Store, IpamError> {
    match datastore {
        Datastore::Local => Ok(Store::new(Sqlite::open(database).map_err(StoreError::from)?)),
        Datastore::Etcd(conf) => {
            Ok(Store::new(Etcd::open(EtcdConf::clone(conf)).map_err(IpamError::Etcd)?))
        }
    }
}

/// The same. An etcd that this node has not what it takes to be let in to is out of reach, and no reason to
/// leave undone what is to be done on the node; nor is a local database that is damaged.
pub fn open_store_anyway(datastore: &Datastore, database: &Path) -> Result<Store, IpamError> {
    match open_store(datastore, database) {
        Err(IpamError::Etcd(reason)) => Ok(Store::new(Unopened::from(reason))),
        Err(IpamError::Store(StoreError::Backend(reason))) => {
            Ok(Store::new(Unopened::from(reason)))
        }
        opened => opened,
    }
}

/// Takes back what pods of earlier boots held whose network namespace is gone, and their endpoints.
/// The first call of a boot does that; each later one is a single read.
pub fn reclaim_earlier_boots(store: &Store, node: &str, boot_id: &str) -> Result<(), IpamError> {
    let ipam = margay_datastore::Ipam::new(store, node, boot_id);
    for attachment in ipam.reclaim_earlier_boots(&is_netns_alive)? {
        tracing::info!(%attachment, "took back the addresses of an earlier boot");
    }
    Ok(())
}

/// Lets the datastore do work that it put off: for verbs that nobody waits for. Nothing depends on
/// it, so a failure is only logged.
pub fn upkeep(store: &Store) {
    if let Err(error) = store.upkeep() {
        tracing::warn!(error = chain(&error), "upkeep of the datastore");
    }
}

/// The pod behind the call, if the runtime says which.
pub(crate) fn pod_ref(args: &CniArgs) -> Option<PodRef> {
    let name = args.pod_name.clone()?;
    let namespace = args.pod_namespace.clone().unwrap_or_default();
    Some(PodRef { namespace, name, uid: args.pod_uid.clone() })
}

/// The kernel's boot ID.
pub fn boot_id() -> Result<String, IpamError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(IpamError::BootId { path, source }),
    }
}

/// Whether the path is the network namespace of a pod: not the empty file that a bind mount leaves
/// behind when its namespace went away with a reboot, and not the host's own, which `/proc/PID/ns/net`
/// leads to once another process has the number.
#[must_use]
pub fn is_netns_alive(path: &str) -> bool {
    netns_inode(path).is_some()
}

/// The inode of the network namespace that the path leads to, if that is a pod's.
#[must_use]
pub fn netns_inode(path: &str) -> Option<u64> {
    let pod = Netns::open(Path::new(path)).ok()?;
    let is_host = pod.is_same_as(&Netns::current().ok()?).ok()?;
    if is_host { None } else { pod.inode().ok() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{IpamConf, NetConf};

    fn pools() -> PoolSet {
        pool_set(json!({ "pools": [{ "cidr": "10.244.0.0/30" }] }))
    }

    fn choosing(choice: &str) -> PoolSet {
        pool_set(json!({ "ipv4_pools": [choice] }))
    }

    fn pool_set(mut ipam: serde_json::Value) -> PoolSet {
        ipam["type"] = json!("margay-ipam");
        let document = json!({ "name": "pods", "type": "margay", "nodename": "a", "ipam": ipam });
        match NetConf::from_map(document.as_object().unwrap()).unwrap().ipam {
            IpamConf::Builtin(pools) => pools,
            IpamConf::Delegated(_) => unreachable!(),
        }
    }

    fn target(netns: &str) -> Target {
        Target {
            container_id: "c1".into(),
            ifname: "eth0".into(),
            netns: Some(PathBuf::from(netns)),
            args: CniArgs::default(),
        }
    }

    #[test]
    fn a_reclaim_after_a_reboot_takes_dead_pods_addresses_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Sqlite::open(&directory.path().join("margay.db")).unwrap());
        let pools = pools();
        let in_boot = |boot_id| Builtin { store: &store, node: "a", boot_id, pools: &pools };
        let attachment = |id| Attachment::new("pods", id, "eth0").unwrap();
        let dead = target("/nowhere/netns");
        reclaim_earlier_boots(&store, "a", "one").unwrap();
        in_boot("one").add(&attachment("old"), &dead, &[]).unwrap();
        assert!(in_boot("one").add(&attachment("new"), &dead, &[]).is_err(), "the pool is full");

        reclaim_earlier_boots(&store, "a", "two").unwrap();
        let result = in_boot("two").add(&attachment("new"), &dead, &[]).unwrap();

        assert_eq!(result.ips[0].network.to_string(), "10.244.0.2/30");
        in_boot("two").check(&attachment("new"), &[result.ips[0].network.ip()]).unwrap();
        assert!(in_boot("two").check(&attachment("old"), &[]).is_err());
    }

    #[test]
    fn pools_that_are_only_chosen_stay_what_the_datastore_has() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(Sqlite::open(&directory.path().join("margay.db")).unwrap());
        let allocator = margay_datastore::Ipam::new(&store, "a", "one");
        let new = margay_datastore::Pool::new("10.245.0.0/24".parse().unwrap());
        let blue = margay_datastore::Pool { name: "blue".into(), ..new };
        allocator.create_pool(&blue).unwrap();
        for choice in ["blue", "10.245.0.0/24"] {
            let mut pools = choosing(choice);
            pools.settle(&store.pools().unwrap()).unwrap();
            let builtin = Builtin { store: &store, node: "a", boot_id: "one", pools: &pools };
            let attachment = Attachment::new("pods", "new", "eth0").unwrap();
            let add = || builtin.add(&attachment, &target("/nowhere/netns"), &[]);

            // What is recorded is another thing by now.
            allocator.delete_pool(&blue.cidr).unwrap();
            let gone = add().unwrap_err();
            assert!(chain(&gone).contains("10.245.0.0/24 was deleted"), "{gone:?}");
            assert_eq!(store.pools().unwrap(), []);
            let changed =
                margay_datastore::Pool { block_size: 28, nat_outgoing: true, ..blue.clone() };
            allocator.create_pool(&changed).unwrap();
            add().unwrap();

            assert_eq!(store.pools().unwrap(), [changed]);
            builtin.del(&attachment).unwrap();
        }
    }

    #[test]
    fn a_pods_namespace_is_not_alive_where_its_path_leads_elsewhere() {
        let left_behind = tempfile::NamedTempFile::new().unwrap();

        assert!(!is_netns_alive("/proc/self/ns/net"), "the host's own");
        assert!(!is_netns_alive("/proc/version"));
        assert!(!is_netns_alive(left_behind.path().to_str().unwrap()));
        assert!(!is_netns_alive("/nowhere/netns"));
        assert!(!is_netns_alive(""));
    }

    #[test]
    fn a_pod_has_a_name_if_the_runtime_says_one() {
        let args = CniArgs::parse("K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u").unwrap();
        assert_eq!(pod_ref(&args).unwrap().uid.as_deref(), Some("u"));
        let as_podman_says = CniArgs::parse("IgnoreUnknown=1;K8S_POD_NAME=web").unwrap();
        let pod = pod_ref(&as_podman_says).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("", "web"));
        let nameless = CniArgs::parse("K8S_POD_NAMESPACE=n").unwrap();
        assert_eq!(pod_ref(&nameless), None);
    }
}
