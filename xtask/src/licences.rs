//! The licences of what is linked into the executables, whose texts have to go with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::build_ebpf;
use crate::workspace::{self, cargo_command, output_of};

/// Beginnings of the names of files that licences are in.
const NAMES: &[&str] = &["LICENSE", "LICENCE", "UNLICENSE", "COPYING", "COPYRIGHT", "NOTICE"];

/// Puts the licences of every crate of both halves into `folder`, one folder per crate.
pub(crate) fn collect(folder: &Path, target: &str) -> Result<()> {
    let crates = crates(target)?;
    for (name, _) in &crates {
        let place = folder.join(name);
        for text in texts(&source_of(name)?)? {
            fs::create_dir_all(&place)?;
            fs::copy(&text, place.join(text.file_name().context("a file has a name")?))?;
        }
    }
    // Some crates come without a text and only name a licence.
    let list = crates.into_iter().map(|(name, licence)| format!("{name}: {licence}\n"));
    Ok(fs::write(folder.join("LIST"), list.collect::<String>())?)
}

/// Each crate that is not of this workspace: name and version, as its folder is called, and licence.
fn crates(target: &str) -> Result<Vec<(String, String)>> {
    let mut tree = cargo_command("tree");
    tree.arg("--locked");
    for package in ["margay", "margay-agent", "margayctl", build_ebpf::PACKAGE] {
        tree.args(["--package", package]);
    }
    tree.args([
        "--edges", "normal", "--prefix", "none", "--format", "{p}\t{l}", "--target", target,
    ]);
    let listed = output_of(&mut tree)?;
    let mut crates: Vec<_> = listed.lines().filter_map(of_registry).collect();
    crates.sort();
    crates.dedup();
    ensure!(!crates.is_empty(), "cargo tree lists no crates");
    Ok(crates)
}

/// Of a line such as `thiserror v2.0.21<tab>MIT OR Apache-2.0`; nothing of a crate that has a path
/// or runs at build time only.
fn of_registry(line: &str) -> Option<(String, String)> {
    let (package, licence) = line.split_once('\t')?;
    let (name, version) = package.split_once(" v")?;
    let linked = !version.contains(' ');
    linked.then(|| (format!("{name}-{version}"), licence.trim_end_matches(" (*)").to_owned()))
}

fn source_of(name: &str) -> Result<PathBuf> {
    let registry = workspace::cargo_home().context("no home")?.join("registry/src");
    let mut mirrors = fs::read_dir(registry)?.flatten().map(|mirror| mirror.path().join(name));
    mirrors.find(|path| path.is_dir()).with_context(|| format!("no sources of {name}"))
}

fn texts(source: &Path) -> Result<Vec<PathBuf>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && NAMES.iter().any(|beginning| name.starts_with(beginning)) {
            texts.push(path);
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_the_registry_that_are_linked_in_are_listed() {
        let named = |line| of_registry(line).map(|(name, licence)| format!("{name}: {licence}"));
        assert_eq!(named("libc v0.2.191\tMIT").as_deref(), Some("libc-0.2.191: MIT"));
        assert_eq!(named("libc v0.2.191\tMIT (*)").as_deref(), Some("libc-0.2.191: MIT"));
        assert_eq!(named("margay-abi v0.1.0 (/src/ebpf/abi)\tMIT"), None);
        assert_eq!(named("serde_derive v1.0.229 (proc-macro)\tMIT"), None);
    }
}
