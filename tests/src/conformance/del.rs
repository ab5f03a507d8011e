//! DEL: takes away what there is, and is content with what there is not.

use anyhow::{Result, ensure};

use super::Entry;
use super::answer::silent_success;
use super::bench::{Bench, has_link, with_result};

const MISSING: &str = "Plugins should generally complete a DEL action without error even if some \
                       resources are missing";
const REPEATED: &str = "Plugins MUST accept multiple DEL calls for the same (CNI_CONTAINERID, \
                        CNI_IFNAME) pair";

pub(super) const CHECKS: &[Entry] = &[
    (
        "A CNI plugin, upon receiving a DEL command, should […] delete the interface defined by \
         CNI_IFNAME inside the container at CNI_NETNS",
        "nothing is left but what was there before the ADD",
        everything_goes,
    ),
    (REPEATED, "twice, with prevResult and without", repeated),
    (REPEATED, "a container that never was", unknown_container),
    (MISSING, "without prevResult the address is free again", without_result),
    (MISSING, "without CNI_NETNS, the namespace being there", without_variable),
    (MISSING, "without CNI_NETNS, the namespace being gone", without_netns),
    (MISSING, "CNI_NETNS is a path where nothing is any more", vanished_netns),
    (MISSING, "the interface was deleted before", without_interface),
    (
        "The container runtime […] is allowed to invoke parallel operations for different \
         containers",
        "DEL of one container leaves the other intact",
        others_stay,
    ),
];

fn everything_goes(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &network)?;
    bench.del(&pod, &with_result(&network, &result))?;
    ensure!(!has_link(&pod, "eth0")?, "eth0 is still there");
    before.expect_same(&bench.node)?;
    drop(bystander);
    Ok(())
}

fn repeated(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &network)?;
    let with_result = with_result(&network, &result);
    for network in [&with_result, &with_result, &network, &network] {
        bench.del(&pod, network)?;
    }
    Ok(())
}

fn unknown_container(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    bench.del(&bench.node.sandbox("never-added"), &network)?;
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    bench.del(&bench.node.sandbox("unknown"), &network)?;
    before.expect_same(&bench.node)?;
    drop(bystander);
    Ok(())
}

fn without_result(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    bench.del(&pod, &network)?;
    bench.expect_free(&network)
}

fn without_variable(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    let del = bench.call(&pod, "DEL", &network).without_env("CNI_NETNS");
    silent_success(&del.execute(), "DEL")?;
    bench.expect_free(&network)
}

fn without_netns(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &network)?;
    let del = bench.call(&pod, "DEL", &with_result(&network, &result)).without_env("CNI_NETNS");
    pod.destroy();
    silent_success(&del.execute(), "DEL")?;
    bench.expect_free(&network)
}

fn vanished_netns(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let before = {
        let warm_up = bench.node.sandbox("warm-up");
        bench.add(&warm_up, &network)?;
        bench.del(&warm_up, &network)?;
        bench.snapshot()
    };
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    let del = bench.call(&pod, "DEL", &network);
    pod.destroy();
    silent_success(&del.execute(), "DEL")?;
    before.expect_same(&bench.node)?;
    bench.expect_free(&network)
}

fn without_interface(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    pod.run(&["ip", "link", "del", "eth0"]);
    bench.del(&pod, &network)?;
    bench.expect_free(&network)
}

fn others_stay(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let (bystander, result) = bench.bystander(&network)?;
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    bench.del(&pod, &network)?;
    ensure!(has_link(&bystander, "eth0")?, "its eth0 is gone");
    if bench.needs_check().is_ok() {
        bench.expect_sound(&bystander, &network, &result)?;
    }
    Ok(())
}
