//! A DEL that etcd is not there for, or does not let in, and what makes it good.

use margay_datastore::testing::etcd::EtcdCluster;
use margay_tests::{Invocation, Node};
use serde_json::json;

use super::Scene;

#[test]
fn a_del_without_etcd_succeeds_and_the_next_verb_gives_the_addresses_back() {
    let Some(node) = Node::new() else { return };
    type Next = fn(&Scene<'_>);
    let verbs: [(&str, Next); 4] = [
        ("STATUS", |scene| drop(scene.status().success())),
        ("GC", |scene| {
            let mut gc = scene.network.clone();
            gc["cni.dev/valid-attachments"] = json!([]);
            Invocation::new("margay", "GC", &gc).execute().success();
        }),
        ("DEL", |scene| scene.node.sandbox("nobody").del(&scene.network)),
        // The pool has one address to give.
        ("ADD", |scene| {
            let next = scene.node.sandbox("next");
            next.add(&scene.network);
            next.del(&scene.network);
        }),
    ];
    let mut scene = Scene::new(&node, EtcdCluster::start());
    scene.network["ipam"]["pools"][0]["cidr"] = json!("10.244.0.0/30");
    for (name, verb) in verbs {
        let pod = node.sandbox("a");
        pod.add(&scene.network);
        scene.cluster.kill(0);

        pod.del(&scene.network);

        assert_eq!(node.pod_links(), [], "{name}");
        assert_eq!(node.datapath().pods().entries().unwrap().len(), 0, "{name}");
        // Once more is no error and puts nothing off twice.
        pod.del(&scene.network);
        assert_eq!(scene.put_off(), 1, "{name}");
        scene.cluster.restart(0);
        verb(&scene);
        scene.assert_only(&[], name);
        assert_eq!(scene.put_off(), 0, "{name}");
        pod.destroy();
    }
}

#[test]
fn a_del_without_etcd_and_what_follows_can_be_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    scene.network["etcd_connect_timeout_ms"] = json!(100);
    for verb in ["DEL", "STATUS", "ADD"] {
        for changes in 0.. {
            let context = format!("{verb} after {changes} changes");
            let killed = format!("change={changes}*off->1*return(kill)");
            let pod = node.sandbox("a");
            pod.add(&scene.network);
            scene.cluster.kill(0);
            let mut del = pod.invocation("DEL", &scene.network);
            if verb == "DEL" {
                del = del.env("FAILPOINTS", &killed);
            }
            let mut output = del.execute();
            scene.cluster.restart(0);
            match verb {
                "STATUS" => output = scene.status_invocation().env("FAILPOINTS", &killed).execute(),
                "ADD" => {
                    let add = pod.invocation("ADD", &scene.network).env("FAILPOINTS", &killed);
                    output = add.execute();
                }
                _ => {}
            }
            // The runtime repeats a DEL that did not succeed, and ends an ADD that did not by one.
            if verb != "STATUS" {
                pod.del(&scene.network);
            }
            scene.status().success();
            scene.assert_only(&[], &context);
            assert_eq!(scene.put_off(), 0, "{context}");
            pod.destroy();
            if output.is_success() {
                assert!(changes > 4, "{context}");
                break;
            }
        }
    }
}

#[test]
fn a_del_that_etcd_does_not_let_in_succeeds_and_is_made_good_when_it_does() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start_with_tls());
    let client_cert = scene.cluster.tls().client_cert();
    for (key, value) in [
        ("etcd_ca_cert_file", json!(client_cert.cert_file)),
        ("etcd_ca_cert_file", json!(node.path("nowhere"))),
        ("etcd_cert_file", json!(node.path("nowhere"))),
    ] {
        let pod = node.sandbox("a");
        pod.add(&scene.network);
        let mut refused = scene.network.clone();
        refused[key] = value;

        pod.del(&refused);

        assert_eq!(node.pod_links(), [], "{key}");
        assert_eq!(node.datapath().pods().entries().unwrap().len(), 0, "{key}");
        assert_eq!((scene.put_off(), scene.keys("endpoints/").len()), (1, 1), "{key}");
        let (code, message) = pod.invocation("ADD", &refused).execute().error();
        assert_eq!(code, 5, "{key}: {message}");
        scene.status().success();
        scene.assert_only(&[], key);
        assert_eq!(scene.put_off(), 0, "{key}");
        pod.destroy();
    }
}

#[test]
fn a_del_without_the_right_password_succeeds() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    pod.add(&scene.network);
    scene.cluster.ask_for_password("right-one");
    let without = scene.network.clone();
    scene.network["etcd_username"] = json!("root");
    scene.network["etcd_password"] = json!("wrong-one");
    for denied in [&without, &scene.network] {
        pod.del(denied);
        assert_eq!((node.pod_links(), scene.put_off()), (vec![], 1));
    }

    scene.network["etcd_password"] = json!("right-one");
    scene.status().success();

    assert_eq!(scene.put_off(), 0);
}

#[test]
fn a_later_add_does_not_meet_the_deletion_that_its_own_attachments_del_put_off() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    pod.add(&scene.network);
    scene.cluster.kill(0);
    pod.del(&scene.network);
    let (code, _) = pod.invocation("ADD", &scene.network).execute().error();
    assert_eq!(code, 11, "not before the old one is removed");
    scene.cluster.restart(0);

    let result = pod.add(&scene.network);
    scene.status().success();

    scene.assert_only(&[(&pod, &result)], "after ADD and STATUS");
    assert!(pod.check(&scene.network, &result).is_success());
    assert_eq!(scene.put_off(), 0);
}

#[test]
fn a_later_add_does_not_meet_a_deletion_that_was_done_and_not_forgotten() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    let attachment = pod.attachment("podnet", "eth0");
    let deletions = node.path("state/deletions");
    std::fs::create_dir_all(&deletions).unwrap();
    let file = deletions.join(margay::naming::host_veth(&attachment));
    std::fs::write(file, attachment.to_string()).unwrap();

    let result = pod.add(&scene.network);
    scene.status().success();

    scene.assert_only(&[(&pod, &result)], "after ADD and STATUS");
    assert!(pod.check(&scene.network, &result).is_success());
    assert_eq!(scene.put_off(), 0);
}

#[test]
fn a_deletion_that_cannot_be_done_keeps_no_other_from_being_done() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    scene.put_off_dels_of(&["a", "b", "c"]);
    let key = scene.handles_put_off().remove(0);
    let before = scene.damage(&key);

    scene.status().success();

    assert_eq!(scene.keys("handles/"), [key.as_str()]);
    assert_eq!(scene.put_off(), 1);
    scene.overwrite(&key, &before);
    scene.status().success();
    scene.assert_only(&[], "after it was mended");
    assert_eq!(scene.put_off(), 0);
}

#[test]
fn deletions_that_are_stuck_keep_no_add_from_doing_others() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    scene.put_off_dels_of(&["a", "b", "c", "d"]);
    for key in scene.handles_put_off().iter().take(2) {
        scene.damage(key);
    }

    let new = node.sandbox("new");
    new.add(&scene.network);

    assert_eq!(scene.put_off(), 2, "those that are stuck");
    new.del(&scene.network);
}
