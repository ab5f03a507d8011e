//! Upkeep that is killed between any two of its changes is brought to its end by the next.

use std::fs;
use std::process::Command;

use margay::naming;
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

use crate::upkeep::{
    Keeper, assert_nothing_left, assert_only_that_of, build_folder, end, pins, rename_build,
    upkeep, veth,
};

/// Set for the process that is killed: the network's configuration.
const NETWORK: &str = "MARGAY_TEST_UPKEEP_OF";

#[test]
fn upkeep_that_is_killed_anywhere_is_brought_to_its_end_by_the_next() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] =
        json!([{"cidr": "10.244.0.0/24", "block_size": 29}, {"cidr": "fd00:10:244::/64"}]);
    for changes in 0.. {
        let (kept, gone, put_off) =
            (node.sandbox("kept"), node.sandbox("gone"), node.sandbox("put-off"));
        let result = kept.add(&network);
        rename_build(&node, "0ther");
        gone.add(&network);
        put_off.add(&network);
        write_down(&node, &put_off);
        let kept_veth = veth(&result);
        node.run(&["tc", "filter", "del", "dev", &kept_veth, "egress"]);
        node.run(&["ip", "-4", "route", "flush", "dev", &kept_veth]);
        node.datapath().pods().remove(margay_tests::pod::address(&result, false)).unwrap();
        end(&node, gone);
        end(&node, put_off);

        let killed = killed_after(changes, &network);
        let mut keeper = upkeep(&node, &network);
        turn(&mut keeper);

        let place = killed.as_deref().unwrap_or("nowhere");
        assert_only_that_of(&node, &kept, &network, &result);
        let builds: Vec<_> = fs::read_dir(pins(&node).join("progs"))
            .unwrap()
            .map(|folder| folder.unwrap().path())
            .collect();
        assert_eq!(builds, [build_folder(&node)], "killed at {place}");
        assert_eq!(fs::read_dir(node.path("state/deletions")).unwrap().count(), 0, "{place}");
        let done = keeper.reattach();
        assert_eq!((done.pods, done.attached.len(), done.routes.len()), (1, 0, 0), "{place}");
        kept.del(&network);
        kept.destroy();
        assert_nothing_left(&node);
        if killed.is_none() {
            assert!(changes > 15, "upkeep has more changes than that");
            return;
        }
    }
}

/// Is executed by the test above, and does nothing by itself.
#[test]
#[ignore = "the process that is killed"]
fn a_turn_of_upkeep() {
    let Some(network) = std::env::var_os(NETWORK) else { return };
    let network: Value = serde_json::from_str(network.to_str().unwrap()).unwrap();
    turn(&mut Keeper::of(&network));
}

/// What an agent does, with a second look at once.
fn turn(keeper: &mut Keeper) {
    keeper.make_current();
    keeper.runtime.block_on(keeper.upkeep.drain_deletions()).unwrap();
    for _ in 0..2 {
        keeper.reclaim();
    }
    let reattached = keeper.reattach();
    assert!(reattached.failed.is_empty(), "{:?}", reattached.failed);
    keeper.remove_unused_pins();
    keeper.upkeep.tend_blocks().unwrap();
}

/// Kills a turn of upkeep before this change, and says which one that is; `None` if it has fewer.
fn killed_after(changes: usize, network: &Value) -> Option<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "upkeep_killed::a_turn_of_upkeep", "--ignored", "--nocapture"])
        .env(NETWORK, network.to_string())
        .env("FAILPOINTS", format!("change={changes}*off->1*return(kill)"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let place = stderr.lines().find_map(|line| line.strip_prefix("fail point: kill before "));
    assert_eq!(output.status.success(), place.is_none(), "{stderr}");
    place.map(str::to_owned)
}

/// As a DEL does that finds etcd out of reach.
fn write_down(node: &Node, pod: &Pod<'_>) {
    let attachment = pod.attachment("podnet", "eth0");
    let directory = node.path("state/deletions");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(naming::host_veth(&attachment)), attachment.to_string()).unwrap();
}
