//! `cargo xtask soak`: random sequences against the model of the test package, for a long time.

use anyhow::Result;

use crate::setup::{self, Use};
use crate::workspace::{cargo_command, run as run_command};
use crate::{bpftool, build_ebpf, test};

/// Run random sequences of verbs, kills, sabotage and reboots against a model.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Seed of the first sequence, in place of a new one
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build, Use::Test])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    test::build_plugins()?;
    let mut soak = cargo_command("test");
    soak.args(["--quiet", "--package", "margay-tests", "--test", "model"])
        .args(test::failpoints()?)
        .args(["--", "--ignored", "--exact", "soak", "--nocapture"])
        .env("MARGAY_MODEL_MINUTES", arguments.minutes.to_string());
    if let Some(seed) = arguments.seed {
        soak.env("MARGAY_MODEL_SEED", seed.to_string());
    }
    bpftool::put_in_path(&mut soak)?;
    run_command(&mut soak)
}
