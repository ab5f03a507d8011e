//! The agent's configuration: an error names its field in one line and shows no password, and what
//! is accepted can be relied on.

use margay::config::AgentConf;
use margay::error::chain;
use margay_datastore::is_cni_name;
use serde_json::Value;

use crate::{assert_names_field, assert_one_line};

/// What no error may show.
const PASSWORD: &str = "not-to-be-shown";

/// Reads the input as the configuration of an agent.
///
/// # Panics
/// When a promise is broken.
pub fn check(input: &[u8]) {
    let Ok(Value::Object(mut document)) = serde_json::from_slice(input) else { return };
    match AgentConf::from_map(&document) {
        Ok(conf) => {
            check_conf(&conf);
            assert_eq!(AgentConf::from_map(&document).as_ref(), Ok(&conf));
        }
        Err(error) => assert_names_field(&error),
    }
    // Whatever else is wrong.
    document.insert("etcd_password".to_owned(), PASSWORD.into());
    if let Err(error) = AgentConf::from_map(&document) {
        assert_names_field(&error);
        let message = chain(&error);
        let is_quoted = input.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
        assert!(is_quoted || !message.contains(PASSWORD), "{message}");
    }
}

fn check_conf(conf: &AgentConf) {
    assert!(is_cni_name(&conf.nodename));
    let paths = [&conf.paths.state_dir, &conf.paths.run_dir, &conf.paths.bpffs_root];
    for path in paths.into_iter().chain(&conf.log.file) {
        assert!(path.is_absolute());
        assert_one_line(path.to_str().expect("a path from JSON is text"));
    }
    for ipv4 in [true, false] {
        let of_family = conf.node_addresses.iter().filter(|address| address.is_ipv4() == ipv4);
        assert!(of_family.count() <= 1, "two addresses of a family");
    }
    for address in &conf.node_addresses {
        let ip = address.ip();
        assert!(!ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback(), "{ip}");
        assert!(address.prefix() > 0, "{address} is on the subnet of everything");
    }
    assert!((1..=86_400).contains(&conf.upkeep_interval.as_secs()));
    assert!(conf.upkeep_grace.as_secs() <= 86_400);
    assert!(conf.vxlan_port > 0);
    assert!((1..1 << 24).contains(&conf.vxlan_vni), "{} does not fit", conf.vxlan_vni);
}
