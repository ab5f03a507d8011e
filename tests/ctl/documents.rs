//! The documents of the commands that no other test here looks at field by field; and that YAML has the same.

use std::collections::BTreeSet;
use std::fs;

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;
use serde_json::Value;

use crate::fields::assert_fields;

const FINDING: &str = "finding fixable gravity id meaning remedy";
const DIAGNOSIS: &str = "done failed findings verdict";

#[test]
fn what_the_node_is_and_what_is_wrong_with_it_are_documents_whose_fields_stay() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    fs::write(node.path("agent.json"), "{").unwrap();
    let plugins = plugin_directory();
    let with_bin = |command| [command, "--bin-dir", plugins.to_str().unwrap(), "-o", "json"];
    let document =
        |command| -> Value { serde_json::from_str(&ctl.run(&with_bin(command)).stdout).unwrap() };

    let (status, doctor) = (document("status"), document("doctor"));

    let of_status =
        "agent datastore endpoints kernel maps networks node pools programs recent_errors version";
    assert_fields(&status, &format!("{of_status} {DIAGNOSIS}"));
    assert_fields(&status["kernel"], "lacks release");
    assert_fields(&status["networks"][0], "attach dataplane file ipam name");
    assert_fields(&status["programs"][0], "abi_version build is_current is_of_this_release");
    for fill in [&status["maps"][0], &status["pools"][0]] {
        assert_fields(fill, "capacity name tenths used");
    }
    assert_fields(&status["endpoints"], "of_earlier_boots pending ready");
    assert_fields(&doctor, DIAGNOSIS);
    for finding in [&status["findings"][0], &doctor["findings"][0]] {
        assert_fields(finding, FINDING);
    }
    let listed = ctl.json(&["doctor", "--list"]);
    assert_fields(&listed, "findings");
    assert_fields(&listed["findings"][0], "fixable gravity id meaning remedy");
}

#[test]
fn what_was_done_with_programs_is_a_document_whose_fields_stay() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);

    let of_upgrade = "attached build failed is_dry_run pods replaced to_replace";
    assert_fields(&ctl.json(&["datapath", "upgrade", "--dry-run"]), of_upgrade);
    assert_fields(&ctl.json(&["datapath", "upgrade"]), of_upgrade);
    let unloaded = ctl.json(&["datapath", "unload"]);
    assert_fields(&unloaded, "busy failed handed_over interfaces pins");
}

#[test]
fn yaml_has_the_fields_of_json_and_every_list_can_be_watched() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);

    for command in [
        &["status"][..],
        &["endpoint", "list"],
        &["endpoint", "show", "a"],
        &["ipam", "show"],
        &["pool", "list"],
        &["node", "list"],
        &["datapath", "maps"],
        &["datapath", "flows"],
        &["datapath", "programs"],
        &["datapath", "counters"],
    ] {
        let json = ctl.json(command);
        let yaml = ctl.text(&[command, &["-o", "yaml"]].concat());
        let of_yaml: BTreeSet<&str> = yaml
            .lines()
            .filter(|line| !line.starts_with([' ', '-']))
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect();
        let of_json: BTreeSet<&str> =
            json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(of_yaml, of_json, "{command:?}: {yaml}");
        let help = ctl.text(&[command, &["--help"]].concat());
        assert!(help.contains("--watch") && help.contains("--interval"), "{command:?}: {help}");
    }
}
