//! VERSION: what a plugin says it supports.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Entry;
use super::answer::success;
use super::bench::Bench;

pub(super) const CHECKS: &[Entry] = &[
    (
        "VERSION […] supportedVersions: A list of supported specification versions",
        "VERSION without any other variable",
        supported_versions,
    ),
    (
        "VERSION […] cniVersion: The value of cniVersion specified on input",
        "VERSION with each version on stdin",
        version_of_input,
    ),
];

fn supported_versions(bench: &Bench<'_>) -> Result<()> {
    let answer = success(&bench.subject.version(&json!({"cniVersion": "1.0.0"})), "VERSION")?;
    let listed = answer["supportedVersions"].as_array();
    let listed = listed.filter(|versions| !versions.is_empty());
    ensure!(listed.is_some(), "no supportedVersions in {answer}");
    ensure!(answer["cniVersion"].is_string(), "no cniVersion in {answer}");
    Ok(())
}

fn version_of_input(bench: &Bench<'_>) -> Result<()> {
    for version in bench.subject.versions() {
        let answer = success(&bench.subject.version(&json!({"cniVersion": version})), "VERSION")?;
        let answered = &answer["cniVersion"];
        ensure!(answered == version, "answers {answered} to {version}");
    }
    Ok(())
}
