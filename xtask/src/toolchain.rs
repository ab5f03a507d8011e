//! Finds the Rust toolchain and the linker that can build the kernel half.
//!
//! Rust for the BPF target needs `core` for it: compiled on the way from the component `rust-src`,
//! or precompiled in the compiler's sysroot as Debian's `libstd-rust-web-dev-bpf` has it. The linker
//! reads the bitcode that the compiler's LLVM wrote, and LLVM reads bitcode of its own and of
//! earlier versions only, so it must not be built on an older LLVM than the compiler.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use anyhow::{Context, Result};

use crate::workspace::{self, output_of};

/// The target of the kernel half.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// A compiler that can build for [`BPF_TARGET`], and how.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// The compiler itself, never a rustup proxy.
    pub rustc: PathBuf,
    /// The cargo that drives it.
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    pub core: Core,
    pub version: Version,
}

/// Where `core` for the BPF target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// Built from the component `rust-src`.
    FromSource,
    /// Part of the sysroot.
    Precompiled,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::FromSource => "core built from rust-src",
            Core::Precompiled => "precompiled core in its sysroot",
        };
        write!(f, "{} ({}, {core})", self.rustc.display(), self.version)
    }
}

impl Toolchain {
    /// The toolchain to use: the first with `rust-src`, else the first with a precompiled `core`.
    /// Compilers older than the workspace's `rust-version` are passed over.
    pub(crate) fn find() -> Option<Self> {
        let sysroots = Sysroot::candidates();
        let with = |core: Core| {
            let fitting = sysroots.iter().filter(move |sysroot| sysroot.has(core));
            fitting.filter_map(move |sysroot| sysroot.toolchain(core))
        };
        with(Core::FromSource)
            .chain(with(Core::Precompiled))
            .find(|toolchain| is_recent_enough(&toolchain.version.release))
    }

    /// A program of this toolchain that stands beside the compiler, such as `cargo-clippy`.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.rustc.with_file_name(name);
        path.is_file().then_some(path)
    }

    /// The library of the compiler's LLVM, where the toolchain brings it, as rustup's do.
    pub(crate) fn llvm_library(&self) -> Option<PathBuf> {
        let name = format!("libLLVM.so.{}.", self.version.llvm);
        let files = fs::read_dir(self.sysroot.join("lib")).ok()?.flatten();
        let mut libraries = files.filter(|f| f.file_name().to_string_lossy().starts_with(&name));
        libraries.next().map(|file| file.path())
    }

    /// Sets a cargo command up to build for the BPF target with this toolchain: the rest of the
    /// machine's Rust settings have no say.
    pub(crate) fn prepare(&self, command: &mut Command) {
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
        {
            command.env_remove(name);
        }
        // Both `-Z build-std` and the features of aya-ebpf count as unstable.
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", &self.rustc).env("CARGO", &self.cargo);
        command.args(["--target", BPF_TARGET]);
        if self.core == Core::FromSource {
            command.args(["-Z", "build-std=core"]);
        }
    }

    /// Rustup's name of this toolchain, if it is one of rustup's.
    pub(crate) fn rustup_name(&self) -> Option<String> {
        let folder = self.sysroot.parent()?;
        let of_rustup =
            folder == fs::canonicalize(workspace::rustup_home()?.join("toolchains")).ok()?;
        of_rustup.then(|| Some(self.sysroot.file_name()?.to_string_lossy().into_owned()))?
    }
}

/// Whether a compiler of this version, `1.95.0` with anything after it, can compile the workspace.
pub(crate) fn is_recent_enough(version: &str) -> bool {
    release_of(version) >= release_of(env!("CARGO_PKG_RUST_VERSION"))
}

/// What `rustc -vV` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub release: String,
    /// The major version of the compiler's LLVM.
    pub llvm: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {}, LLVM {}", self.release, self.llvm)
    }
}

impl Version {
    fn of(rustc: &Path) -> Result<Self> {
        let printed = output_of(Command::new(rustc).arg("-vV"))?;
        Self::parse(&printed).with_context(|| format!("{} -vV is unreadable", rustc.display()))
    }

    fn parse(printed: &str) -> Option<Self> {
        let value = |key: &str| printed.lines().find_map(|line| line.strip_prefix(key));
        let release = value("release: ")?.to_owned();
        let llvm = value("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self { release, llvm })
    }
}

fn release_of(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// A place where a compiler and its libraries live together.
struct Sysroot {
    path: PathBuf,
    /// Whether it is one of rustup's: those come with a cargo of their own.
    of_rustup: bool,
}

impl Sysroot {
    /// All that can be found: rustup's toolchains, the active one first, then any `rustc` in `PATH`
    /// and the system's.
    fn candidates() -> Vec<Self> {
        let mut found = Vec::new();
        if let Some(toolchains) = workspace::rustup_home().map(|home| home.join("toolchains")) {
            let active = env::var_os("RUSTUP_TOOLCHAIN").map(|name| toolchains.join(name));
            let mut all: Vec<_> = fs::read_dir(&toolchains)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                .collect();
            all.sort();
            found.extend(active.into_iter().chain(all).map(|path| (path, true)));
        }
        let system = [workspace::find_program("rustc"), Some(PathBuf::from("/usr/bin/rustc"))];
        found.extend(
            system.into_iter().flatten().filter_map(|rustc| Some((sysroot_of(&rustc)?, false))),
        );

        let mut seen = HashSet::new();
        found
            .into_iter()
            .filter_map(|(path, of_rustup)| Some((fs::canonicalize(path).ok()?, of_rustup)))
            .filter(|(path, _)| seen.insert(path.clone()) && path.join("bin/rustc").is_file())
            .map(|(path, of_rustup)| Self { path, of_rustup })
            .collect()
    }

    fn has(&self, core: Core) -> bool {
        let rustlib = self.path.join("lib/rustlib");
        match core {
            Core::FromSource => rustlib.join("src/rust/library/core/src/lib.rs").is_file(),
            Core::Precompiled => {
                let libraries = fs::read_dir(rustlib.join(BPF_TARGET).join("lib"));
                libraries
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|library| library.file_name().to_string_lossy().starts_with("libcore-"))
            }
        }
    }

    fn toolchain(&self, core: Core) -> Option<Toolchain> {
        let rustc = self.path.join("bin/rustc");
        let own_cargo = self.path.join("bin/cargo");
        let cargo =
            if self.of_rustup && own_cargo.is_file() { own_cargo } else { workspace::cargo() };
        let version = Version::of(&rustc).ok()?;
        Some(Toolchain { rustc, cargo, sysroot: self.path.clone(), core, version })
    }
}

fn sysroot_of(rustc: &Path) -> Option<PathBuf> {
    let printed = output_of(Command::new(rustc).args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(printed.trim()))
}

/// The linker of the kernel half.
#[derive(Debug)]
pub(crate) struct Linker {
    pub path: PathBuf,
    /// The major version of its LLVM, where its file tells.
    llvm: Option<u32>,
    /// False where the LLVM that it was built on has gone, as with an update of the compiler.
    starts: bool,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.llvm {
            _ if !self.starts => write!(f, "{path} (does not start)"),
            Some(llvm) => write!(f, "{path} (LLVM {llvm})"),
            None => write!(f, "{path} (LLVM version unknown)"),
        }
    }
}

impl Linker {
    /// The `bpf-linker` that a build would use.
    pub(crate) fn find() -> Option<Self> {
        let path = workspace::find_program("bpf-linker")?;
        let llvm = fs::read(&path).ok().and_then(|program| llvm_of(&program));
        let starts = output_of(Command::new(&path).arg("--version")).is_ok();
        Some(Self { path, llvm, starts })
    }

    /// Whether it can read what this compiler writes.
    pub(crate) fn reads(&self, version: &Version) -> bool {
        self.starts && self.llvm.is_none_or(|llvm| llvm >= version.llvm)
    }
}

/// `bpf-linker --version` does not name its LLVM. The program's file does: a dynamic one names the
/// library that it loads, a static one contains what LLVM writes into bitcode as its identification.
fn llvm_of(program: &[u8]) -> Option<u32> {
    let dynamic = ["libLLVM.so.", "libLLVM-"];
    dynamic.iter().chain(&["LLVM"]).find_map(|prefix| version_after(program, prefix.as_bytes()))
}

/// The number in the first `prefix`, digits, dot, digit or `prefix`, digits, `.so`.
fn version_after(program: &[u8], prefix: &[u8]) -> Option<u32> {
    let starts = program.windows(prefix.len()).enumerate().filter(|(_, found)| *found == prefix);
    starts.map(|(at, _)| &program[at + prefix.len()..]).find_map(|rest| {
        let digits = rest.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = rest.split_at(digits);
        let ends_well = matches!(rest, [b'.', next, ..] if next.is_ascii_digit() || *next == b's');
        if !ends_well {
            return None;
        }
        str::from_utf8(number).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_names_release_and_llvm() {
        let printed = "rustc 1.97.0-nightly (abc 2026-05-01)\nbinary: rustc\n\
                       release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let version = Version::parse(printed).unwrap();
        assert_eq!((version.release.as_str(), version.llvm), ("1.97.0-nightly", 22));
    }

    #[test]
    fn releases_compare_by_number() {
        assert!(is_recent_enough("1.100.0"));
        assert!(is_recent_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(!is_recent_enough("1.85.0+dfsg3-1"));
    }

    #[test]
    fn a_version_without_llvm_is_refused() {
        assert_eq!(Version::parse("release: 1.97.0\n"), None);
    }

    #[test]
    fn a_dynamic_linker_names_its_library() {
        assert_eq!(llvm_of(b"\0LLVM_22.1\0libgcc_s.so.1\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_of(b"\0libLLVM-21.so.1\0"), Some(21));
    }

    #[test]
    fn a_static_linker_names_its_bitcode() {
        assert_eq!(
            llvm_of(b"clang LLVM (rustc version 1.95.0)\0LLVM ERROR: \0LLVM23.0.1\0"),
            Some(23)
        );
    }

    #[test]
    fn a_program_without_llvm_has_no_version() {
        assert_eq!(llvm_of(b"\0LLVM is mentioned, LLVM22 too\0"), None);
    }

    #[test]
    fn an_older_linker_does_not_read_a_newer_compiler() {
        let version = Version { release: "1.95.0".to_owned(), llvm: 22 };
        let linker = |llvm, starts| Linker { path: PathBuf::new(), llvm, starts };
        assert!(!linker(Some(21), true).reads(&version));
        assert!(linker(Some(22), true).reads(&version));
        assert!(linker(Some(23), true).reads(&version));
        assert!(!linker(Some(22), false).reads(&version));
    }
}
