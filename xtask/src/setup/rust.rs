//! The parts of a Rust toolchain beyond cargo and rustc: `core` for BPF, the linker, the lints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Use;
use super::apt::Apt;
use crate::toolchain::{Linker, Toolchain, is_recent_enough};
use crate::workspace::{self, run};

/// The release of bpf-linker that setup builds, and the LLVMs it can be built on.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVMS: &[u32] = &[21, 22, 23];

/// Debian's compiler with a precompiled `core` for BPF.
const DEBIAN_RUSTC: &str = "rustc-web";
const DEBIAN_BPF_CORE: &str = "libstd-rust-web-dev-bpf";
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// A part that is missing, with what it must fit.
#[derive(Debug)]
pub(super) enum RustPart {
    BpfRust,
    Linker { unfit: Option<Linker> },
    Lints,
    BpfLints(Toolchain),
    Fuzzer,
}

impl RustPart {
    /// In the order in which they must be installed.
    pub(super) fn missing() -> Vec<Self> {
        let mut missing = Vec::new();
        let toolchain = Toolchain::find();
        if toolchain.is_none() {
            missing.push(Self::BpfRust);
        }
        match (Linker::find(), &toolchain) {
            (None, _) => missing.push(Self::Linker { unfit: None }),
            (Some(linker), Some(toolchain)) if !linker.reads(&toolchain.version) => {
                missing.push(Self::Linker { unfit: Some(linker) });
            }
            _ => {}
        }
        if !has_lints() {
            missing.push(Self::Lints);
        }
        if let Some(toolchain) = toolchain.filter(|t| t.program("cargo-clippy").is_none()) {
            missing.push(Self::BpfLints(toolchain));
        }
        if workspace::find_program("cargo-fuzz").is_none() {
            missing.push(Self::Fuzzer);
        }
        missing
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::BpfRust => "Rust for BPF",
            Self::Linker { .. } => "bpf-linker",
            Self::Lints => "clippy, rustfmt",
            Self::BpfLints(_) => "clippy for BPF",
            Self::Fuzzer => "cargo-fuzz",
        }
    }

    pub(super) fn why(&self) -> String {
        match self {
            Self::BpfRust => "compiles the kernel half: `core` or its source".to_owned(),
            Self::Linker { unfit: None } => "links the kernel half".to_owned(),
            Self::Linker { unfit: Some(linker) } => {
                format!("links the kernel half; {linker} cannot read what the compiler writes")
            }
            Self::Lints => "look the user half over".to_owned(),
            Self::BpfLints(_) => "looks the kernel half over".to_owned(),
            Self::Fuzzer => "builds and runs the fuzzers".to_owned(),
        }
    }

    pub(super) fn uses(&self) -> &'static [Use] {
        match self {
            Self::BpfRust | Self::Linker { .. } => &[Use::Build],
            Self::Lints | Self::BpfLints(_) => &[Use::Check],
            Self::Fuzzer => &[Use::Fuzz],
        }
    }

    /// What to type where setup does not install it.
    pub(super) fn command(&self) -> String {
        match self {
            Self::BpfRust => "rustup component add rust-src".to_owned(),
            Self::Linker { .. } => {
                "cargo install cargo-binstall && cargo binstall bpf-linker".to_owned()
            }
            Self::Lints => "rustup component add clippy rustfmt".to_owned(),
            Self::BpfLints(toolchain) => match toolchain.rustup_name() {
                Some(name) => format!("rustup component add clippy --toolchain {name}"),
                None => format!("sudo apt-get install {DEBIAN_CLIPPY}"),
            },
            Self::Fuzzer => "cargo install cargo-fuzz --locked".to_owned(),
        }
    }

    pub(super) fn install(&self, apt: &mut Apt) -> Result<()> {
        match self {
            Self::BpfRust => install_bpf_rust(apt),
            Self::Linker { .. } => install_linker(apt),
            Self::Lints => rustup_add(&["clippy", "rustfmt"]),
            Self::BpfLints(toolchain) => match toolchain.rustup_name() {
                Some(name) => rustup_add(&["clippy", "--toolchain", &name]),
                None => apt.install(&[DEBIAN_CLIPPY]),
            },
            Self::Fuzzer => {
                run(workspace::cargo_command("install").args(["cargo-fuzz", "--locked"]))
            }
        }
    }
}

/// Rustup's proxies are there without the components behind them, so a program beside the real
/// cargo counts.
fn has_lints() -> bool {
    ["cargo-clippy", "cargo-fmt"].iter().all(|name| {
        let beside_cargo = workspace::cargo().with_file_name(name);
        beside_cargo.is_file()
            || (workspace::find_program("rustup").is_none()
                && workspace::find_program(name).is_some())
    })
}

/// By rustup where there is rustup and it can download, else with Debian's packages.
fn install_bpf_rust(apt: &mut Apt) -> Result<()> {
    if workspace::find_program("rustup").is_some() {
        match rustup_add(&["rust-src"]) {
            Ok(()) => return Ok(()),
            Err(error) => println!("setup: {error:#}; trying apt"),
        }
    }
    let recent = |version: Option<String>| version.is_some_and(|v| is_recent_enough(&v));
    if recent(apt.candidate(DEBIAN_RUSTC)?) && recent(apt.candidate(DEBIAN_BPF_CORE)?) {
        return apt.install(&[DEBIAN_RUSTC, DEBIAN_BPF_CORE]);
    }
    bail!(
        "no Rust that can compile for BPF: rustup could not add the component rust-src, and apt has \
         no recent {DEBIAN_RUSTC} and {DEBIAN_BPF_CORE}"
    )
}

/// From source, on the first LLVM there is that reads what the compiler writes: apt's of the same
/// version, the compiler's own, apt's of a later version. Else a built one.
fn install_linker(apt: &mut Apt) -> Result<()> {
    let toolchain = Toolchain::find().context("the compiler tells which linker")?;
    let wanted = toolchain.version.llvm;
    let mut in_apt = Vec::new();
    for llvm in LINKER_LLVMS.iter().filter(|llvm| **llvm >= wanted) {
        if apt.candidate(&llvm_package(*llvm))?.is_some() {
            in_apt.push(*llvm);
        }
    }
    let own = toolchain.llvm_library().filter(|_| LINKER_LLVMS.contains(&wanted));
    match (in_apt.first(), own) {
        (Some(llvm), None) => build_linker_on_apt(apt, *llvm),
        (Some(llvm), Some(_)) if *llvm == wanted => build_linker_on_apt(apt, *llvm),
        (_, Some(library)) => build_linker_on(&library, wanted),
        (None, None) if workspace::find_program("cargo-binstall").is_some() => {
            run(workspace::cargo_command("binstall").args(["--no-confirm", "bpf-linker"]))
        }
        (None, None) => bail!(
            "there is no LLVM to build bpf-linker on (version {wanted} or later of \
             {LINKER_LLVMS:?}): install a built one with `cargo install cargo-binstall && cargo \
             binstall bpf-linker`, or LLVM {wanted} from https://apt.llvm.org and run setup again"
        ),
    }
}

fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn build_linker_on_apt(apt: &mut Apt, llvm: u32) -> Result<()> {
    apt.install(&[&llvm_package(llvm)])?;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    build_linker(llvm, &prefix, workspace::cargo_command("install"))
}

/// The linker asks for `lib/libLLVM.so` in a folder when it is built, and for the library's real
/// name where the compiler has it whenever it runs.
fn build_linker_on(library: &Path, llvm: u32) -> Result<()> {
    let prefix = workspace::root().join("target/llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib"))?;
    if link.is_symlink() {
        fs::remove_file(&link)?;
    }
    symlink(library, &link).with_context(|| format!("cannot create {}", link.display()))?;

    let folder = library.parent().context("a library without a folder")?;
    let mut install = workspace::cargo_command("install");
    install.env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", folder.display()));
    build_linker(llvm, &prefix, install)
}

fn build_linker(llvm: u32, prefix: &Path, mut install: Command) -> Result<()> {
    println!("setup: building bpf-linker {LINKER_VERSION} on LLVM {llvm} in {}", prefix.display());
    install.args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"]);
    install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    run(install.env("LLVM_PREFIX", prefix))
}

fn rustup_add(arguments: &[&str]) -> Result<()> {
    let rustup = workspace::find_program("rustup").context("there is no rustup")?;
    println!("setup: rustup component add {}", arguments.join(" "));
    run(Command::new(rustup).args(["component", "add"]).args(arguments))
}
