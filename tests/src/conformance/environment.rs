//! Calls that are refused: the error's shape, its code, and that it names what is wrong.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Entry;
use super::answer::refusal;
use super::bench::Bench;

const CODE_4: &str = "4: Invalid necessary environment variables […] The error message must \
                      contain the names of invalid variables";
const CODE_2_7: &str = "2: Unsupported field […] The error message must contain the key and value; \
                        7: Invalid network config";

pub(super) const CHECKS: &[Entry] = &[
    (
        "A plugin must exit with a return code of 0 on success, and non-zero on failure […] it \
         should output an \"error\" result structure",
        "an error has code, msg and nothing beside it on stdout",
        error_document,
    ),
    (
        "Error […] cniVersion: The same value as provided by the configuration",
        "an error with each version",
        version_of_error,
    ),
    (CODE_4, "ADD without CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME", missing_in_add),
    (CODE_4, "DEL without CNI_CONTAINERID, CNI_IFNAME", missing_in_del),
    (CODE_4, "CHECK without CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME", missing_in_check),
    (CODE_4, "an unknown CNI_COMMAND", unknown_command),
    (CODE_4, "a bad CNI_CONTAINERID, a bad CNI_IFNAME", bad_value_is_named),
    (
        "CNI_CONTAINERID […] Must start with an alphanumeric character",
        "\"-a\", \"../a\", \"a/b\", \"a b\"",
        bad_container_id,
    ),
    (
        "CNI_IFNAME […] if the plugin is unable to use this interface name it must return an error",
        "16 characters, \"..\", \"a/b\", \"a b\"",
        bad_ifname,
    ),
    (
        "CNI_NETNS: A reference to the container's \"isolation domain\"",
        "a path where nothing is, and one that is no namespace",
        bad_netns,
    ),
    (
        "Beyond the specification: CNI_NETNS is another namespace than the plugin's own",
        "the host's own namespace is refused before anything happens",
        host_netns,
    ),
    ("1: Incompatible CNI version", "cniVersion 99.0.0", unknown_version),
    ("1: Incompatible CNI version", "CHECK with 0.3.1, which has none", verb_of_later_version),
    ("6: Failed to decode content", "a configuration that is not JSON", not_json),
    (CODE_2_7, "no name", no_name),
    (CODE_2_7, "mtu: \"large\" is refused by key, and nothing is made", bad_key),
];

fn error_document(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let output = bench.call(&pod, "ADD", &bench.network()).env("CNI_NETNS", "/nowhere").execute();
    let refusal = refusal(&output, "ADD")?;
    let msg = refusal.document["msg"].as_str().unwrap_or_default();
    ensure!(!msg.is_empty(), "no msg in {}", refusal.document);
    Ok(())
}

fn version_of_error(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let mut network = bench.network();
    for version in bench.subject.versions() {
        network["cniVersion"] = json!(version);
        let calls = [
            ("CNI_NETNS is no namespace", bench.call(&pod, "ADD", &network).env("CNI_NETNS", "/x")),
            ("no CNI_IFNAME", bench.call(&pod, "ADD", &network).without_env("CNI_IFNAME")),
        ];
        for (what, call) in calls {
            let refusal = refusal(&call.execute(), what)?;
            let found = &refusal.document["cniVersion"];
            ensure!(found == version, "{what}: {found} in the error, configured {version}");
        }
    }
    Ok(())
}

fn missing_in_add(bench: &Bench<'_>) -> Result<()> {
    missing(bench, "ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
}

fn missing_in_del(bench: &Bench<'_>) -> Result<()> {
    missing(bench, "DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])
}

fn missing_in_check(bench: &Bench<'_>) -> Result<()> {
    bench.needs_check()?;
    missing(bench, "CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
}

fn missing(bench: &Bench<'_>, verb: &str, variables: &[&str]) -> Result<()> {
    let pod = bench.node.sandbox("a");
    for variable in variables {
        let call = bench.call(&pod, verb, &bench.network()).without_env(variable);
        let what = format!("{verb} without {variable}");
        refusal(&call.execute(), &what)?.expect(&what, &[4], variable)?;
    }
    Ok(())
}

fn unknown_command(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let output = bench.call(&pod, "ADDD", &bench.network()).execute();
    refusal(&output, "ADDD")?.expect("ADDD", &[4], "CNI_COMMAND")
}

fn bad_value_is_named(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    for (variable, value) in [("CNI_CONTAINERID", "-a"), ("CNI_IFNAME", "sixteen-letters-")] {
        let what = format!("{variable}={value}");
        let output = bench.call(&pod, "ADD", &bench.network()).env(variable, value).execute();
        refusal(&output, &what)?.expect(&what, &[4], variable)?;
    }
    Ok(())
}

fn bad_container_id(bench: &Bench<'_>) -> Result<()> {
    bad_values(bench, "CNI_CONTAINERID", &["-a", "../a", "a/b", "a b"])
}

fn bad_ifname(bench: &Bench<'_>) -> Result<()> {
    bad_values(bench, "CNI_IFNAME", &["sixteen-letters-", "..", "a/b", "a b"])
}

fn bad_netns(bench: &Bench<'_>) -> Result<()> {
    let file = bench.node.path("netns/file");
    std::fs::write(&file, "")?;
    bad_values(bench, "CNI_NETNS", &["/nowhere", &file.display().to_string()])
}

/// An ADD with each of these values must fail before it makes anything.
fn bad_values(bench: &Bench<'_>, variable: &str, values: &[&str]) -> Result<()> {
    let network = bench.network();
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pod = bench.node.sandbox("a");
    for value in values {
        let what = format!("{variable}={value}");
        let output = bench.call(&pod, "ADD", &network).env(variable, value).execute();
        refusal(&output, &what)?;
        before.expect_same(&bench.node)?;
    }
    drop(bystander);
    Ok(())
}

fn host_netns(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pod = bench.node.sandbox("a");
    // The plugin starts in the node's namespace, so that is what this path means to it.
    let call = bench.call(&pod, "ADD", &network).env("CNI_NETNS", "/proc/self/ns/net");
    let output = call.execute();
    let unchanged = before.expect_same(&bench.node);
    refusal(&output, "ADD to the host's namespace")?;
    unchanged?;
    drop(bystander);
    Ok(())
}

fn unknown_version(bench: &Bench<'_>) -> Result<()> {
    let mut network = bench.network();
    network["cniVersion"] = json!("99.0.0");
    refused_configuration(bench, "ADD", &network, &[1], "99.0.0")
}

fn verb_of_later_version(bench: &Bench<'_>) -> Result<()> {
    bench.needs("0.3.1")?;
    bench.needs_check()?;
    let mut network = bench.network();
    network["cniVersion"] = json!("0.3.1");
    refused_configuration(bench, "CHECK", &network, &[1], "")
}

fn not_json(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let output = bench.call(&pod, "ADD", &Value::Null).stdin(b"{\"name\": ").execute();
    refusal(&output, "ADD")?.expect("ADD", &[6], "")
}

fn no_name(bench: &Bench<'_>) -> Result<()> {
    let mut network = bench.network();
    network.as_object_mut().and_then(|network| network.remove("name"));
    refused_configuration(bench, "ADD", &network, &[2, 7], "name")
}

fn bad_key(bench: &Bench<'_>) -> Result<()> {
    let mut network = bench.network();
    network["mtu"] = json!("large");
    refused_configuration(bench, "ADD", &network, &[2, 6, 7], "mtu")
}

fn refused_configuration(
    bench: &Bench<'_>,
    verb: &str,
    network: &Value,
    codes: &[u64],
    named: &str,
) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let before = bench.snapshot();
    let output = bench.call(&pod, verb, network).execute();
    refusal(&output, verb)?.expect(verb, codes, named)?;
    before.expect_same(&bench.node)
}
