//! What the interfaces and addresses of events are called.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use margay::error::chain;
use margay::netlink::Netlink;
use margay_abi::ABI_VERSION;
use margay_datapath::Datapath;
use margay_datastore::{Endpoint, Store};

use crate::endpoints;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::printable;

/// What is not known is looked up no more often than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an address is believed to be of the pod that had it when it was looked up.
const ADDRESS_HOLDS: Duration = Duration::from_secs(3);

/// Interfaces and pods of this node.
pub(super) struct Names {
    netlink: Netlink,
    nodename: String,
    /// Why there are no names, where there are none.
    store: Result<Store, Failure>,
    endpoints: Vec<Endpoint>,
    links: BTreeMap<u32, String>,
    looked_at: Instant,
}

impl Names {
    /// Where records cannot be read, events go without pods' names.
    pub(super) async fn new(node: &Node, netlink: Netlink) -> Self {
        let nodename = node.settings().map(|settings| settings.nodename).unwrap_or_default();
        let mut names = Self {
            netlink,
            nodename,
            store: node.store(),
            endpoints: Vec::new(),
            links: BTreeMap::new(),
            looked_at: Instant::now(),
        };
        names.look().await;
        names
    }

    async fn look(&mut self) {
        self.looked_at = Instant::now();
        if let Ok(links) = self.netlink.links().await {
            self.links = links.into_iter().map(|link| (link.index, link.name)).collect();
        }
        let endpoints = self.store.as_ref().ok().map(|store| store.endpoints_on(&self.nodename));
        match endpoints {
            Some(Ok(endpoints)) => self.endpoints = endpoints,
            Some(Err(error)) => self.store = Err(error.into()),
            None => {}
        }
    }

    /// The interface of a pod, if it is on this node, and its addresses.
    pub(super) fn of_pod(&self, name: &str) -> Result<(Option<u32>, Vec<IpAddr>), Failure> {
        let store = match &self.store {
            Ok(store) => store,
            Err(failure) => {
                return Err(Failure::Refused(format!("find {name}: {}", chain(failure))));
            }
        };
        let all = store.every_endpoint()?;
        let endpoint = endpoints::find(&all, name)?;
        let is_here = endpoint.node == self.nodename;
        let mut links = self.links.iter().filter(|(_, link)| **link == endpoint.host_veth);
        let link = links.next().filter(|_| is_here).map(|(index, _)| *index);
        Ok((link, endpoint.ips.iter().map(|ip| ip.ip()).collect()))
    }

    /// Says what events will lack.
    pub(super) async fn warn(&self, root: &Path) {
        if let Err(failure) = &self.store {
            eprintln!("pods go without names: {}", printable(&chain(failure)));
        }
        let silent = self.silent(root).await;
        if !silent.is_empty() {
            let names = silent.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
            eprintln!(
                "nothing will be told of {names}: programs of an earlier margay. margayctl datapath upgrade replaces them"
            );
        }
    }

    /// Pods whose programs are of an ABI version that this build cannot listen to.
    async fn silent(&self, root: &Path) -> Vec<String> {
        let builds = Datapath::pinned_builds(root).unwrap_or_default();
        let ours = builds.iter().filter(|build| build.abi_version == ABI_VERSION);
        let ours: Vec<_> = ours.flat_map(|build| &build.programs).collect();
        let mut silent = Vec::new();
        for endpoint in &self.endpoints {
            let mut links = self.links.iter().filter(|(_, link)| **link == endpoint.host_veth);
            let Some((index, _)) = links.next() else { continue };
            let attached = Datapath::programs_in_use(self.netlink.handle(), *index).await;
            let attached = attached.unwrap_or_default();
            if !attached.is_empty() && !attached.iter().any(|program| ours.contains(&program)) {
                silent.push(endpoints::name(endpoint));
            }
        }
        silent
    }

    /// The name of an interface and that of the pod behind it, or, at an interface that is no pod's, of the pod
    /// that has the first of these addresses that any has.
    pub(super) async fn of(
        &mut self,
        ifindex: u32,
        addresses: &[IpAddr],
    ) -> (Option<String>, Option<String>) {
        let behind = self.behind(ifindex);
        let holds_for = match behind.or_else(|| self.with_any(addresses)) {
            // A link's number is never another's.
            Some(_) if behind.is_some() => Duration::MAX,
            Some(_) => ADDRESS_HOLDS,
            None => PATIENCE,
        };
        if self.looked_at.elapsed() > holds_for {
            self.look().await;
        }
        let pod = self.behind(ifindex).or_else(|| self.with_any(addresses));
        (self.links.get(&ifindex).cloned(), pod.map(endpoints::name))
    }

    fn behind(&self, ifindex: u32) -> Option<&Endpoint> {
        let link = self.links.get(&ifindex)?;
        self.endpoints.iter().find(|endpoint| endpoint.host_veth == *link)
    }

    fn with_any(&self, addresses: &[IpAddr]) -> Option<&Endpoint> {
        let has = |address: &IpAddr| {
            self.endpoints.iter().find(|endpoint| endpoint.ips.iter().any(|ip| ip.ip() == *address))
        };
        addresses.iter().find_map(has)
    }
}
