//! The network configuration, as the network plugin and as margay-ipam reads it: an error names
//! its field in one line, and what is accepted can be relied on.

use ipnetwork::IpNetwork;
use margay::config::{IpamConf, IpamNetConf, NetConf, PoolSet, Requested, valid_attachments};
use margay_datastore::is_cni_name;
use serde_json::{Map, Value};

use crate::{assert_names_field, assert_one_line};

/// Reads the input as a network configuration.
///
/// # Panics
/// When a promise is broken.
pub fn check(input: &[u8]) {
    let Ok(Value::Object(document)) = serde_json::from_slice(input) else { return };
    check_netconf(&document);
    check_ipam_netconf(&document);
    match Requested::from_map(&document) {
        Ok(requested) => check_requested(&requested),
        Err(error) => assert_names_field(&error),
    }
    match valid_attachments(&document) {
        Ok(attachments) => {
            let empty = |part: &String| part.is_empty();
            assert!(!attachments.iter().any(|a| empty(&a.container_id) || empty(&a.ifname)));
        }
        Err(error) => assert_names_field(&error),
    }
}

fn check_netconf(document: &Map<String, Value>) {
    let conf = match NetConf::from_map(document) {
        Ok(conf) => conf,
        Err(error) => return assert_names_field(&error),
    };
    assert!(is_cni_name(&conf.name) && is_cni_name(&conf.nodename));
    assert!(conf.mtu.is_none_or(|mtu| (68..=65_535).contains(&mtu)));
    assert!(conf.max_pods > 0 && conf.max_flows > 0);
    let paths = [&conf.paths.state_dir, &conf.paths.run_dir, &conf.paths.bpffs_root];
    for path in paths.into_iter().chain(&conf.log.file) {
        assert!(path.is_absolute());
        assert_one_line(path.to_str().expect("a path from JSON is text"));
    }
    match &conf.ipam {
        IpamConf::Builtin(pools) => {
            check_pools(pools);
            assert!(!pools.assign_ipv6 || conf.mtu.is_none_or(|mtu| mtu >= 1280));
        }
        IpamConf::Delegated(plugin) => {
            assert!(!plugin.is_empty() && !plugin.contains('/') && !plugin.starts_with('.'));
            assert_one_line(plugin);
        }
    }
    for key in conf.unused_keys() {
        assert_one_line(key);
    }
    assert_eq!(NetConf::from_map(document).as_ref(), Ok(&conf));
}

fn check_ipam_netconf(document: &Map<String, Value>) {
    let conf = match IpamNetConf::from_map(document) {
        Ok(conf) => conf,
        Err(error) => return assert_names_field(&error),
    };
    assert!(is_cni_name(&conf.name) && is_cni_name(&conf.nodename));
    assert!(conf.state_dir.is_absolute());
    check_pools(&conf.pools);
}

/// The configuration and the datastore have the same idea of what a pool is.
fn check_pools(pools: &PoolSet) {
    let all: Vec<margay_datastore::Pool> = pools.all.iter().map(Into::into).collect();
    margay_datastore::Pool::check_all(&all).expect("the datastore takes what was accepted");
    for pool in &all {
        let gateway = pool.gateway;
        assert!(gateway.is_none_or(|ip| pool.cidr.contains(ip) && !pool.hands_out(ip)), "{pool:?}");
    }
    assert!(pools.is_open() || !pools.usable.is_empty());
    for pool in &pools.usable {
        assert!(pools.all.contains(pool) && !pool.disabled);
        let is_assigned = if pool.cidr.is_ipv4() { pools.assign_ipv4 } else { pools.assign_ipv6 };
        assert!(is_assigned, "{pool:?} is of a family that nobody gets");
    }
    type OfFamily = fn(&IpNetwork) -> bool;
    let families: [(bool, OfFamily); 2] =
        [(pools.assign_ipv4, IpNetwork::is_ipv4), (pools.assign_ipv6, IpNetwork::is_ipv6)];
    for (is_assigned, of_family) in families {
        assert!(
            pools.is_open()
                || !is_assigned
                || pools.usable.iter().any(|pool| of_family(&pool.cidr))
        );
    }
}

fn check_requested(requested: &Requested) {
    assert!(requested.ips.len() <= 2);
    for ip in &requested.ips {
        assert!(!ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback(), "{ip}");
    }
    assert!(requested.mac.is_none_or(|mac| mac[0] & 1 == 0 && mac != [0; 6]));
}
