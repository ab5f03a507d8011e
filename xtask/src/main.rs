//! `cargo xtask`: set-up, build, test and demo of margay, one file per command.
//!
//! What a command needs, it has `setup` bring first, so that every command works on a machine that
//! has only Rust and a C compiler.
#![deny(unsafe_code)]

mod bench;
mod bpftool;
mod build;
mod build_ebpf;
mod check;
mod conformance;
mod demo;
mod dist;
mod fuzz;
mod install;
mod licences;
mod setup;
mod soak;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, build, test and demo of margay.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    BuildEbpf(build_ebpf::Arguments),
    Build(build::Arguments),
    Dist(dist::Arguments),
    Install(install::InstallArguments),
    Uninstall(install::UninstallArguments),
    Check,
    Test(test::Arguments),
    Demo(demo::Arguments),
    Conformance(conformance::Arguments),
    Soak(soak::Arguments),
    Fuzz(fuzz::Arguments),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Check => check::run(),
        Command::Test(arguments) => test::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
