//! The part of the workspace's `Cargo.toml` that can reach the kernel object.
//!
//! Leaves out what certainly cannot: lints, the profiles of host builds, and the version
//! requirements of crates that the kernel half does not use. Everything else counts.

use std::collections::BTreeSet;

const IRRELEVANT_TABLES: &[&str] = &["workspace.lints", "profile.dev", "profile.test"];

/// The lines of `manifest` that count, given the names of all crates the kernel half uses.
pub(crate) fn relevant(manifest: &str, packages: &BTreeSet<&str>) -> String {
    let mut table = "";
    let mut kept = String::new();
    for line in manifest.lines() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            table = header;
        }
        let irrelevant = line.is_empty()
            || line.starts_with('#')
            || IRRELEVANT_TABLES.iter().any(|t| is_or_is_under(table, t))
            || (table == "workspace.dependencies" && is_of_another_crate(line, packages));
        if !irrelevant {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn is_or_is_under(table: &str, parent: &str) -> bool {
    table.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Only a dependency that is complete in its line and not renamed can be told.
fn is_of_another_crate(line: &str, packages: &BTreeSet<&str>) -> bool {
    let Some((name, requirement)) = line.split_once('=') else { return false };
    let requirement = requirement.trim();
    let complete = requirement.ends_with('"') || requirement.ends_with('}');
    complete && !requirement.contains("package") && !packages.contains(name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"[workspace]
resolver = "3"

[workspace.dependencies]
used = "1"
unused = "1"
split = { version = "1", features = [
    "one",
] }
renamed = { package = "used", version = "2" }

[workspace.lints.clippy]
all = "warn"

[profile.dev]
debug = 1

[profile.bpf]
# Words only.
debug = 2
"#;

    #[test]
    fn what_reaches_the_object_is_kept_and_nothing_that_cannot() {
        let kept = relevant(MANIFEST, &BTreeSet::from(["used"]));
        let expected = r#"[workspace]
resolver = "3"
[workspace.dependencies]
used = "1"
split = { version = "1", features = [
"one",
] }
renamed = { package = "used", version = "2" }
[profile.bpf]
debug = 2
"#;
        assert_eq!(kept, expected);
    }
}
