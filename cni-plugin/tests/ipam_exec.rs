//! The binary `margay-ipam`, run the way a network plugin runs it, and real network plugins on it.

#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use margay_datastore::{Ipam, Pool, Sqlite, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

const MARGAY_IPAM: &str = env!("CARGO_BIN_EXE_margay-ipam");

/// A network with a state directory of its own.
struct Network {
    state: TempDir,
    config: Value,
}

/// What a plugin answered.
struct Answer {
    success: bool,
    document: Value,
}

impl Network {
    fn new(version: &str, pools: Value) -> Self {
        let state = tempfile::tempdir().unwrap();
        let config = json!({
            "cniVersion": version, "name": "side", "type": "ptp",
            "ipam": {
                "type": "margay-ipam", "nodename": "a", "state_dir": state.path(), "pools": pools,
            },
        });
        Self { state, config }
    }

    fn dual_stack() -> Self {
        Self::new("1.1.0", json!([{ "cidr": "10.245.0.0/16" }, { "cidr": "fd00:10:245::/64" }]))
    }

    fn call(&self, verb: &str, container: &str) -> Answer {
        self.call_with(verb, container, &[])
    }

    fn call_with(&self, verb: &str, container: &str, variables: &[(&str, &str)]) -> Answer {
        let mut command = Command::new(MARGAY_IPAM);
        command.env_clear();
        set_variables(&mut command, verb, container, "/run/netns/none");
        command.envs(variables.iter().copied());
        answer(&exchange(&mut command, &self.config))
    }
}

fn set_variables(command: &mut Command, verb: &str, container: &str, netns: &str) {
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", netns)
        .env("CNI_PATH", "/usr/lib/cni");
}

fn exchange(command: &mut Command, config: &Value) -> Output {
    let piped = || Stdio::piped();
    let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn answer(output: &Output) -> Answer {
    let document = match output.stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&output.stdout).unwrap(),
    };
    Answer { success: output.status.success(), document }
}

impl Answer {
    #[track_caller]
    fn ok(self) -> Value {
        assert!(self.success, "{}", self.document);
        self.document
    }

    #[track_caller]
    fn code(self) -> u64 {
        assert!(!self.success, "{}", self.document);
        self.document["code"].as_u64().unwrap()
    }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_address_comes_with_its_pools_prefix_and_gateway_in_every_version() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut network = Network::dual_stack();
        network.config["cniVersion"] = json!(version);

        let result = network.call("ADD", "c1").ok();

        assert_eq!(result["cniVersion"], version);
        let given = addresses(&result);
        assert!(given[0].starts_with("10.245.") && given[0].ends_with("/16"), "{given:?}");
        assert!(given[1].starts_with("fd00:10:245:") && given[1].ends_with("/64"), "{given:?}");
        assert_eq!(result["ips"][0]["gateway"], "10.245.0.1");
        assert_eq!(result["ips"][1]["gateway"], "fd00:10:245::1");
        let legacy = version.starts_with('0');
        assert_eq!(result["ips"][0]["version"].as_str(), legacy.then_some("4"));
        network.call("DEL", "c1").ok();
    }
}

#[test]
fn check_compares_with_the_previous_result() {
    let mut network = Network::dual_stack();
    let result = network.call("ADD", "c1").ok();
    network.config["prevResult"] = result.clone();
    network.call("CHECK", "c1").ok();

    network.config["prevResult"]["ips"][0]["address"] = json!("10.245.9.9/16");
    assert_eq!(network.call("CHECK", "c1").code(), 104);

    network.config["prevResult"] = result;
    network.call("DEL", "c1").ok();
    assert_eq!(network.call("CHECK", "c1").code(), 104);
}

#[test]
fn del_is_content_twice_and_without_namespace() {
    let network = Network::dual_stack();
    network.call("ADD", "c1").ok();

    for _ in 0..2 {
        network.call_with("DEL", "c1", &[("CNI_NETNS", "")]).ok();
    }
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_intact() {
    let network = Network::dual_stack();
    network.call("ADD", "c1").ok();

    assert_eq!(network.call("ADD", "c1").code(), 100);

    network.call("CHECK", "c1").ok();
}

#[test]
fn the_gateway_and_the_ends_of_a_pool_are_given_to_nobody() {
    let network = Network::new("1.1.0", json!([{ "cidr": "10.245.0.0/29" }]));

    let given: BTreeSet<_> =
        (0..5).flat_map(|i| addresses(&network.call("ADD", &format!("c{i}")).ok())).collect();

    let expected = (2..=6).map(|host| format!("10.245.0.{host}/29")).collect();
    assert_eq!(given, expected);
    for ip in ["10.245.0.0", "10.245.0.1", "10.245.0.7"] {
        let answer = network.call_with("ADD", "x", &[("CNI_ARGS", &format!("IP={ip}"))]);
        assert_eq!(answer.code(), 101, "{ip}");
    }
}

#[test]
fn a_full_pool_is_of_code_101_and_status_says_50() {
    let network = Network::new("1.1.0", json!([{ "cidr": "10.245.0.0/30" }]));
    network.call("STATUS", "").ok();
    network.call("ADD", "c1").ok();

    let refusal = network.call("ADD", "c2");

    assert!(refusal.document["details"].as_str().unwrap().contains("10.245.0.0/30"));
    assert_eq!(refusal.code(), 101);
    assert_eq!(network.call("STATUS", "").code(), 50);
}

#[test]
fn a_requested_address_is_given_once() {
    let mut network = Network::dual_stack();
    network.config["runtimeConfig"] = json!({ "ips": ["10.245.3.7/24", "fd00:10:245::77"] });

    let result = network.call("ADD", "c1").ok();

    assert_eq!(addresses(&result), ["10.245.3.7/16", "fd00:10:245::77/64"]);
    assert_eq!(network.call("ADD", "c2").code(), 101);
}

#[test]
fn gc_gives_back_what_no_valid_attachment_holds() {
    let mut network = Network::dual_stack();
    network.call("ADD", "c1").ok();
    network.call("ADD", "c2").ok();
    assert_eq!(network.call("GC", "").code(), 7, "without a list");

    network.config["cni.dev/valid-attachments"] =
        json!([{ "containerID": "c2", "ifname": "eth0" }]);
    network.call("GC", "").ok();

    assert_eq!(network.call("CHECK", "c1").code(), 104);
    network.call("CHECK", "c2").ok();
}

#[test]
fn a_pool_without_gateway_cannot_serve_other_plugins() {
    let network = Network::new("1.1.0", json!([{ "cidr": "10.245.0.0/31" }]));

    assert_eq!(network.call("ADD", "c1").code(), 7);
}

#[test]
fn a_pool_that_is_chosen_and_not_there_fails_whoever_needs_it_and_nobody_else() {
    let mut network = Network::new("1.1.0", Value::Null);
    network.config["ipam"].as_object_mut().unwrap().remove("pools");
    let database = network.state.path().join("margay.db");
    let store = Store::new(Sqlite::open(&database).unwrap());
    let ipam = Ipam::new(&store, "a", "boot");
    for (cidr, name) in [("10.245.0.0/24", "blue"), ("fd00:245::/64", "six")] {
        let pool = Pool { name: name.into(), ..Pool::new(cidr.parse().unwrap()) };
        ipam.create_pool(&pool).unwrap();
    }
    network.config["ipam"]["ipv4_pools"] = json!(["blue"]);
    network.config["ipam"]["ipv6_pools"] = json!(["six"]);
    let added = network.call("ADD", "one").ok();
    assert_eq!(addresses(&added).len(), 2);

    network.config["ipam"]["ipv4_pools"] = json!(["renamed"]);

    assert_eq!(network.call("ADD", "two").code(), 7);
    assert_eq!(network.call("ADD", "one").code(), 100, "it has its addresses");
    assert_eq!(network.call("STATUS", "one").code(), 50);
    network.config["prevResult"] = added;
    network.call("CHECK", "one").ok();
    network.config["prevResult"]["ips"][1]["address"] = json!("fd00:245::99/64");
    assert_eq!(network.call("CHECK", "one").code(), 104);
    network.config.as_object_mut().unwrap().remove("prevResult");
    network.call("DEL", "one").ok();
}

#[test]
fn parallel_adds_get_different_addresses() {
    let network = Network::dual_stack();

    let given: Vec<String> = std::thread::scope(|scope| {
        let add = |i| addresses(&network.call("ADD", &format!("c{i}")).ok());
        let threads: Vec<_> = (0..20).map(|i| scope.spawn(move || add(i))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    assert_eq!(given.len(), 40);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 40);
}

#[test]
fn logs_go_to_stderr_and_the_file_and_never_to_stdout() {
    let mut network = Network::dual_stack();
    let file = network.state.path().join("log/cni.log");
    network.config["ipam"]["log_file_path"] = json!(file);

    network.call("ADD", "c1").ok();
    network.call("DEL", "c1").ok();

    let log = std::fs::read_to_string(file).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains(r#"verb="ADD" subject="side/c1/eth0" result="ok""#), "{log}");
    assert!(lines[0].contains("reserve_addresses="), "{log}");
}
