//! `cargo xtask build-ebpf`: the one builder of the kernel half.
//!
//! Writes the object to one fixed path, and beside it the digest of the sources it was built from,
//! by which the user half refuses a stale object. Invariant: the same sources give the same object
//! in any folder and for any user. It must not take flags from the environment.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use margay_fingerprint::{OBJECT, STAMP, Status};
use object::build::elf;
use object::elf::SHT_STRTAB;
use sha2::{Digest, Sha256};

use crate::setup::{self, Use};
use crate::toolchain::{BPF_TARGET, Linker, Toolchain};
use crate::workspace::{self, run as run_command};

pub(crate) const PACKAGE: &str = "margay-ebpf";
const BINARY: &str = "margay-ebpf";
const PROFILE: &str = "bpf";

/// A folder apart: host builds in `target/` neither wait for it nor throw it away.
pub(crate) const TARGET_FOLDER: &str = "target/ebpf-build";

/// Compiler flags. `--btf` puts types into the object, for map types in bpftool and for source lines
/// in the verifier's log. `v3` has 32-bit arithmetic and jumps, which the kernel has since 5.1. With
/// memory "expanded in order", the linker's default, LLVM zeroes the smallest field by a call of a loop
/// over its bytes: several calls for each packet.
const FLAGS: &[&str] = &[
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
    "-Ctarget-cpu=v3",
];

/// Build the kernel half, if its sources have changed.
#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Build even if the object is fresh
    #[arg(long)]
    force: bool,
    /// Build twice, in two other folders, and compare the objects
    #[arg(long)]
    verify_reproducible: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root();
    let fresh = margay_fingerprint::status(root)? == Status::Fresh;
    if fresh && !arguments.force && !arguments.verify_reproducible {
        println!("kernel half: {OBJECT} is fresh");
        return Ok(());
    }
    setup::ensure(&[Use::Build])?;
    let builder = Builder::find()?;
    println!("kernel half: compiler {}", builder.toolchain);
    println!("kernel half: linker {}", builder.linker);
    if !fresh || arguments.force {
        build_object(&builder, root)?;
    }
    if arguments.verify_reproducible { verify_reproducible(&builder, root) } else { Ok(()) }
}

fn build_object(builder: &Builder, root: &Path) -> Result<()> {
    let started = Instant::now();
    let digest = margay_fingerprint::sources(root)?;
    let built = builder.build(root)?;
    // Without its stamp an object counts as missing: no moment has the stamp of one object beside
    // another.
    let (object, stamp) = (root.join(OBJECT), root.join(STAMP));
    fs::create_dir_all(object.parent().context("the object has a folder")?)?;
    if stamp.exists() {
        fs::remove_file(&stamp)?;
    }
    let content = stripped(&built)?;
    let partial = object.with_extension("partial");
    fs::write(&partial, &content)?;
    fs::rename(&partial, &object)?;
    fs::write(&stamp, format!("{digest}\n"))?;

    let (bytes, seconds) = (content.len(), started.elapsed().as_secs_f32());
    println!("kernel half: built {OBJECT}, {bytes} bytes, in {seconds:.1} s");
    println!("kernel half: sha256 {}", digest_of(&content));
    Ok(())
}

/// The object without DWARF, which is five sixths of it and which every first ADD after a boot would
/// read and parse. BTF stays, and with it field names in bpftool.
fn stripped(built: &Path) -> Result<Vec<u8>> {
    let whole = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let mut elf = elf::Builder::read(whole.as_slice())?;
    for section in elf.sections.iter_mut() {
        section.delete =
            section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    // LLVM keeps the names of sections in the table of symbols' names; `object` writes two tables.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = elf::SectionData::SectionString;

    let mut kept = Vec::new();
    elf.write(&mut kept)?;
    Ok(kept)
}

struct Builder {
    toolchain: Toolchain,
    linker: Linker,
}

impl Builder {
    fn find() -> Result<Self> {
        let toolchain = Toolchain::find().context(
            "no Rust toolchain can build for BPF: `cargo xtask setup` installs one, or run \
             `rustup component add rust-src`",
        )?;
        let linker = Linker::find().context("there is no bpf-linker: run `cargo xtask setup`")?;
        if !linker.reads(&toolchain.version) {
            bail!(
                "{linker} cannot read what {} writes: a linker built on LLVM {} or later is needed. \
                 Run `cargo xtask setup`",
                toolchain.rustc.display(),
                toolchain.version.llvm
            );
        }
        Ok(Self { toolchain, linker })
    }

    /// Builds the sources under `root` and returns the path of what came out.
    fn build(&self, root: &Path) -> Result<PathBuf> {
        let target_folder = root.join(TARGET_FOLDER);
        let mut command = Command::new(&self.toolchain.cargo);
        command.current_dir(root).args(["build", "--locked", "--package", PACKAGE]);
        command.args(["--bin", BINARY, "--profile", PROFILE]);
        command.arg("--target-dir").arg(&target_folder);
        self.toolchain.prepare(&mut command);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags(root));
        // The compiler asks for its linker by name.
        command.env("PATH", workspace::path_with(&self.linker.path)?);
        run_command(&mut command)?;
        Ok(target_folder.join(BPF_TARGET).join(PROFILE).join(BINARY))
    }

    /// Debug information names source files, so every folder of this machine gets a fixed name.
    fn flags(&self, root: &Path) -> OsString {
        let rust_src = self.toolchain.sysroot.join("lib/rustlib/src/rust");
        let registry = workspace::cargo_home().map(|home| home.join("registry/src"));
        let folders = [(Some(rust_src), "/rust"), (registry, "/registry")];

        let mut flags: Vec<OsString> = FLAGS.iter().map(OsString::from).collect();
        let folders = folders.into_iter().filter_map(|(folder, name)| Some((folder?, name)));
        for (folder, name) in folders.chain([(root.to_owned(), "/margay")]) {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(&folder);
            flag.push("=");
            flag.push(name);
            flags.push(flag);
        }
        flags.join(&OsString::from("\x1f"))
    }
}

fn verify_reproducible(builder: &Builder, root: &Path) -> Result<()> {
    let scratch = root.join("target/ebpf-reproducible");
    let object = root.join(OBJECT);
    let digest = digest_of(&fs::read(&object)?);
    let mut digests = vec![(object, digest)];
    for folder in ["a", "another/folder"] {
        let copy = scratch.join(folder);
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        copy_sources(root, &copy)?;
        let built = builder.build(&copy)?;
        let digest = digest_of(&stripped(&built)?);
        digests.push((built, digest));
    }
    for (object, digest) in &digests {
        println!("kernel half: {digest}  {}", object.display());
    }
    if digests.iter().any(|(_, digest)| *digest != digests[0].1) {
        bail!("the same sources gave different objects; they are kept for a look");
    }
    fs::remove_dir_all(&scratch)?;
    println!("kernel half: the same object in {} folders", digests.len());
    Ok(())
}

fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_sources(&entry.path(), &to.join(name))?;
        } else {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

fn digest_of(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
