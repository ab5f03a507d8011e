//! `cargo xtask setup`: finds what the other commands need and is missing, and installs it.
//!
//! Looks for programs and files, never for packages: it does not matter how a thing came to the
//! machine. With nothing missing it changes nothing and takes a fraction of a second. It installs
//! with apt where there is apt, and elsewhere names the commands; it never removes a package.

mod apt;
mod requirements;
mod rust;

use std::fmt;

use anyhow::{Result, bail};

use self::apt::Apt;
use self::requirements::{REQUIREMENTS, Requirement};
use self::rust::RustPart;
use crate::workspace;

/// Find what is missing on this machine and install it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// List what is missing and fail, rather than install it
    #[arg(long)]
    no_install: bool,
}

/// What a thing is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Build,
    Check,
    Test,
    Demo,
    Fuzz,
    Bench,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Build => "build",
            Self::Check => "check",
            Self::Test => "test",
            Self::Demo => "demo",
            Self::Fuzz => "fuzz",
            Self::Bench => "bench",
        })
    }
}

/// What daily work and CI need: the fuzzers and what measures come with their first use.
const ALL: &[Use] = &[Use::Build, Use::Check, Use::Test, Use::Demo];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.no_install {
        let missing = Missing::find(ALL);
        if !missing.is_empty() {
            print!("{missing}");
            bail!("something is missing; to install it:\n{}", missing.commands());
        }
    }
    ensure(ALL)?;
    println!("setup: nothing is missing");
    Ok(())
}

/// Installs what is missing for these uses.
pub(crate) fn ensure(uses: &[Use]) -> Result<()> {
    let missing = Missing::find(uses);
    if missing.is_empty() {
        return Ok(());
    }
    print!("{missing}");
    let Some(mut apt) = Apt::find()? else {
        bail!("only apt is known to setup; on this machine, run:\n{}", missing.commands());
    };
    missing.install(&mut apt)?;
    let still = Missing::find(uses);
    if !still.is_empty() {
        bail!("after installing, still missing:\n{still}to install it:\n{}", still.commands());
    }
    Ok(())
}

/// What is missing on this machine.
struct Missing {
    uses: Vec<Use>,
    tools: Vec<&'static Requirement>,
    rust: Vec<RustPart>,
}

impl Missing {
    fn find(uses: &[Use]) -> Self {
        let needed = |of: &[Use]| of.iter().any(|one| uses.contains(one));
        let tools = REQUIREMENTS.iter().filter(|r| needed(r.uses) && !r.is_present()).collect();
        let rust = RustPart::missing().into_iter().filter(|part| needed(part.uses())).collect();
        Self { uses: uses.to_owned(), tools, rust }
    }

    fn is_empty(&self) -> bool {
        self.tools.is_empty() && self.rust.is_empty()
    }

    /// In the order in which one part needs the other: the compiler tells which linker.
    fn install(&self, apt: &mut Apt) -> Result<()> {
        let packages: Vec<_> = self.tools.iter().map(|tool| (tool.name, tool.apt)).collect();
        apt.install_each(&packages)?;
        for part in &self.rust {
            part.install(apt)?;
        }
        // A compiler that has just come may need another linker than the one that is there, and
        // lints of its own.
        for part in Self::find(&self.uses).rust {
            if self.rust.iter().all(|known| known.name() != part.name()) {
                part.install(apt)?;
            }
        }
        Ok(())
    }

    /// The commands to type, one a line.
    fn commands(&self) -> String {
        let mut commands = Vec::new();
        if !self.tools.is_empty() {
            commands.push(requirements::command(&self.tools));
        }
        commands.extend(self.rust.iter().map(RustPart::command));
        commands.iter().map(|command| format!("  {command}\n")).collect()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tools = self.tools.iter().map(|tool| (tool.name, tool.why.to_owned(), tool.uses));
        let rust = self.rust.iter().map(|part| (part.name(), part.why(), part.uses()));
        writeln!(f, "missing on this machine ({}):", workspace::root().display())?;
        for (name, why, uses) in tools.chain(rust) {
            let uses: Vec<_> = uses.iter().map(Use::to_string).collect();
            writeln!(f, "  {name:<14} {:<18} {why}", uses.join(", "))?;
        }
        Ok(())
    }
}
