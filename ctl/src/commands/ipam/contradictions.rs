//! What of blocks, handles, endpoints and map entries contradicts each other. Nothing is looked at here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay::{dataplane, ipam, naming};
use margay_abi::PodInfo;
use margay_datastore::{Attachment, BlockEntry, Endpoint, EndpointState, Holder, Ledger, Pool};
use serde::Serialize;

/// What was seen in one look.
pub(super) struct Facts {
    pub(super) ledger: Ledger,
    /// Blocks whose placement is not what they say.
    pub(super) misplaced: Vec<IpNetwork>,
    pub(super) pools: Vec<Pool>,
    /// Of this node; `None` where they cannot be seen, or there are none.
    pub(super) map_entries: Option<BTreeMap<IpAddr, PodInfo>>,
    /// Of this node: names and indexes.
    pub(super) links: BTreeMap<String, u32>,
    /// Of this node: what is at an index, by its alias.
    pub(super) attachments: BTreeMap<u32, Attachment>,
    pub(super) nodename: String,
    pub(super) boot_id: String,
    /// Networks of this node's configuration whose interfaces are margay's, and whether the addresses are
    /// too.
    pub(super) networks: BTreeMap<String, bool>,
}

/// One contradiction. Two looks found the same if they are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    pub(super) gravity: Gravity,
    pub(super) kind: &'static str,
    pub(super) text: String,
    pub(super) hint: String,
    pub(super) attachment: Option<Attachment>,
    /// Tells one assignment of an attachment from another.
    #[serde(skip)]
    assignment: String,
}

/// The grave one is the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Gravity {
    /// An address may be given twice, or packets go astray.
    Error,
    /// Something is kept from others, or left over.
    Warning,
}

/// What contradicts itself.
pub(super) fn find(facts: &Facts) -> BTreeSet<Finding> {
    let mut found = Found::default();
    for (key, reason) in &facts.ledger.illegible {
        let text = format!("record {key} does not decode: {reason}");
        found.error("illegible_record", text, "whoever needs it fails; restore or delete it", None);
    }
    blocks(facts, &mut found);
    placements(facts, &mut found);
    slots(facts, &mut found);
    holders(facts, &mut found);
    endpoints(facts, &mut found);
    map_entries(facts, &mut found);
    found.0
}

#[derive(Default)]
struct Found(BTreeSet<Finding>);

/// An attachment and its assignment.
type About<'a> = Option<(&'a Attachment, &'a str)>;

impl Found {
    fn error(&mut self, kind: &'static str, text: String, hint: impl Into<String>, of: About<'_>) {
        self.add(Gravity::Error, kind, text, hint.into(), of);
    }

    fn warning(
        &mut self,
        kind: &'static str,
        text: String,
        hint: impl Into<String>,
        of: About<'_>,
    ) {
        self.add(Gravity::Warning, kind, text, hint.into(), of);
    }

    fn add(
        &mut self,
        gravity: Gravity,
        kind: &'static str,
        text: String,
        hint: String,
        of: About<'_>,
    ) {
        let attachment = of.map(|(attachment, _)| attachment.clone());
        let assignment = of.map(|(_, assignment)| assignment.to_owned()).unwrap_or_default();
        self.0.insert(Finding { gravity, kind, text, hint, attachment, assignment });
    }
}

fn blocks(facts: &Facts, found: &mut Found) {
    let mut blocks: Vec<&BlockEntry> = facts.ledger.blocks.iter().collect();
    blocks.sort_by_key(|block| (block.cidr.ip(), block.cidr.prefix()));
    for pair in blocks.windows(2) {
        if pair[0].cidr.contains(pair[1].cidr.ip()) {
            let text = format!("blocks {} and {} overlap", pair[0].cidr, pair[1].cidr);
            let hint =
                "an address may be given twice; empty one of the two, then delete its record";
            found.error("overlapping_blocks", text, hint, None);
        }
    }
    for block in blocks {
        if let Some(node) = &block.node
            && block.claimed_by.as_ref() != Some(node)
        {
            let claim = block.claimed_by.as_deref().unwrap_or("nobody");
            let text = format!("block {} is {node}'s, and claimed by {claim}", block.cidr);
            let hint = "another node may take it for free; restore the record of the claim";
            found.error("block_without_claim", text, hint, None);
        }
        let is_known = facts.pools.iter().any(|pool| pool.cidr.contains(block.cidr.ip()));
        if !is_known && !block.taken.is_empty() {
            let text = format!("block {} has addresses out and is of no pool", block.cidr);
            let hint = "its pods go on; margayctl ipam show --block says which they are";
            found.warning("block_of_no_pool", text, hint, None);
        }
    }
}

fn placements(facts: &Facts, found: &mut Found) {
    for block in &facts.misplaced {
        let text = format!("the placement of block {block} is not what the block says");
        let hint = "other nodes go by the placement; margayctl doctor --fix puts it right";
        found.error("block_misplaced", text, hint, None);
    }
}

fn slots(facts: &Facts, found: &mut Found) {
    let holders: BTreeMap<&Attachment, &Holder> =
        facts.ledger.holders.iter().map(|holder| (&holder.attachment, holder)).collect();
    for block in &facts.ledger.blocks {
        for (ip, slot) in &block.taken {
            let leads_here = holders.get(&slot.attachment).is_some_and(|holder| {
                holder.assignment == slot.assignment && holder.blocks.contains(&block.cidr)
            });
            if !leads_here {
                let text =
                    format!("{ip} is taken by {}, and no handle leads to it", slot.attachment);
                let hint = format!("nobody will give it back: margayctl ipam release {ip}");
                let of = Some((&slot.attachment, slot.assignment.as_str()));
                found.error("address_without_handle", text, hint, of);
            }
        }
    }
}

fn holders(facts: &Facts, found: &mut Found) {
    for holder in &facts.ledger.holders {
        let attachment = &holder.attachment;
        let of = Some((attachment, holder.assignment.as_str()));
        let release = format!("margayctl ipam release {attachment}");
        if holder.is_releasing {
            let text = format!("a release of {attachment} did not come to its end");
            found.warning("release_unfinished", text, release, of);
            continue;
        }
        let mut slots = facts.ledger.slots_of(attachment);
        if !slots.any(|(_, slot)| slot.assignment == holder.assignment) {
            let text = format!("{attachment} has a handle and no address");
            let hint = format!("an ADD of it is refused until its DEL; {release}");
            found.warning("handle_without_addresses", text, hint, of);
            continue;
        }
        if attachment.network() == naming::OVERLAY_NETWORK {
            continue;
        }
        let is_here = holder.node == facts.nodename;
        let endpoint = facts.ledger.endpoints.iter().find(|e| e.attachment == *attachment);
        if is_here && is_gone(facts, holder) {
            let text = format!("{attachment} holds addresses, and its sandbox is gone");
            let hint = format!("the runtime's GC or the agent takes them back; or {release}");
            found.warning("sandbox_gone", text, hint, of);
        } else if endpoint.is_none() && facts.networks.contains_key(attachment.network()) {
            let text = format!("{attachment} holds addresses, and has no endpoint");
            let hint = format!("an ADD was cut short; its DEL takes them back, or {release}");
            found.warning("addresses_without_endpoint", text, hint, of);
        }
    }
}

/// As upkeep judges it: neither its veth pair nor its namespace is there.
fn is_gone(facts: &Facts, holder: &Holder) -> bool {
    let has_veth = facts.links.contains_key(&naming::host_veth(&holder.attachment));
    let netns = holder.netns.as_deref();
    !has_veth && netns.is_some_and(|netns| !ipam::is_netns_alive(netns))
}

fn endpoints(facts: &Facts, found: &mut Found) {
    let mut owners: BTreeMap<IpAddr, &Endpoint> = BTreeMap::new();
    for endpoint in &facts.ledger.endpoints {
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            if let Some(other) = owners.insert(ip, endpoint) {
                let text =
                    format!("{} and {} both have {ip}", other.attachment, endpoint.attachment);
                let hint = "only one of them gets packets; make one of the pods anew";
                found.error(
                    "address_of_two_endpoints",
                    text,
                    hint,
                    Some((&endpoint.attachment, "")),
                );
            }
            if let Some(text) = not_its_own(facts, endpoint, ip) {
                let hint = "another pod may get it; make the pod anew";
                found.error("address_not_its_own", text, hint, Some((&endpoint.attachment, "")));
            }
        }
    }
}

fn not_its_own(facts: &Facts, endpoint: &Endpoint, ip: IpAddr) -> Option<String> {
    let attachment = &endpoint.attachment;
    if let Some((_, slot)) = facts.ledger.slot(ip) {
        let is_anothers = slot.attachment != *attachment;
        return is_anothers
            .then(|| format!("{attachment} has {ip}, which {} holds", slot.attachment));
    }
    // Whoever else gives the addresses of its network may give some that are in a pool as well.
    let is_delegated = facts.networks.get(attachment.network()) == Some(&false);
    let is_of_pool = facts.pools.iter().any(|pool| pool.cidr.contains(ip));
    (is_of_pool && !is_delegated).then(|| format!("{attachment} has {ip}, which is free"))
}

fn map_entries(facts: &Facts, found: &mut Found) {
    let Some(entries) = &facts.map_entries else { return };
    let here = facts.ledger.endpoints.iter().filter(|endpoint| endpoint.node == facts.nodename);
    let mut owners = BTreeMap::new();
    for endpoint in here {
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            owners.insert(ip, endpoint);
            let should_have = endpoint.dataplane == dataplane::EBPF
                && endpoint.state == EndpointState::Ready
                && endpoint.boot_id == facts.boot_id;
            if should_have && !entries.contains_key(&ip) {
                let text = format!("{ip} of {} has no map entry", endpoint.attachment);
                let hint = "all that the pod sends is dropped; margayctl doctor --fix puts it back";
                found.error("no_map_entry", text, hint, Some((&endpoint.attachment, "")));
            }
        }
    }
    for (ip, entry) in entries {
        let Some(endpoint) = owners.get(ip) else {
            let text = format!("the map entry of {ip} (interface {}) is nobody's", entry.ifindex);
            let hint =
                "packets to it are dropped; margayctl doctor --fix, or the agent, removes it";
            // An ADD writes the entry before its endpoint.
            let of = facts.attachments.get(&entry.ifindex).map(|attachment| (attachment, ""));
            found.error("map_entry_of_nobody", text, hint, of);
            continue;
        };
        let index = facts.links.get(&endpoint.host_veth);
        if index.is_some_and(|index| *index != entry.ifindex) {
            let text = format!(
                "the map entry of {ip} leads to interface {} and not to {}",
                entry.ifindex, endpoint.host_veth
            );
            let hint = "margayctl doctor --fix puts it right";
            found.error("map_entry_elsewhere", text, hint, Some((&endpoint.attachment, "")));
        }
    }
}
