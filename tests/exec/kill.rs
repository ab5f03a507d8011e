//! A verb that is killed between any two of its changes leaves nothing that the next verb cannot
//! deal with.
//!
//! Nothing here knows the steps of a verb. It is killed before its first change, then before its
//! second one, and so on until it survives.

use std::os::unix::process::ExitStatusExt;

use margay_tests::cni::with_bandwidth;
use margay_tests::pod::address;
use margay_tests::residue::assert_only;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Invocation, Node, Pod};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// Fewer than any verb has: a sign that the plugin was built without fail points.
const FEWEST_CHANGES: usize = 5;

#[test]
fn del_cleans_up_after_an_add_that_was_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("ADD", |pod, place| {
        pod.del(&scene.network);
        scene.assert_only_other(place);
    });
}

#[test]
fn gc_cleans_up_after_an_add_that_was_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("ADD", |_, place| {
        scene.gc();
        scene.assert_only_other(place);
    });
}

#[test]
fn an_add_that_was_killed_anywhere_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("ADD", |pod, place| {
        // What was complete but for the answer is an attachment, and a second ADD leaves it alone.
        if place.contains("before answer") {
            let (code, message) = pod.invocation("ADD", &scene.network).execute().error();
            assert_eq!(code, 100, "{place}: {message}");
            pod.del(&scene.network);
        }
        scene.assert_can_be_added(pod, place);
    });
}

#[test]
fn an_add_that_was_killed_anywhere_is_in_no_other_pods_way() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("ADD", |pod, place| {
        scene.assert_another_can_be_added(place);
        pod.del(&scene.network);
        scene.assert_only_other(place);
    });
}

#[test]
fn a_del_that_was_killed_anywhere_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("DEL", |pod, place| {
        pod.del(&scene.network);
        scene.assert_only_other(place);
    });
}

#[test]
fn gc_ends_a_del_that_was_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("DEL", |_, place| {
        scene.gc();
        scene.assert_only_other(place);
    });
}

#[test]
fn a_del_that_was_killed_after_its_first_change_is_in_no_adds_way() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    let mut untouched = 0;
    scene.kill_everywhere("DEL", |pod, place| {
        let output = pod.invocation("ADD", &scene.network).execute();
        if output.is_success() {
            scene.assert_works(pod, &output.success(), place);
        } else {
            let (code, message) = output.error();
            assert_eq!(code, 100, "{place}: {message}");
            untouched += 1;
        }
        pod.del(&scene.network);
        scene.assert_another_can_be_added(place);
        scene.assert_only_other(place);
    });
    assert_eq!(untouched, 1, "only a DEL that has not begun leaves a pod that is attached");
}

#[test]
fn a_gc_that_was_killed_anywhere_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    scene.kill_everywhere("GC", |_, place| {
        scene.gc();
        scene.assert_only_other(place);
    });
}

#[test]
fn a_nodes_first_add_that_was_killed_while_it_loads_is_in_no_later_adds_way() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (first, second) = (node.sandbox("first"), node.sandbox("second"));
    for number in 0.. {
        let add = kill_at(first.invocation("ADD", &network), "pin", number);
        let place = killed(&add.execute());

        let result = second.add(&network);
        first.del(&network);
        if let Some(place) = &place {
            assert_only(&node, &[(&second, &result)], place);
            let first_result = first.add(&network);
            assert_ping(&first, address(&result, true));
            assert_ping(&second, address(&first_result, false));
            first.del(&network);
        }
        second.del(&network);
        let Some(_) = place else {
            assert!(number >= FEWEST_CHANGES, "killed {number} times");
            break;
        };
        unmount(node.path("bpf"), UnmountFlags::empty()).unwrap();
        mount("bpf", node.path("bpf"), "bpf", MountFlags::empty(), None).unwrap();
    }
}

#[test]
fn an_add_without_programs_that_was_killed_anywhere_is_cleaned_up_after_the_sandbox_is_gone() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["dataplane"] = json!("linux");
    for number in 0.. {
        let pod = node.sandbox(&format!("pod{number}"));
        let add = kill_at(pod.invocation("ADD", &network), "change", number);
        let place = killed(&add.execute());
        let del = pod.invocation("DEL", &network).without_env("CNI_NETNS");
        pod.destroy();

        del.execute().success();

        assert_only(&node, &[], place.as_deref().unwrap_or("in the end"));
        if place.is_none() {
            assert!(number >= FEWEST_CHANGES, "killed {number} times");
            break;
        }
    }
}

#[test]
fn tcx_links_of_an_add_that_was_killed_anywhere_are_found() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["attach"] = json!("tcx");
    for number in 0.. {
        let pod = node.sandbox(&format!("pod{number}"));
        let add = kill_at(pod.invocation("ADD", &network), "pin", number);
        let place = killed(&add.execute());
        pod.del(&network);
        assert_only(&node, &[], place.as_deref().unwrap_or("in the end"));
        if place.is_none() {
            break;
        }
    }
}

#[test]
fn an_add_that_was_killed_before_its_nat_rules_is_in_no_later_adds_way() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    let (first, second) = (node.sandbox("first"), node.sandbox("second"));
    let add = kill_at(first.invocation("ADD", &network), "nft", 0).execute();
    let place = killed(&add).expect("an ADD that writes rules");
    assert_eq!(node.run(&["nft", "list", "tables"]), "", "{place}");

    let result = second.add(&network);

    assert!(second.check(&network, &result).is_success());
    first.del(&network);
    assert_only(&node, &[(&second, &result)], &place);
    first.add(&network);
    first.del(&network);
    second.del(&network);
}

#[test]
fn what_limits_a_pods_bandwidth_is_found_after_an_add_that_was_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::with_network(&node, with_bandwidth(&node.network(), 1 << 20, 1 << 20));
    scene.kill_everywhere("ADD", |pod, place| {
        pod.del(&scene.network);
        scene.assert_only_other(place);
    });
    scene.kill_everywhere("ADD", |_, place| {
        scene.gc();
        scene.assert_only_other(place);
    });
    scene.kill_everywhere("ADD", |pod, place| {
        if !place.contains("before answer") {
            scene.assert_can_be_added(pod, place);
        }
    });
}

#[test]
fn what_limits_a_pods_bandwidth_is_found_after_a_del_that_was_killed_anywhere() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::with_network(&node, with_bandwidth(&node.network(), 1 << 20, 1 << 20));
    scene.kill_everywhere("DEL", |pod, place| {
        pod.del(&scene.network);
        scene.assert_only_other(place);
    });
    scene.kill_everywhere("DEL", |_, place| {
        scene.gc();
        scene.assert_only_other(place);
    });
    scene.kill_everywhere("DEL", |pod, place| {
        let output = pod.invocation("ADD", &scene.network).execute();
        if output.is_success() {
            scene.assert_works(pod, &output.success(), place);
        }
    });
}

/// A node with a pod that nothing may happen to.
struct Scene<'node> {
    node: &'node Node,
    network: Value,
    other: Pod<'node>,
    other_result: Value,
}

impl<'node> Scene<'node> {
    fn new(node: &'node Node) -> Self {
        Self::with_network(node, node.network())
    }

    fn with_network(node: &'node Node, network: Value) -> Self {
        let other = node.sandbox("other");
        let other_result = other.add(&network);
        Self { node, network, other, other_result }
    }

    /// Kills the verb before each of its changes in turn, each time on another pod, and hands that
    /// on with the name of the place.
    fn kill_everywhere(&self, verb: &str, mut then: impl FnMut(&Pod<'_>, &str)) {
        for number in 0.. {
            let pod = self.node.sandbox(&format!("pod{number}"));
            if verb != "ADD" {
                pod.add(&self.network);
            }
            let config = if verb == "GC" { self.with_valid() } else { self.network.clone() };
            let output = kill_at(pod.invocation(verb, &config), "change", number).execute();
            let Some(place) = killed(&output) else {
                pod.del(&self.network);
                self.assert_only_other("in the end");
                assert!(number >= FEWEST_CHANGES, "{verb} was killed {number} times");
                eprintln!("{verb} was killed at {number} places");
                return;
            };
            then(&pod, &place);
            pod.del(&self.network);
        }
    }

    fn gc(&self) {
        self.other.invocation("GC", &self.with_valid()).execute().success();
    }

    fn with_valid(&self) -> Value {
        let mut config = self.network.clone();
        config["cni.dev/valid-attachments"] = json!([{"containerID": "other", "ifname": "eth0"}]);
        config
    }

    fn assert_only_other(&self, place: &str) {
        assert_only(self.node, &[(&self.other, &self.other_result)], place);
    }

    fn assert_can_be_added(&self, pod: &Pod<'_>, place: &str) {
        let output = pod.invocation("ADD", &self.network).execute();
        assert!(output.is_success(), "{place}: {}", output.stdout());
        self.assert_works(pod, &output.success(), place);
    }

    fn assert_works(&self, pod: &Pod<'_>, result: &Value, place: &str) {
        assert_only(self.node, &[(&self.other, &self.other_result), (pod, result)], place);
        assert_ping(pod, address(&self.other_result, true));
        assert_ping(&self.other, address(result, false));
    }

    /// Beside whatever the killed verb left, which is not looked at.
    fn assert_another_can_be_added(&self, place: &str) {
        let another = self.node.sandbox("another");
        let output = another.invocation("ADD", &self.network).execute();
        assert!(output.is_success(), "{place}: {}", output.stdout());
        let result = output.success();
        assert!(another.check(&self.network, &result).is_success(), "{place}");
        assert_ping(&another, address(&self.other_result, false));
        another.del(&self.network);
    }
}

/// The invocation, to be killed at the fail point of this name after passing it a number of times.
pub(crate) fn kill_at(invocation: Invocation, point: &str, number: usize) -> Invocation {
    let skipped = if number > 0 { format!("{number}*off->") } else { String::new() };
    invocation.env("FAILPOINTS", &format!("{point}={skipped}1*return(kill)"))
}

/// Where it was killed; `None` if it came to its end.
pub(crate) fn killed(output: &CniOutput) -> Option<String> {
    if output.is_success() {
        return None;
    }
    assert_eq!(output.status().signal(), Some(9), "{}{}", output.stdout(), output.stderr());
    assert_eq!(output.stdout(), "");
    let stderr = output.stderr();
    let place = stderr.lines().find(|line| line.starts_with("fail point: kill")).map(str::to_owned);
    Some(place.expect("the place where it was killed"))
}
