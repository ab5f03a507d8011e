//! Whether there are addresses left, whose they are besides, and whether other nodes know where they are.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use margay::config::{ConfigError, Pool};
use margay::naming;
use margay_datastore::PoolUsage;

use super::catalogue::{
    BLOCK_MISPLACED, POOL_EXHAUSTED, POOL_NEARLY_EXHAUSTED, POOL_OVERLAPS_ROUTE, POOL_UNKNOWN,
    POOLS_DISABLED,
};
use super::finding::Findings;
use super::is_nearly_full;
use super::leftovers::{MAIN_TABLE, is_margays};
use super::picture::Picture;
use crate::node::Network;

pub(super) fn look(picture: &Picture<'_>, findings: &mut Findings) {
    look_at_usage(picture, findings);
    look_at_placements(picture, findings);
    for network in &picture.node.networks {
        if let Some(error) = &network.unsettled {
            let kind = match error {
                // They are all known, and none gives addresses.
                ConfigError::Missing { .. } => &POOLS_DISABLED,
                _ => &POOL_UNKNOWN,
            };
            findings.add(kind, format!("network {}: {error}", network.name));
        }
    }
    // The bridge of another plugin has its pool's prefix, as it should.
    for pools in picture.node.whole_networks().filter_map(|conf| conf.ipam.pools()) {
        for pool in &pools.all {
            look_at_routes(picture, pool, findings);
        }
    }
}

fn look_at_usage(picture: &Picture<'_>, findings: &mut Findings) {
    let open = picture.pools.iter().filter(|pool| pool.is_open());
    let usage: Vec<PoolUsage> = open.map(|pool| picture.usage(pool)).collect();
    let full: BTreeSet<IpNetwork> =
        usage.iter().filter(|usage| usage.free() == 0).map(|usage| usage.pool).collect();
    for PoolUsage { pool, capacity, used } in usage {
        let text = format!("pool {pool}: {used} of its {capacity} addresses are in use");
        if full.contains(&pool) && has_no_other(picture, pool, &full) {
            findings.add(&POOL_EXHAUSTED, text);
        } else if is_nearly_full(used, capacity) {
            findings.add(&POOL_NEARLY_EXHAUSTED, text);
        }
    }
}

fn look_at_placements(picture: &Picture<'_>, findings: &mut Findings) {
    let Some(site) = &picture.site else { return };
    let misplaced = findings.or_note("placements", site.store.misplaced_blocks());
    for block in misplaced.unwrap_or_default() {
        let text = format!("the placement of block {block} is not what the block says");
        findings.add(&BLOCK_MISPLACED, text);
    }
}

/// Whether a network that is configured here takes addresses from this pool, and all that it may take any of that family
/// from are full.
fn has_no_other(picture: &Picture<'_>, pool: IpNetwork, full: &BTreeSet<IpNetwork>) -> bool {
    let is_closed =
        |cidr: IpNetwork| picture.pools.iter().any(|record| record.cidr == cidr && record.closed);
    let is_out = |usable: &Pool| {
        let is_other_family = usable.cidr.is_ipv4() != pool.is_ipv4();
        is_other_family || is_closed(usable.cidr) || full.contains(&usable.cidr)
    };
    let mut pools = picture.node.networks.iter().filter_map(Network::pools);
    pools.any(|pools| {
        pools.usable.iter().any(|usable| usable.cidr == pool) && pools.usable.iter().all(is_out)
    })
}

fn look_at_routes(picture: &Picture<'_>, pool: &Pool, findings: &mut Findings) {
    for route in &picture.routes {
        let Some(destination) = route.destination else { continue };
        let Ok(destination) = IpNetwork::new(destination, route.prefix_length) else { continue };
        let is_others = route.table == MAIN_TABLE && !is_margays(route.protocol);
        let overlaps =
            pool.cidr.contains(destination.network()) || destination.contains(pool.cidr.network());
        let link = picture.links.iter().find(|link| Some(link.index) == route.ifindex);
        // Of an address on margay's own interfaces the kernel makes a route by itself.
        let is_over_margays = link.is_some_and(|link| {
            naming::is_overlay_device(&link.name) || naming::is_of_a_pod(&link.name)
        });
        if is_others && !is_over_margays && destination.prefix() > 0 && overlaps {
            let over = link.map_or("nothing", |link| link.name.as_str());
            let text =
                format!("pool {} overlaps the host's route {destination} over {over}", pool.cidr);
            findings.add(&POOL_OVERLAPS_ROUTE, text);
        }
    }
}
