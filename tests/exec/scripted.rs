//! A delegated IPAM plugin that keeps a diary: what it is asked, and for whom.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use margay_tests::{Invocation, Node, Pod};
use serde_json::{Value, json};

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

fn scripted_network(node: &Node) -> Value {
    let script = node.path("state/diarist");
    let diary = node.path("state/diary");
    let text = format!(
        "#!/bin/sh\n\
         echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {}\n\
         [ \"$CNI_COMMAND\" != ADD ] && exit 0\n\
         last=$(wc -l < {0})\n\
         echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.252.0.'$((last + 1))'/24\"}}],\
         \"dns\": {{\"nameservers\": [\"10.252.0.53\"]}}}}'\n",
        diary.display()
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
