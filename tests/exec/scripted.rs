//! A delegated IPAM plugin that keeps a diary: what it is asked, and for whom.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use margay_tests::{CniOutput, Invocation, Node, Pod};
use serde_json::{Value, json};

use crate::concurrency::wait_until;
use crate::kill::{kill_at, killed};

#[test]
fn gc_gives_back_each_stale_attachments_addresses_and_no_others() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let (kept, stale) = (node.sandbox("kept"), node.sandbox("stale"));
    execute(&kept, "ADD", &network).success();
    execute(&stale, "ADD", &network).success();

    let mut gc = network.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let path = node.path("state");
    let gc = Invocation::new("margay", "GC", &gc).env("CNI_PATH", path.to_str().unwrap());
    gc.execute().success();

    let diary = diary(&node);
    assert!(diary.contains("DEL stale eth0\n"), "{diary}");
    assert!(!diary.contains("DEL kept"), "{diary}");
    assert!(diary.ends_with("GC  \n"), "{diary}");
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn a_delegated_plugin_is_told_to_leave_an_add_alone_that_is_under_way() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let (garbage, pod) = (node.sandbox("garbage"), node.sandbox("slow"));
    execute(&garbage, "ADD", &network).success();
    let add = pod.invocation("ADD", &network).env("CNI_PATH", &plugins(&node));
    let add = add.env("FAILPOINTS", "link_up=sleep(500)").start();
    let is_announced = || node.store().endpoint(&pod.attachment("podnet", "eth0")).unwrap();
    wait_until("the ADD has its addresses", || is_announced().is_some());

    let mut gc = network.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    gc["cni.dev/attachments"] = Value::Null;
    Invocation::new("margay", "GC", &gc).env("CNI_PATH", &plugins(&node)).execute().success();

    let told: Value =
        serde_json::from_slice(&fs::read(node.path("state/gc-stdin")).unwrap()).unwrap();
    let slow = json!([{"containerID": "slow", "ifname": "eth0"}]);
    assert_eq!(told["cni.dev/valid-attachments"], slow);
    assert_eq!(told["cni.dev/attachments"], slow);
    let result = CniOutput::of(add).success();
    let mut config = network.clone();
    config["prevResult"] = result;
    let check = execute(&pod, "CHECK", &config);
    assert!(check.is_success(), "{}", check.stdout());
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn a_delegated_plugin_that_is_giving_addresses_is_not_told_to_collect_garbage() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let pod = node.sandbox("slow");
    fs::write(node.path("state/wait"), "").unwrap();
    let add = pod.invocation("ADD", &network).env("CNI_PATH", &plugins(&node)).start();
    wait_until("the plugin is asked", || node.path("state/diary").exists());
    let mut gc = network.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    let gc = Invocation::new("margay", "GC", &gc).env("CNI_PATH", &plugins(&node)).start();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(diary(&node), "ADD slow eth0\n", "GC goes on while the plugin gives an address");

    fs::remove_file(node.path("state/wait")).unwrap();

    CniOutput::of(gc).success();
    CniOutput::of(add).success();
    assert_eq!(diary(&node), "ADD slow eth0\nGC  \n");
    let told = fs::read_to_string(node.path("state/gc-stdin")).unwrap();
    assert!(told.contains("\"slow\""), "{told}");
}

#[test]
fn an_add_with_a_delegated_plugin_that_was_killed_anywhere_is_cleaned_up_by_del() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let warm = node.sandbox("warm");
    execute(&warm, "ADD", &network).success();
    execute(&warm, "DEL", &network).success();
    for number in 0.. {
        let pod = node.sandbox(&format!("pod{number}"));
        let add = pod.invocation("ADD", &network).env("CNI_PATH", &plugins(&node));
        let place = killed(&kill_at(add, "change", number).execute());
        let is_killed = place.is_some();
        let del = pod.invocation("DEL", &network).env("CNI_PATH", &plugins(&node));
        // Every other sandbox is gone before the DEL comes.
        if number % 2 == 1 {
            pod.destroy();
        }

        del.execute().success();

        let place = place.unwrap_or_default();
        let maps = margay_datapath::Pods::open(&node.bpffs_root()).unwrap().unwrap();
        assert_eq!(maps.entries().unwrap().len(), 0, "{place}");
        assert_eq!(node.pod_links(), [], "{place}");
        assert_eq!(node.store().endpoints("podnet").unwrap(), [], "{place}");
        if !is_killed {
            break;
        }
    }
}

#[test]
fn an_add_with_a_delegated_plugin_that_fails_at_the_last_step_leaves_no_map_entry() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let pod = node.sandbox("a");

    let add = pod.invocation("ADD", &network).env("CNI_PATH", &plugins(&node));
    let (code, _) = add.env("FAILPOINTS", "endpoint=return").execute().error();

    assert_eq!(code, 199);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
}

#[test]
fn a_killed_add_with_a_delegated_plugin_can_be_repeated_and_is_found_by_gc() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    for step in ["veth", "pod_side", "endpoint"] {
        let pod = node.sandbox(&format!("at-{step}"));
        kill_at_phase(&pod, &network, step);

        execute(&pod, "ADD", &network).success();

        let id = pod.container_id();
        let wanted = format!("ADD {id} eth0\nDEL {id} eth0\nADD {id} eth0\n");
        assert!(diary(&node).ends_with(&wanted), "{}", diary(&node));
        execute(&pod, "DEL", &network).success();
    }
    let pod = node.sandbox("forgotten");
    kill_at_phase(&pod, &network, "veth");
    let mut gc = network.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    Invocation::new("margay", "GC", &gc).env("CNI_PATH", &plugins(&node)).execute().success();
    assert!(diary(&node).contains("DEL forgotten eth0\n"), "{}", diary(&node));
}

#[test]
fn a_del_after_the_ipam_was_changed_gives_back_what_margay_ipam_gave() {
    let Some(node) = Node::new() else { return };
    let (before, after) = (node.network(), scripted_network(&node));
    let pod = node.sandbox("a");
    pod.add(&before);

    execute(&pod, "DEL", &after).success();

    let store = node.store();
    let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
    assert_eq!(ipam.attachments("podnet").unwrap(), []);
}

#[test]
fn what_a_delegated_plugin_says_on_stderr_is_handed_on() {
    let Some(node) = Node::new() else { return };
    let network = scripted_network(&node);
    let pod = node.sandbox("a");

    let output = execute(&pod, "ADD", &network);

    output.success();
    assert!(output.stderr().contains("dear diary"), "{}", output.stderr());
}

#[test]
fn name_resolution_is_that_of_the_configuration_or_else_the_ipams() {
    let Some(node) = Node::new() else { return };
    let mut network = scripted_network(&node);
    let (one, two) = (node.sandbox("one"), node.sandbox("two"));
    let of_ipam = execute(&one, "ADD", &network).success();
    assert_eq!(of_ipam["dns"], json!({"nameservers": ["10.252.0.53"]}));

    network["dns"] = json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]});
    let configured = execute(&two, "ADD", &network).success();

    assert_eq!(configured["dns"], network["dns"]);
}

fn scripted_network(node: &Node) -> Value {
    let script = node.path("state/diarist");
    let diary = node.path("state/diary");
    let text = format!(
        "#!/bin/sh\n\
         echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {}\n\
         echo dear diary >&2\n\
         [ \"$CNI_COMMAND\" = GC ] && cat > {1}/gc-stdin\n\
         [ \"$CNI_COMMAND\" != ADD ] && exit 0\n\
         while [ -e {1}/wait ]; do sleep 0.01; done\n\
         last=$(wc -l < {0})\n\
         echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.252.0.'$((last + 1))'/24\"}}],\
         \"dns\": {{\"nameservers\": [\"10.252.0.53\"]}}}}'\n",
        diary.display(),
        node.path("state").display(),
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut network = node.network();
    network["ipam"] = json!({"type": "diarist"});
    network
}

fn diary(node: &Node) -> String {
    fs::read_to_string(node.path("state/diary")).unwrap()
}

fn plugins(node: &Node) -> String {
    node.path("state").to_str().unwrap().to_owned()
}

fn execute(pod: &Pod<'_>, verb: &str, config: &Value) -> margay_tests::CniOutput {
    pod.invocation(verb, config).env("CNI_PATH", &plugins(pod.node())).execute()
}

fn kill_at_phase(pod: &Pod<'_>, network: &Value, step: &str) {
    let add = pod.invocation("ADD", network).env("CNI_PATH", &plugins(pod.node()));
    let killed = add.env("FAILPOINTS", &format!("{step}=return(kill)")).execute();
    assert_eq!(killed.stdout(), "", "{step}: it was not killed");
}
