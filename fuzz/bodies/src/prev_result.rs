//! Results that margay did not make: `prevResult` in every version's layout, and what a delegated
//! IPAM plugin answers.
//!
//! What is read once can be written in every version's layout, and says the same addresses when it
//! is read again.

use margay::config::prev_result;
use margay::error::chain;
use margay::ipam::IpamResult;
use margay::protocol::VERSIONS;
use rscni_types::legacy;
use rscni_types::types::{CNIResult, CNIResultWithVersion};
use serde_json::{Map, Value};

use crate::assert_one_line;

/// Reads the input as a result.
///
/// # Panics
/// When a promise is broken.
pub fn check(input: &[u8]) {
    let Ok(document) = serde_json::from_slice::<Value>(input) else { return };
    if let Value::Object(document) = &document {
        check_delegated(document);
    }
    match read(document) {
        Ok(Some(result)) => check_layouts(&result),
        Ok(None) => {}
        Err(message) => {
            assert_one_line(&message);
            assert!(message.starts_with("prevResult"), "{message}");
        }
    }
}

fn read(document: Value) -> Result<Option<CNIResult>, String> {
    let config = Map::from_iter([("prevResult".to_owned(), document)]);
    prev_result(&config).map_err(|error| chain(&error))
}

fn check_layouts(result: &CNIResult) {
    let addresses = |result: &CNIResult| -> Vec<String> {
        result.ips.iter().map(|ip| ip.address.to_string()).collect()
    };
    for version in VERSIONS {
        let document = if version.is_legacy() {
            serde_json::to_value(legacy::CNIResult::new(version, result.clone()))
        } else {
            serde_json::to_value(CNIResultWithVersion::new(version, result.clone()))
        };
        let document = document.expect("a result can be written");
        let again = read(document.clone()).expect("and read again").expect("it is there");
        assert_eq!(addresses(&again), addresses(result), "{version}: {document}");
    }
}

fn check_delegated(document: &Map<String, Value>) {
    match IpamResult::from_map(document) {
        Ok(result) => {
            assert!(!result.ips.is_empty());
            assert_eq!(result.addresses().count(), result.ips.len());
            for route in &result.routes {
                assert!(route.mtu != Some(0) && route.priority != Some(0));
            }
        }
        Err(error) => assert_one_line(&chain(&error)),
    }
}
