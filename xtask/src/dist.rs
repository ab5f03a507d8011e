//! `cargo xtask dist`: the release tarball, which needs nothing of the host it is unpacked on.
//!
//! Invariant: the executables in it are static and ask no name service, and the same files give the
//! same tarball. It must not know where a host has things: `install.sh` does, and is in the tarball.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use object::elf::{DT_NEEDED, PT_INTERP};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use sha2::{Digest, Sha256};

use crate::build::{AGENT, CTL, PLUGIN};
use crate::setup::{self, Use};
use crate::workspace::{self, cargo_command, output_of, run as run_command};
use crate::{build_ebpf, licences};

/// What of the workspace is in the tarball, under the same names but for the installer, which stands
/// at its top.
const FILES: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "conf",
    "docs",
];
const INSTALLER: &str = "dist";
const CHECKSUMS: &str = "SHA256SUMS";

/// Make the release tarball, in target/dist.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    let folder = stage()?;
    let tarball = pack(&folder)?;
    let name = tarball.file_name().context("a tarball has a name")?;
    let line = checksum_line(&tarball, Path::new(name))?;
    print!("dist: {line}");
    fs::write(tarball.with_file_name(CHECKSUMS), line)?;
    println!("dist: {} ({} bytes)", tarball.display(), tarball.metadata()?.len());
    Ok(())
}

/// Builds margay and puts together the folder that the tarball unpacks to. `cargo xtask install`
/// installs from it.
pub(crate) fn stage() -> Result<PathBuf> {
    setup::ensure(&[Use::Build])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    let ctl = answering_version(CTL)?;
    let executables = [executable()?, answering_version(AGENT)?, ctl.clone()];

    let name = format!("margay-{}-linux-{}", env!("CARGO_PKG_VERSION"), env::consts::ARCH);
    let folder = workspace::target_folder().join("dist").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    for executable in &executables {
        let name = executable.file_name().context("an executable has a name")?;
        fs::copy(executable, folder.join("bin").join(name))?;
        println!("dist: {}, {} bytes, static", executable.display(), executable.metadata()?.len());
    }
    for file in FILES {
        copy(&workspace::root().join(file), &folder.join(file))?;
    }
    copy(&workspace::root().join(INSTALLER), &folder)?;
    write_help(&ctl, &folder)?;
    licences::collect(&folder.join("licences"), &Target::choose()?.triple)?;
    write_checksums(&folder)?;
    Ok(folder)
}

/// Builds the plugins' executable that is in the tarball. The kernel half is there.
pub(crate) fn executable() -> Result<PathBuf> {
    let executable = Target::choose()?.build(PLUGIN)?;
    ensure_static(&executable)?;
    ensure_answer(Command::new(&executable).env("CNI_COMMAND", "VERSION"), "supportedVersions")?;
    Ok(executable)
}

fn answering_version(name: &str) -> Result<PathBuf> {
    let executable = Target::choose()?.build(name)?;
    ensure_static(&executable)?;
    ensure_answer(Command::new(&executable).arg("--version"), env!("CARGO_PKG_VERSION"))?;
    Ok(executable)
}

/// The manual pages of margayctl and its completions, as it writes them itself.
fn write_help(ctl: &Path, folder: &Path) -> Result<()> {
    run_command(Command::new(ctl).arg("man").arg(folder.join("man")))?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in ["bash", "zsh", "fish"] {
        let script = output_of(Command::new(ctl).args(["completion", shell]))?;
        fs::write(completions.join(format!("{CTL}.{shell}")), script)?;
    }
    Ok(())
}

/// What the executables are compiled for.
struct Target {
    triple: String,
}

impl Target {
    /// musl where it is installed with a C compiler for SQLite; else the host's own.
    fn choose() -> Result<Self> {
        let rustc = || Command::new(workspace::cargo().with_file_name("rustc"));
        let version = output_of(rustc().arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc does not tell its host")?;
        let musl = format!("{}-unknown-linux-musl", env::consts::ARCH);
        let sysroot = output_of(rustc().args(["--print", "sysroot"]))?;
        let has_musl = Path::new(sysroot.trim()).join("lib/rustlib").join(&musl).exists()
            && workspace::find_program("musl-gcc").is_some();
        Ok(Self { triple: if has_musl { musl } else { host.to_owned() } })
    }

    fn build(&self, name: &str) -> Result<PathBuf> {
        let mut command = cargo_command("build");
        command.args(["--release", "--locked", "--package", name, "--bin", name]);
        // Named even where it is the host's: flags are then not for build scripts and macros.
        command.args(["--target", &self.triple]);
        command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
        run_command(&mut command)?;
        Ok(workspace::target_folder().join(&self.triple).join("release").join(name))
    }
}

/// Whether nothing else is needed to run it. A C library that is linked in still loads the host's
/// modules for name services, which must be of its own version; margay asks none.
fn ensure_static(executable: &Path) -> Result<()> {
    let content = fs::read(executable)?;
    let elf = ElfFile64::<object::Endianness>::parse(content.as_slice())?;
    let endian = elf.endian();
    for segment in elf.elf_header().program_headers(endian, content.as_slice())? {
        ensure!(
            segment.p_type(endian) != PT_INTERP,
            "{} wants a dynamic linker",
            executable.display()
        );
        let dynamic = segment.dynamic(endian, content.as_slice())?.unwrap_or_default();
        let needed = dynamic.iter().any(|entry| entry.tag(endian) == DT_NEEDED);
        ensure!(!needed, "{} wants libraries", executable.display());
    }
    let asks = content.windows(7).any(|bytes| bytes == b"libnss_");
    ensure!(!asks, "{} asks name services", executable.display());
    Ok(())
}

fn ensure_answer(command: &mut Command, expected: &str) -> Result<()> {
    let answer = output_of(command)?;
    ensure!(answer.contains(expected), "{} answers {answer}", workspace::shown(command));
    Ok(())
}

/// Whatever differs between two builders' files is set: order, times, owners, modes.
fn pack(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().and_then(OsStr::to_str).context("the folder has a name")?;
    let parent = folder.parent().context("the folder has a parent")?;
    let tarball = parent.join(format!("{name}.tar.gz"));
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--format=ustar", "--numeric-owner"]);
    command.args(["--owner=0", "--group=0", "--mode=u=rwX,go=rX"]);
    command.arg(format!("--mtime=@{}", time_of_the_sources()?));
    command.arg("--use-compress-program=gzip --no-name --best");
    command.arg("--file").arg(&tarball).arg("--directory").arg(parent).arg(name);
    run_command(&mut command)?;
    Ok(tarball)
}

/// Seconds since 1970: what the builder says, else the time of the last commit.
fn time_of_the_sources() -> Result<u64> {
    let said = match env::var("SOURCE_DATE_EPOCH") {
        Ok(said) => said,
        Err(_) => {
            let mut git = Command::new("git");
            output_of(git.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]))?
        }
    };
    said.trim().parse().with_context(|| format!("{said:?} is not a number of seconds"))
}

/// For `sha256sum --check`, with the paths that it wants: relative to the folder.
fn write_checksums(folder: &Path) -> Result<()> {
    let mut lines = String::new();
    for file in files_below(folder)? {
        lines += &checksum_line(&file, file.strip_prefix(folder)?)?;
    }
    Ok(fs::write(folder.join(CHECKSUMS), lines)?)
}

fn checksum_line(file: &Path, name: &Path) -> Result<String> {
    let digest = Sha256::digest(fs::read(file)?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{digest}  {}\n", name.display()))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Copies a file, or what is in a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_executable_is_refused() {
        let error = ensure_static(&env::current_exe().unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("wants a dynamic linker"), "{error}");
    }

    #[test]
    fn the_same_files_give_the_same_tarball() {
        let temp = tempfile::tempdir().unwrap();
        let tarball = |parent: &str, names: [&str; 2]| {
            let folder = temp.path().join(parent).join("margay");
            fs::create_dir_all(&folder).unwrap();
            for name in names {
                fs::write(folder.join(name), name).unwrap();
            }
            fs::read(pack(&folder).unwrap()).unwrap()
        };
        assert_eq!(tarball("one", ["a", "b"]), tarball("two", ["b", "a"]));
    }

    #[test]
    fn checksums_are_of_every_file_and_relative_to_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("conf")).unwrap();
        fs::write(folder.path().join("conf/a"), "").unwrap();
        fs::write(folder.path().join("b"), "").unwrap();

        write_checksums(folder.path()).unwrap();

        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let sums = fs::read_to_string(folder.path().join(CHECKSUMS)).unwrap();
        assert_eq!(sums, format!("{empty}  b\n{empty}  conf/a\n"));
    }
}
