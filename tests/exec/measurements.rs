//! That `cargo xtask bench` measures, if only a little: whoever changes the harness or a verb sees it
//! here, and not when the next full run is due.

use std::fs;
use std::process::Command;

use margay_tests::requirements;
use serde_json::Value;

#[test]
fn a_row_measures_every_plugin_in_pairs_and_judges_by_what_it_measured() {
    if !requirements::root() {
        return;
    }
    let out = tempfile::tempdir().unwrap();

    let bench = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["del", "--quick", "--out"])
        .arg(out.path())
        .output()
        .unwrap();

    assert!(bench.status.success(), "{}", String::from_utf8_lossy(&bench.stderr));
    let sheet = fs::read_to_string(out.path().join("del.json")).unwrap();
    let sheet: Value = serde_json::from_str(&sheet).unwrap();
    assert_eq!(sheet["schema"], 1);
    assert_eq!(sheet["quick"], true);
    for peer in ["margay", "margay linux", "ptp", "bridge"] {
        assert_eq!(samples(&sheet, "wall time", peer).len(), 3, "{peer}");
        assert!(samples(&sheet, "CPU time", peer).iter().all(|time| *time > 0.0), "{peer}");
    }
    assert_eq!(samples(&sheet, "wall time", "bare veth").len(), 3, "the kernel's share");
    let goal = &sheet["goals"][0];
    let ratios = samples(&sheet, "wall time", "margay").into_iter();
    let mut ratios: Vec<_> =
        ratios.zip(samples(&sheet, "wall time", "ptp")).map(|(m, p)| m / p).collect();
    ratios.sort_by(f64::total_cmp);
    let value = goal["value"].as_f64().unwrap();
    assert!((value - ratios[1]).abs() < 1e-9, "{goal} {ratios:?}");
    assert_eq!(goal["limit"]["at_most"], 1.0);
    assert_eq!(goal["met"], value <= 1.0);
    let page = fs::read_to_string(out.path().join("benchmarks.md")).unwrap();
    let chart = fs::read_to_string(out.path().join("benchmarks/del-wall-time.svg")).unwrap();
    assert!(page.contains("(benchmarks/del-wall-time.svg)"), "{page}");
    assert_eq!(chart.matches("<rect").count(), 1 + 5, "{chart}");
}

/// The samples of a peer in the only case of a metric.
fn samples(sheet: &Value, metric: &str, peer: &str) -> Vec<f64> {
    let mut measurements = sheet["measurements"].as_array().unwrap().iter();
    let found = measurements.find(|one| one["metric"] == metric && one["peer"] == peer);
    let found = found.unwrap_or_else(|| panic!("no {metric} of {peer}"));
    found["samples"].as_array().unwrap().iter().map(|sample| sample.as_f64().unwrap()).collect()
}
