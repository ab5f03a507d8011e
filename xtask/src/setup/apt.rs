//! Debian's and Ubuntu's package manager.
//!
//! Asks apt at run time which packages there are, rather than knowing releases. Never removes a
//! package: where one would have to go, apt fails and says which.

use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::{self, output_of, run};

pub(super) struct Apt {
    /// `sudo` for an ordinary user.
    prefix: Vec<&'static str>,
    updated: bool,
}

impl Apt {
    /// `None` where there is no apt.
    pub(super) fn find() -> Result<Option<Self>> {
        if workspace::find_program("apt-get").is_none() {
            return Ok(None);
        }
        let prefix = if rustix::process::geteuid().is_root() {
            vec![]
        } else if workspace::find_program("sudo").is_some() {
            vec!["sudo"]
        } else {
            bail!("apt needs root, and there is no sudo: run `cargo xtask setup` as root");
        };
        Ok(Some(Self { prefix, updated: false }))
    }

    /// Installs several things at once, of each the first set of packages that apt knows.
    pub(super) fn install_each(&mut self, wanted: &[(&str, &[&[&str]])]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.update()?;
        let mut packages = Vec::new();
        for (name, sets) in wanted {
            let Some(set) = sets.iter().find(|set| set.iter().all(|p| candidate(p).is_some()))
            else {
                bail!("apt has no package for {name} (looked for {sets:?})");
            };
            packages.extend_from_slice(set);
        }
        packages.sort_unstable();
        packages.dedup();
        self.install(&packages)
    }

    pub(super) fn install(&mut self, packages: &[&str]) -> Result<()> {
        self.update()?;
        println!("setup: installing {}", packages.join(" "));
        let options = ["install", "--yes", "-qq", "--no-install-recommends", "--no-remove"];
        run(self.apt_get().args(["-o", "Dpkg::Use-Pty=0"]).args(options).args(packages))
    }

    /// The version apt would install, after an update.
    pub(super) fn candidate(&mut self, package: &str) -> Result<Option<String>> {
        self.update()?;
        Ok(candidate(package))
    }

    fn update(&mut self) -> Result<()> {
        if !self.updated {
            println!("setup: updating the package lists");
            run(self.apt_get().args(["update", "-qq"]))?;
            self.updated = true;
        }
        Ok(())
    }

    fn apt_get(&self) -> Command {
        // `env` behind sudo: sudo does not pass the environment on.
        let words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        let mut words = self.prefix.iter().chain(&words);
        let mut command = Command::new(words.next().expect("the words are not empty"));
        command.args(words);
        command
    }
}

fn candidate(package: &str) -> Option<String> {
    let printed = output_of(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    candidate_in(&printed.ok()?)
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_apt_only_knows_by_name_has_no_candidate() {
        let policy = "a:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(candidate_in(policy), None);
        assert_eq!(candidate_in(""), None);
    }

    #[test]
    fn a_candidate_is_its_version() {
        let policy = "a:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
    }
}
