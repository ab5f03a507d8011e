//! The conformance suite on margay, and that it tells one plugin from another.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use margay_tests::conformance::{Outcome, Subject, checks, run};
use margay_tests::node::plugin_directory;
use margay_tests::requirements;

#[test]
fn every_check_passes_for_margay() {
    if !requirements::root() {
        return;
    }
    let checks = checks();

    let outcomes = run(&Subject::margay().unwrap(), &checks);

    assert_eq!(outcomes.len(), checks.len());
    for (check, outcome) in checks.iter().zip(&outcomes) {
        assert_eq!(*outcome, Outcome::Pass, "{}: {} ({})", check.group, check.case, check.sentence);
    }
}

#[test]
fn a_plugin_that_says_yes_to_everything_and_does_nothing_fails() {
    if !requirements::root() {
        return;
    }
    let outcomes = outcomes_of("exit 0");

    let passed = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Pass);
    let groups: Vec<_> = passed.map(|(group, _)| *group).collect();
    for group in ["VERSION", "Errors", "Results", "ADD", "CHECK"] {
        assert!(!groups.contains(&group), "{group}: {outcomes:?}");
    }
}

#[test]
fn a_plugin_that_dies_or_babbles_fails() {
    if !requirements::root() {
        return;
    }
    for script in ["kill -9 $$", "echo no idea; exit 1"] {
        let outcomes = outcomes_of(script);
        let passed = outcomes.iter().find(|(_, outcome)| *outcome == Outcome::Pass);
        assert!(passed.is_none(), "{script}: {passed:?}");
    }
}

#[test]
fn a_verb_that_does_nothing_is_found_out() {
    if !requirements::root() {
        return;
    }
    // What passes all the same: where there is nothing to be found or to be done.
    for (verb, groups, unnoticed) in [
        (
            "CHECK",
            ["CHECK", "margay"].as_slice(),
            ["prints nothing", "later", "in the pod", "left"],
        ),
        ("DEL", &["DEL"], ["twice", "never was", "other intact", "-"]),
        ("GC", &["GC"], ["nothing was ever", "twice", "another network", "-"]),
        ("STATUS", &["STATUS"], ["before the first ADD", "-", "-", "-"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let real = plugin_directory();
        let script = format!("[ $CNI_COMMAND = {verb} ] && exit 0\nexec {}/margay", real.display());
        write_plugin(&folder.path().join("margay"), &script);
        symlink(real.join("margay-ipam"), folder.path().join("margay-ipam")).unwrap();
        let conf = include_str!("margay.json");
        let subject = Subject::new("margay", folder.path(), conf).unwrap();
        let checks = checks().into_iter().filter(|check| groups.contains(&check.group));
        let checks: Vec<_> = checks.collect();

        let outcomes = run(&subject, &checks);

        for (check, outcome) in checks.iter().zip(outcomes) {
            let noticed = !unnoticed.iter().any(|part| check.case.contains(part));
            let failed = matches!(outcome, Outcome::Fail(_));
            assert_eq!(failed, noticed, "{verb} does nothing: {}: {outcome:?}", check.case);
        }
    }
}

#[test]
fn the_document_has_every_check() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let document = fs::read_to_string(document).unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| ") && line.contains(" pass |"));
    let rows: Vec<_> = rows.collect();
    let checks = checks();
    assert_eq!(rows.len(), checks.len(), "{HOW}");
    for (check, row) in checks.iter().zip(rows) {
        assert!(row.contains(&format!("| {} | pass |", check.case)), "{row}: {HOW}");
        let has_sentence = row.starts_with("| ″ |") || row.contains(check.sentence);
        assert!(has_sentence, "{row}: {HOW}");
    }
}

const HOW: &str = "`cargo xtask conformance` makes docs/conformance.md, as target/conformance.md";

/// The groups and outcomes of the checks on a plugin that is a shell script.
fn outcomes_of(script: &str) -> Vec<(&'static str, Outcome)> {
    let folder = tempfile::tempdir().unwrap();
    write_plugin(&folder.path().join("script"), script);
    let conf = r#"{"cniVersion": "1.1.0", "name": "podnet", "type": "script", "ipam": {}}"#;
    let subject = Subject::new("script", folder.path(), conf).unwrap();
    let checks = checks();
    let outcomes = run(&subject, &checks);
    checks.iter().map(|check| check.group).zip(outcomes).collect()
}

fn write_plugin(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
