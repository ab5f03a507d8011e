//! The names of fields in documents: what scripts rely on.

use serde_json::Value;

const REFERENCE: &str = include_str!("../../docs/margayctl.md");

/// Asserts that an object has exactly these fields, named in one line, and that the reference has them
/// too.
pub(crate) fn assert_fields(object: &Value, names: &str) {
    let mut found: Vec<&str> =
        object.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = names.split_whitespace().collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{object}");
    for name in expected {
        assert!(REFERENCE.contains(&format!("`{name}`")), "docs/margayctl.md lacks {name}");
    }
}
