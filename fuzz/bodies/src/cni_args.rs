//! `CNI_ARGS`: an error quotes what is wrong, and what is accepted is usable.

use margay::args::{ArgsError, CniArgs};
use margay::error::chain;

use crate::assert_one_line;

/// Parses the input as `CNI_ARGS`.
///
/// # Panics
/// When a promise is broken.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match CniArgs::parse(text) {
        Ok(args) => check_args(text, &args),
        Err(error) => {
            assert_one_line(&chain(&error));
            match error {
                ArgsError::Pair { pair } | ArgsError::Value { pair, .. } => {
                    assert!(text.split(';').any(|other| other == pair), "{pair:?} is not in it");
                }
                ArgsError::Unknown { pairs } => assert!(!pairs.is_empty()),
            }
        }
    }
}

fn check_args(text: &str, args: &CniArgs) {
    for ipv4 in [true, false] {
        let of_family = args.ips.iter().filter(|ip| ip.is_ipv4() == ipv4);
        assert!(of_family.count() <= 1, "two addresses of a family");
    }
    for ip in &args.ips {
        assert!(!ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback(), "{ip}");
    }
    if let Some(mac) = args.mac {
        assert!(mac[0] & 1 == 0 && mac != [0; 6], "{mac:?} is no unicast address");
    }
    for part in [&args.pod_namespace, &args.pod_name, &args.pod_uid, &args.infra_container_id] {
        let Some(part) = part else { continue };
        assert!(!part.is_empty() && text.contains(part.as_str()));
        assert_one_line(part);
    }
    if !text.is_empty() {
        assert_eq!(CniArgs::parse(&format!("{text};IgnoreUnknown=1")).as_ref(), Ok(args));
    }
}
