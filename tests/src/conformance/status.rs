//! STATUS: whether an ADD could succeed.

use anyhow::Result;

use super::Entry;
use super::answer::{refusal, silent_success};
use super::bench::Bench;

pub(super) const CHECKS: &[Entry] = &[
    (
        "A plugin must exit with a zero (success) return code if the plugin is ready to service \
         ADD requests",
        "before the first ADD and after it; it prints nothing",
        ready,
    ),
    (
        "50: The plugin is not available (i.e. cannot service ADD requests)",
        "the range is used up; it is ready again after a DEL",
        used_up,
    ),
    (
        "Plugins should always expect other CNI operations (like ADD, DEL, etc) even if STATUS \
         returns an error",
        "ADD of a network never asked for; DEL and CHECK after a STATUS that failed",
        informational,
    ),
];

fn ready(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network();
    let status = || silent_success(&bench.call_for_network("STATUS", &network).execute(), "STATUS");
    status()?;
    bench.bystander(&network)?;
    status()
}

fn used_up(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network_of(1)?;
    let status = || bench.call_for_network("STATUS", &network).execute();
    silent_success(&status(), "STATUS of a free range")?;
    let (pod, _) = bench.bystander(&network)?;
    let what = "STATUS of a range that is used up";
    refusal(&status(), what)?.expect(what, &[50], "")?;
    bench.del(&pod, &network)?;
    silent_success(&status(), "STATUS after the DEL")
}

fn informational(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network_of(1)?;
    let (pod, result) = bench.bystander(&network)?;
    refusal(&bench.call_for_network("STATUS", &network).execute(), "STATUS")?;
    bench.expect_sound(&pod, &network, &result)?;
    bench.del(&pod, &network)
}
