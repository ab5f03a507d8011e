//! What most areas look at, taken once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use margay::config::{Datastore, Paths};
use margay::dataplane;
use margay::error::chain;
use margay::hold::Site;
use margay::ipam;
use margay::netlink::{LinkInfo, Netlink, RouteInfo};
use margay_abi::PodInfo;
use margay_datapath::{Datapath, PinnedBuild, Remote};
use margay_datastore::{
    Change, Endpoint, EndpointState, Fact, Holding, Ledger, Node as NodeRecord, Placement, Pool,
    PoolUsage, StoreError, Topic,
};

use super::catalogue::{
    DATASTORE_ABSENT, DATASTORE_DAMAGED, DATASTORE_OUT_OF_REACH, DATASTORE_SLOW,
    DATASTORE_UNUSABLE, RECORD_DAMAGED,
};
use super::finding::Findings;
use crate::failure::Failure;
use crate::node::{Node, Settings};

/// Longer than this, and a look at all endpoints is slow.
const SLOW: Duration = Duration::from_secs(1);

/// The node as it was when somebody looked.
pub(crate) struct Picture<'n> {
    /// Its configurations.
    pub(crate) node: &'n Node,
    /// What concerns the node in them.
    pub(crate) settings: Settings,
    /// Whether everything can be looked at.
    pub(crate) is_root: bool,
    /// The datastore and the kernel; none where the datastore cannot be used.
    pub(crate) site: Option<Site>,
    /// Of this node, of every network.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What this node's attachments hold.
    pub(crate) holdings: Vec<Holding>,
    /// Every pool's record.
    pub(crate) pools: Vec<Pool>,
    /// Every block, as agents know it.
    pub(crate) placements: Vec<Placement>,
    /// All that address management has written down, of every node, once it [is read](Picture::read_ledger).
    pub(crate) ledger: Ledger,
    /// Every node's record.
    pub(crate) nodes: Vec<NodeRecord>,
    /// Every link.
    pub(crate) links: Vec<LinkInfo>,
    /// Every route.
    pub(crate) routes: Vec<RouteInfo>,
    /// Every build that has programs pinned.
    pub(crate) builds: Vec<PinnedBuild>,
    /// The map of pods; none where nothing is pinned.
    pub(crate) entries: Option<BTreeMap<IpAddr, PodInfo>>,
    /// What the programs know of other nodes' pods.
    pub(crate) remotes: BTreeMap<IpNetwork, Remote>,
    /// A socket in the node's namespace.
    pub(crate) netlink: Netlink,
}

impl<'n> Picture<'n> {
    /// Takes it. What cannot be had of it is among the findings.
    pub(crate) async fn take(node: &'n Node, findings: &mut Findings) -> Result<Self, Failure> {
        let settings = node.settings()?;
        let netlink = Netlink::open()?;
        let is_root = rustix::process::geteuid().is_root();
        let mut picture = Self {
            node,
            settings,
            is_root,
            site: None,
            endpoints: Vec::new(),
            holdings: Vec::new(),
            pools: Vec::new(),
            placements: Vec::new(),
            ledger: Ledger::default(),
            nodes: Vec::new(),
            links: Vec::new(),
            routes: Vec::new(),
            builds: Vec::new(),
            entries: None,
            remotes: BTreeMap::new(),
            netlink,
        };
        if is_root {
            picture.read_records(findings);
            picture.read_pins(findings);
        }
        // After records and maps: an ADD makes the link after the address, and before the entry.
        let links = picture.netlink.links().await;
        picture.links = findings.or_note("links", links).unwrap_or_default();
        let routes = picture.netlink.all_routes().await;
        picture.routes = findings.or_note("routes", routes).unwrap_or_default();
        Ok(picture)
    }

    fn read_records(&mut self, findings: &mut Findings) {
        let started = Instant::now();
        match self.open_site() {
            Ok(site) => self.site = Some(site),
            Err(failure) => return note_unusable(&failure, findings),
        }
        let outcome = self.read_all(findings);
        if let Err(failure) = outcome {
            self.site = None;
            return note_unusable(&failure, findings);
        }
        let took = started.elapsed();
        if took > SLOW {
            let text = format!("the datastore took {} ms for all but its ledger", took.as_millis());
            findings.add(&DATASTORE_SLOW, text);
        }
    }

    fn open_site(&self) -> Result<Site, Failure> {
        let Settings { nodename, paths, .. } = &self.settings;
        Ok(Site {
            paths: paths.clone(),
            nodename: nodename.clone(),
            boot_id: ipam::boot_id()?,
            store: self.node.store()?,
            netlink: self.netlink.clone(),
        })
    }

    fn read_all(&mut self, findings: &mut Findings) -> Result<(), Failure> {
        let Some(site) = &self.site else { return Ok(()) };
        self.endpoints = site.store.endpoints_on(&site.nodename)?;
        self.holdings = site.allocator().holdings().map_err(ipam::IpamError::from)?;
        for topic in Topic::ALL {
            for Change { key, fact } in site.store.survey(topic)?.1 {
                match fact {
                    Some(Ok(Fact::Node(node))) => self.nodes.push(node),
                    Some(Ok(Fact::Pool(pool))) => self.pools.push(pool),
                    Some(Ok(Fact::Block(block))) => self.placements.push(block),
                    Some(Err(error)) => note_record(&key, &error, findings),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Reads the ledger, which in a large cluster is by far the most of all, and for the first picture alone: what is
    /// found in it needs no second look.
    pub(crate) fn read_ledger(&mut self, findings: &mut Findings) {
        let Some(site) = &self.site else { return };
        match site.store.ledger() {
            Ok(ledger) => self.ledger = ledger,
            Err(error) => {
                self.site = None;
                return note_unusable(&error.into(), findings);
            }
        }
        // The lists of a node leave out what does not decode.
        for (key, reason) in &self.ledger.illegible {
            findings.add(&RECORD_DAMAGED, format!("record {key} does not decode: {reason}"));
        }
    }

    /// How full a pool is, by the ledger.
    pub(crate) fn usage(&self, pool: &Pool) -> PoolUsage {
        let (pool, capacity) = (pool.cidr, pool.capacity());
        let taken = self.ledger.blocks.iter().flat_map(|block| block.taken.keys());
        let used = taken.filter(|ip| pool.contains(**ip)).count() as u128;
        PoolUsage { pool, capacity, used }
    }

    fn read_pins(&mut self, findings: &mut Findings) {
        let root = &self.settings.paths.bpffs_root;
        let builds = Datapath::pinned_builds(root);
        self.builds = findings.or_note("pinned programs", builds).unwrap_or_default();
        let pods = findings.or_note("pinned maps", dataplane::pods(root)).flatten();
        self.entries = pods.and_then(|pods| findings.or_note("the map of pods", pods.entries()));
        let builds = Datapath::open_builds(root);
        let builds = findings.or_note("pinned maps", builds).unwrap_or_default();
        let remotes = builds.first().map(|current| current.remotes().entries()).transpose();
        let remotes = findings.or_note("the map of other nodes", remotes).flatten();
        self.remotes = remotes.unwrap_or_default();
    }

    /// The endpoints of this boot that are complete and that programs carry.
    pub(crate) fn on_programs(&self) -> impl Iterator<Item = &Endpoint> {
        self.of_this_boot().filter(|endpoint| endpoint.dataplane == dataplane::EBPF)
    }

    /// The endpoints of this boot that are complete.
    pub(crate) fn of_this_boot(&self) -> impl Iterator<Item = &Endpoint> {
        let boot_id = self.site.as_ref().map(|site| site.boot_id.as_str()).unwrap_or_default();
        self.endpoints.iter().filter(move |endpoint| {
            endpoint.state == EndpointState::Ready && endpoint.boot_id == boot_id
        })
    }

    pub(crate) fn link(&self, name: &str) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.name == name)
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.settings.paths
    }

    /// Whether the node is one among several, which an agent has to look after.
    pub(crate) fn has_others(&self) -> bool {
        matches!(self.settings.datastore, Datastore::Etcd(_))
    }
}

fn note_unusable(failure: &Failure, findings: &mut Findings) {
    let text = chain(failure);
    let kind = match failure {
        Failure::NoDatastore { .. } => &DATASTORE_ABSENT,
        Failure::Margay(error) if error.is_out_of_reach() => &DATASTORE_OUT_OF_REACH,
        Failure::Margay(error) if error.is_damage() => &DATASTORE_DAMAGED,
        _ => &DATASTORE_UNUSABLE,
    };
    findings.add(kind, text);
}

fn note_record(key: &str, error: &StoreError, findings: &mut Findings) {
    // It names the key where it is known.
    let text = match error {
        StoreError::Decode { .. } => chain(error),
        _ => format!("{key}: {}", chain(error)),
    };
    findings.add(&RECORD_DAMAGED, text);
}
