//! The part of `Cargo.lock` that one package can reach.
//!
//! Reads the format as cargo writes it, line by line, so that the build script which uses this
//! crate needs no TOML parser.

use std::collections::{BTreeMap, BTreeSet};

/// The lock file's entries that one package can reach, itself included.
pub(crate) struct Reachable<'a>(BTreeMap<(&'a str, &'a str), &'a str>);

impl<'a> Reachable<'a> {
    /// The entries as they stand in the lock file, in order of name and version.
    pub(crate) fn text(&self) -> String {
        self.0.values().copied().collect::<Vec<_>>().join("\n\n")
    }

    /// The names of the packages.
    pub(crate) fn names(&self) -> BTreeSet<&'a str> {
        self.0.keys().map(|(name, _)| *name).collect()
    }
}

/// Follows the dependencies of `package`; `None` if the lock file does not have it.
pub(crate) fn reachable<'a>(lockfile: &'a str, package: &'a str) -> Option<Reachable<'a>> {
    let entries: Vec<Entry<'a>> =
        lockfile.split("[[package]]").skip(1).filter_map(Entry::parse).collect();
    let mut found = BTreeMap::new();
    let mut wanted = vec![(package, None)];
    while let Some((name, version)) = wanted.pop() {
        for entry in &entries {
            let matches = entry.name == name && version.is_none_or(|v| v == entry.version);
            if matches && found.insert((entry.name, entry.version), entry.text).is_none() {
                wanted.extend(entry.dependencies());
            }
        }
    }
    (!found.is_empty()).then_some(Reachable(found))
}

struct Entry<'a> {
    name: &'a str,
    version: &'a str,
    text: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
        };
        Some(Self { name: value("name")?, version: value("version")?, text })
    }

    /// Name and, where the lock file has several versions of that name, version.
    fn dependencies(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + use<'a> {
        self.text.lines().filter_map(|line| {
            let dependency = line.strip_prefix(" \"")?.strip_suffix("\",")?;
            let mut words = dependency.split(' ');
            Some((words.next()?, words.next()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"version = 4

[[package]]
name = "a"
version = "1.0.0"
dependencies = [
 "b 2.0.0",
 "c",
]

[[package]]
name = "b"
version = "1.0.0"
checksum = "old"

[[package]]
name = "b"
version = "2.0.0"
checksum = "new"

[[package]]
name = "c"
version = "1.0.0"
dependencies = [
 "a",
]
"#;

    #[test]
    fn only_the_version_that_is_named_is_reached() {
        let reachable = reachable(LOCK, "a").unwrap();
        assert!(reachable.text().contains("new"), "{}", reachable.text());
        assert!(!reachable.text().contains("old"), "{}", reachable.text());
    }

    #[test]
    fn a_cycle_ends() {
        let names = reachable(LOCK, "c").unwrap().names();
        assert_eq!(names, BTreeSet::from(["a", "b", "c"]));
    }

    #[test]
    fn an_unknown_package_is_none() {
        assert!(reachable(LOCK, "d").is_none());
    }
}
