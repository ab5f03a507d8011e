//! The names of fields in documents: what scripts rely on.

use serde_json::Value;

/// Asserts that an object has exactly these fields, named in one line.
pub(crate) fn assert_fields(object: &Value, names: &str) {
    let found: Vec<&str> =
        object.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = names.split_whitespace().collect();
    expected.sort_unstable();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected, "{object}");
}
