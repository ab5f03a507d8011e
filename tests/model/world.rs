//! The real thing: a node on which steps are done, and a look at everything that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use margay::naming;
use margay_datapath::Pods;
use margay_datastore::{Attachment, Ipam, Pool, Store};
use margay_tests::cni::{CniOutput, with_bandwidth};
use margay_tests::node::plugin_directory;
use margay_tests::traffic::{PATIENCE, answers_ping};
use margay_tests::{Invocation, Node, Pod};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::{Value, json};

use crate::model::{Answer, Facts, Model};
use crate::plan::{
    ADD_PHASES, DEL_PHASES, GC_PHASES, Network, SANDBOXES, Slot, Step, Stop, container_id,
};

const NODE: &str = "node-under-test";

/// A node and what happens to it.
pub(crate) struct World<'node> {
    node: &'node Node,
    is_tight: bool,
    sandboxes: [Option<Pod<'node>>; SANDBOXES],
    boots: u32,
    /// Whose host veth an index was, ever: the kernel does not give one twice.
    owners: BTreeMap<u32, Slot>,
}

/// How a step ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// `None` where there was nothing to answer.
    pub(crate) answer: Option<Answer>,
    /// The result of an ADD that succeeded.
    pub(crate) result: Value,
    /// What the plugin wrote.
    pub(crate) log: String,
    /// Whether a change was refused.
    pub(crate) was_refused: bool,
    /// What is wrong whatever the model says.
    pub(crate) complaint: Option<String>,
}

/// What there is on the node.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) facts: BTreeMap<Slot, Facts>,
    /// What has an ifb device.
    ifbs: BTreeSet<Slot>,
    /// Whether the datastore knows of this boot.
    pub(crate) is_boot_recorded: bool,
    /// Things that should not be, whatever the model says.
    pub(crate) complaints: Vec<String>,
}

/// Steps.
impl<'node> World<'node> {
    pub(crate) fn new(node: &'node Node, is_tight: bool) -> Self {
        let sandboxes = std::array::from_fn(|_| None);
        let mut world = Self { node, is_tight, sandboxes, boots: 0, owners: BTreeMap::new() };
        world.change_boot_id();
        world
    }

    /// How many addresses each network can give, by family: what is left of its ranges without
    /// their first and last address and the gateway; IPv6 ranges have no last one.
    pub(crate) fn capacity(is_tight: bool) -> BTreeMap<(Network, bool), usize> {
        let (blue, green) = if is_tight { (5 + 1, 6) } else { (13 + 1, 14) };
        let (all_of_blue, all_of_green) = if is_tight { (30, 13) } else { (30, 29) };
        BTreeMap::from([
            ((Network::Blue, true), blue),
            ((Network::Blue, false), all_of_blue),
            ((Network::Green, true), all_of_green),
            ((Network::Green, false), green),
        ])
    }

    fn ranges(&self, network: Network) -> [&'static [&'static str]; 2] {
        match (network, self.is_tight) {
            (Network::Blue, true) => [&["10.60.0.0/29", "10.62.0.0/30"], &["fd00:60::/123"]],
            (Network::Blue, false) => [&["10.60.0.0/28", "10.62.0.0/30"], &["fd00:60::/123"]],
            (Network::Green, true) => [&["10.61.0.0/28"], &["fd00:61::/125"]],
            (Network::Green, false) => [&["10.61.0.0/27"], &["fd00:61::/124"]],
        }
    }

    fn config(&self, network: Network) -> Value {
        let mut config = self.node.network();
        config["name"] = json!(network.name());
        let block = |cidr: &str| match network {
            // Several blocks of a pool, so that they are claimed and used up one by one.
            Network::Green if cidr.contains('.') => json!({"cidr": cidr, "block_size": 29}),
            _ => json!({"cidr": cidr}),
        };
        let pools: Vec<Value> = self.ranges(network).concat().into_iter().map(block).collect();
        config["ipam"]["pools"] = json!(pools);
        if network == Network::Green {
            config["attach"] = json!("tcx");
            config = with_bandwidth(&config, 1 << 30, 1 << 30);
        }
        config
    }

    /// Does a step. The model is as it was before it.
    pub(crate) fn perform(&mut self, step: Step, model: &Model) -> Outcome {
        match step {
            Step::Add(slot, stop) => {
                self.ensure_sandbox(slot.sandbox);
                self.verb(self.on("ADD", slot, &self.config(slot.network())), stop, &ADD_PHASES)
            }
            Step::LateAdd(slot) => {
                self.verb(self.on("ADD", slot, &self.config(slot.network())), Stop::Never, &[])
            }
            Step::Del(slot, stop) => {
                self.verb(self.on("DEL", slot, &self.config(slot.network())), stop, &DEL_PHASES)
            }
            Step::Gc(network, stop) => {
                let valid: Vec<Slot> = model.valid(network).collect();
                self.gc(network, &valid, stop)
            }
            Step::Check(slot) => {
                let mut config = self.config(slot.network());
                if let Some(result) = model.results.get(&slot) {
                    config["prevResult"] = result.clone();
                }
                self.verb(self.on("CHECK", slot, &config), Stop::Never, &[])
            }
            Step::Status(network) => {
                let status = Invocation::new("margay", "STATUS", &self.config(network));
                self.verb(status, Stop::Never, &[])
            }
            Step::EndSandbox { sandbox, .. } => self.end_sandbox(sandbox),
            Step::DeleteHostVeth(slot) => self.delete_links(&[slot], model),
            Step::DeleteMapEntry { slot, ipv4 } => self.delete_map_entry(model.of(slot), ipv4),
            Step::Reboot { remade } => self.reboot(remade, model),
            Step::Ping { from, to, ipv4 } => self.ping(&model.pods(), from, to, ipv4),
        }
    }

    /// Executes GC with this list.
    pub(crate) fn gc(&self, network: Network, valid: &[Slot], stop: Stop) -> Outcome {
        let mut config = self.config(network);
        let listed = valid.iter().map(
            |slot| json!({"containerID": container_id(slot.sandbox), "ifname": slot.ifname()}),
        );
        config["cni.dev/valid-attachments"] = listed.collect();
        let plugins = plugin_directory();
        let path = plugins.to_str().expect("path");
        let gc = Invocation::new("margay", "GC", &config).env("CNI_PATH", path);
        self.verb(gc, stop, &GC_PHASES)
    }

    fn on(&self, verb: &str, slot: Slot, config: &Value) -> Invocation {
        let invocation = match &self.sandboxes[slot.sandbox] {
            Some(pod) => pod.invocation(verb, config),
            None => {
                let invocation = Invocation::new("margay", verb, config)
                    .env("CNI_CONTAINERID", &container_id(slot.sandbox))
                    .env("CNI_PATH", plugin_directory().to_str().expect("path"));
                let gone = self.node.path("netns").join(container_id(slot.sandbox));
                // A DEL may come without, any other verb must not.
                match verb {
                    "DEL" => invocation,
                    _ => invocation.env("CNI_NETNS", gone.to_str().expect("path")),
                }
            }
        };
        invocation.env("CNI_IFNAME", slot.ifname())
    }

    fn verb(&self, invocation: Invocation, stop: Stop, phases: &[&str]) -> Outcome {
        let number = |phase| phases.iter().position(|other| *other == phase).expect("a phase");
        let with = |points: String| invocation.clone().env("FAILPOINTS", &points).execute();
        let output = match stop {
            Stop::Never => invocation.execute(),
            Stop::Fail(phase) => with(counted("phase", number(phase), "28")),
            Stop::Kill(phase) => with(counted("phase", number(phase), "kill")),
            Stop::KillBefore(changes) => with(counted("change", changes, "kill")),
            Stop::Refuse(changes, errno) => with(counted("change", changes, &errno.to_string())),
            Stop::KillAfter(time) => {
                let mut child = invocation.start();
                thread::sleep(time);
                child.kill().expect("kill the plugin");
                CniOutput::of(child)
            }
        };
        let log = format!("{}{}", output.stdout(), output.stderr());
        let was_refused = matches!(stop, Stop::Refuse(..)) && log.contains("fail point: ");
        let outcome = Outcome { log, was_refused, ..Outcome::default() };
        if outcome.was_refused && outcome.log.contains("before answer") {
            return Outcome { answer: Some(Answer::Silent), ..outcome };
        }
        if output.is_success() {
            let (answer, result) = (Some(Answer::Success), output.success());
            return Outcome { answer, result, ..outcome };
        }
        if output.exit_code().is_none() {
            return Outcome { answer: Some(Answer::Killed), ..outcome };
        }
        Outcome { answer: Some(Answer::Error(output.error().0)), ..outcome }
    }

    fn ensure_sandbox(&mut self, sandbox: usize) {
        let node = self.node;
        self.sandboxes[sandbox].get_or_insert_with(|| node.sandbox(&container_id(sandbox)));
    }

    fn end_sandbox(&mut self, sandbox: usize) -> Outcome {
        if let Some(pod) = self.sandboxes[sandbox].take() {
            pod.destroy();
        }
        // The kernel takes a namespace down in its own time.
        let names: BTreeSet<String> = Slot::of(sandbox).map(host_veth).collect();
        let deadline = Instant::now() + PATIENCE;
        while self.node.pod_links().iter().any(|link| names.contains(&link.name)) {
            if Instant::now() > deadline {
                let complaint = Some("the namespace's interfaces do not go".to_owned());
                return Outcome { complaint, ..Outcome::default() };
            }
            thread::sleep(Duration::from_millis(1));
        }
        Outcome::default()
    }

    fn delete_links(&self, slots: &[Slot], model: &Model) -> Outcome {
        self.node.netlink(async |netlink| {
            for link in slots.iter().filter_map(|slot| model.of(*slot).link) {
                netlink.delete_link(link).await.expect("delete a link");
            }
        });
        Outcome::default()
    }

    fn delete_map_entry(&self, facts: &Facts, ipv4: bool) -> Outcome {
        if let Some(pods) = Pods::open(&self.node.bpffs_root()).expect("the maps") {
            for address in facts.entries.iter().filter(|address| address.is_ipv4() == ipv4) {
                pods.remove(*address).expect("remove an entry");
            }
        }
        Outcome::default()
    }

    /// Another boot ID; no link, no pin and no lock of before; and namespaces only where one is
    /// made anew.
    fn reboot(&mut self, remade: u32, model: &Model) -> Outcome {
        let linked: Vec<Slot> = Slot::all().collect();
        let mut outcome = self.delete_links(&linked, model);
        for ifb in self.node.pod_links().into_iter().filter(|link| link.kind == "ifb") {
            self.node.netlink(async |netlink| netlink.delete_link(ifb.index).await.expect("ifb"));
        }
        for sandbox in 0..SANDBOXES {
            if remade & (1 << sandbox) == 0 {
                let ended = self.end_sandbox(sandbox);
                outcome.complaint = outcome.complaint.or(ended.complaint);
            }
        }
        self.change_boot_id();
        let bpffs = self.node.path("bpf");
        unmount(&bpffs, UnmountFlags::empty()).expect("unmount the BPF file system");
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).expect("mount a BPF file system");
        fs::remove_dir_all(self.node.path("run")).expect("empty the run directory");
        fs::create_dir(self.node.path("run")).expect("make the run directory");
        outcome
    }

    fn change_boot_id(&mut self) {
        let file = self.node.path("boot_id");
        let is_first = !file.exists();
        self.boots += 1;
        fs::write(&file, format!("{}\n", self.boot_id())).expect("write a boot ID");
        if is_first {
            mount_bind(&file, "/proc/sys/kernel/random/boot_id").expect("mount a boot ID");
        }
    }

    fn boot_id(&self) -> String {
        format!("00000000-1111-2222-3333-{:012}", self.boots)
    }

    fn ping(&self, pods: &[Slot], from: usize, to: usize, ipv4: bool) -> Outcome {
        if pods.is_empty() {
            return Outcome::default();
        }
        let (from, to) = (pods[from % pods.len()], pods[to % pods.len()]);
        let target = self.address_of(to, ipv4);
        let sender = self.sandboxes[from.sandbox].as_ref().expect("a pod has a sandbox");
        let is_answered = answers_ping(sender, target) || answers_ping(sender, target);
        let complaint = format!("{} does not reach {target}", from.attachment());
        Outcome { complaint: (!is_answered).then_some(complaint), ..Outcome::default() }
    }

    fn address_of(&self, slot: Slot, ipv4: bool) -> IpAddr {
        let endpoint = self.node.store().endpoint(&slot.attachment()).expect("endpoint");
        let ips = endpoint.expect("a pod has an endpoint").ips;
        let found = ips.iter().map(|ip| ip.ip()).find(|ip| ip.is_ipv4() == ipv4);
        found.expect("an address of the family")
    }
}

/// Looking around.
impl World<'_> {
    /// Everything that there is, and whose.
    pub(crate) fn look(&mut self) -> Sight {
        let slots: BTreeMap<Attachment, Slot> =
            Slot::all().map(|slot| (slot.attachment(), slot)).collect();
        let mut sight = Sight {
            facts: Slot::all().map(|slot| (slot, Facts::default())).collect(),
            ifbs: BTreeSet::new(),
            is_boot_recorded: false,
            complaints: Vec::new(),
        };
        self.look_at_links(&mut sight);
        self.look_at_records(&slots, &mut sight);
        self.look_at_entries(&mut sight);
        self.look_at_files(&mut sight);
        self.look_at_routes(&mut sight);
        look_at_ifbs(&mut sight);
        sight
    }

    fn look_at_links(&mut self, sight: &mut Sight) {
        let names: BTreeMap<String, Slot> =
            Slot::all().map(|slot| (host_veth(slot), slot)).collect();
        let ifbs: BTreeMap<String, Slot> =
            Slot::all().map(|slot| (naming::ifb(&slot.attachment()), slot)).collect();
        for link in self.node.pod_links() {
            if let Some(slot) = ifbs.get(&link.name) {
                sight.ifbs.insert(*slot);
                continue;
            }
            let Some(&slot) = names.get(&link.name) else {
                sight.complaints.push(format!("stray link {link:?}"));
                continue;
            };
            if link.alias.as_ref().is_some_and(|alias| *alias != naming::alias(&slot.attachment()))
            {
                sight.complaints.push(format!("link with another's alias: {link:?}"));
            }
            sight.of(slot).link = Some(link.index);
            self.owners.insert(link.index, slot);
        }
    }

    fn look_at_records(&self, slots: &BTreeMap<Attachment, Slot>, sight: &mut Sight) {
        let store = self.node.store();
        let boot_id = self.boot_id();
        let ipam = Ipam::new(&store, NODE, &boot_id);
        sight.is_boot_recorded =
            store.node(NODE).expect("node").is_some_and(|node| node.boot_id == boot_id);
        for network in Network::ALL {
            for endpoint in store.endpoints(network.name()).expect("endpoints") {
                sight.of(slots[&endpoint.attachment]).endpoint = Some(endpoint.state);
            }
            for attachment in ipam.attachments(network.name()).expect("handles") {
                let held = ipam.assigned(&attachment).expect("allocations");
                let facts = sight.of(slots[&attachment]);
                facts.handle = true;
                facts.held.extend(held);
            }
        }
        for (slot, facts) in &sight.facts {
            let is_something = facts.endpoint.is_some() || facts.link.is_some();
            if is_something && !facts.handle {
                let attachment = slot.attachment();
                sight.complaints.push(format!("{attachment} has lost its handle: {facts:?}"));
            }
        }
        self.compare_allocations(&store, sight);
    }

    /// No address is held twice, and none without a handle that leads to it. Other nodes are told where they are.
    fn compare_allocations(&self, store: &Store, sight: &mut Sight) {
        let held: Vec<IpAddr> =
            sight.facts.values().flat_map(|facts| &facts.held).copied().collect();
        let different: BTreeSet<IpAddr> = held.iter().copied().collect();
        if different.len() != held.len() {
            sight.complaints.push(format!("addresses held twice: {held:?}"));
        }
        let pools: Vec<Pool> = Network::ALL
            .into_iter()
            .flat_map(|network| self.ranges(network).concat())
            .map(|range| Pool::new(range.parse().expect("range")))
            .collect();
        let usage = Ipam::new(store, NODE, "").usage(&pools).expect("usage");
        let used: u128 = usage.iter().map(|usage| usage.used).sum();
        if used != held.len() as u128 {
            let complaint = format!("{used} addresses are taken, and {} are held", held.len());
            sight.complaints.push(complaint);
        }
        let misplaced = store.misplaced_blocks().expect("blocks");
        if !misplaced.is_empty() {
            sight.complaints.push(format!("placements that are not their blocks': {misplaced:?}"));
        }
    }

    fn look_at_entries(&self, sight: &mut Sight) {
        let Some(pods) = Pods::open(&self.node.bpffs_root()).expect("the maps") else { return };
        for (address, entry) in pods.entries().expect("entries") {
            let Some(&slot) = self.owners.get(&entry.ifindex) else {
                sight.complaints.push(format!("stray map entry of {address}: {entry:?}"));
                continue;
            };
            let facts = sight.of(slot);
            facts.entries.insert(address);
            let is_current = facts.link.is_none_or(|link| link == entry.ifindex);
            if !is_current || !facts.held.contains(&address) {
                let facts = facts.clone();
                let attachment = slot.attachment();
                let entry = entry.ifindex;
                sight.complaints.push(format!(
                    "map entry of {address} leads to {entry}; {attachment} is {facts:?}"
                ));
            }
        }
    }

    fn look_at_files(&self, sight: &mut Sight) {
        for name in names_in(&self.node.path("run/lock")) {
            match Slot::all().find(|slot| host_veth(*slot) == name) {
                Some(slot) => sight.of(slot).lock = true,
                None => sight.complaints.push(format!("stray lock {name}")),
            }
        }
        for name in names_in(&self.pins().join("links")) {
            match Slot::all().find(|slot| name.starts_with(&host_veth(*slot))) {
                Some(slot) => sight.of(slot).pins = true,
                None => sight.complaints.push(format!("stray TCX pin {name}")),
            }
        }
    }

    /// A ready endpoint with a link has its routes.
    fn look_at_routes(&self, sight: &mut Sight) {
        let Sight { facts, complaints, .. } = sight;
        self.node.netlink(async |netlink| {
            for (slot, facts) in facts.iter().filter(|(_, facts)| facts.is_sound()) {
                for &address in &facts.held {
                    let route = netlink.route_to(address).await.expect("route");
                    if route.as_ref().and_then(|route| route.ifindex) != facts.link {
                        let attachment = slot.attachment();
                        complaints.push(format!("{address} of {attachment}: route {route:?}"));
                    }
                }
            }
        });
    }

    /// What is left where only the first ADD's programs and maps should be.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let store = self.node.store();
        for prefix in ["handles/", "endpoints/"] {
            let records = store.backend().list(prefix, None).expect("list");
            left.extend(records.into_iter().map(|record| record.key));
        }
        left.extend(self.node.pod_links().into_iter().map(|link| link.name));
        left.extend(names_in(&self.pins().join("links")));
        left.extend(names_in(&self.node.path("run/lock")));
        let builds = names_in(&self.pins().join("progs"));
        if builds.len() > 1 {
            left.extend(builds);
        }
        left
    }

    fn pins(&self) -> std::path::PathBuf {
        self.node.bpffs_root().join(margay_abi::ABI_VERSION.to_string())
    }
}

impl Sight {
    fn of(&mut self, slot: Slot) -> &mut Facts {
        self.facts.get_mut(&slot).expect("every slot has facts")
    }
}

/// There is an ifb where a limited pod is, and none that nothing else tells of.
fn look_at_ifbs(Sight { facts, ifbs, complaints, .. }: &mut Sight) {
    for (slot, facts) in facts {
        let attachment = slot.attachment();
        match ifbs.contains(slot) {
            true if !facts.is_found_by_gc() => {
                complaints.push(format!("stray ifb of {attachment}"))
            }
            true if slot.network() != Network::Green => {
                complaints.push(format!("ifb of {attachment}, which has no limit"));
            }
            false if facts.is_sound() && slot.network() == Network::Green => {
                complaints.push(format!("{attachment} has no ifb"));
            }
            _ => {}
        }
    }
}

/// What makes a fail point strike once, when it was passed so many times.
fn counted(point: &str, passed: usize, argument: &str) -> String {
    match passed {
        0 => format!("{point}=1*return({argument})"),
        _ => format!("{point}={passed}*off->1*return({argument})"),
    }
}

fn host_veth(slot: Slot) -> String {
    naming::host_veth(&slot.attachment())
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .map(|entry| entry.expect("read a directory").file_name().to_string_lossy().into_owned())
        .collect()
}
