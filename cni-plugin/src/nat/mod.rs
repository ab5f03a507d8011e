//! Masquerading of what pods of pools with `nat_outgoing` send to the world outside, by nftables.
//!
//! Invariant: everything is in the table `inet margay`, which is nobody else's. Of it, a network owns
//! the sets that bear its name and the rules that look them up, and leaves those of others alone.
//! What there is is asked over netlink; a process is started only to change it, in one transaction.

mod transaction;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

use crate::config::NetConf;
use crate::lock::{LockError, NatLock};
use crate::netlink::{Intervals, Netfilter, NetlinkError};

/// Name of the table, whose family is `inet`. Deleting it takes away all that is made here.
pub const TABLE: &str = "margay";

/// The chain at the hook.
const POSTROUTING: &str = "postrouting";
/// The chain that leaves alone what goes to a pool, of whatever network.
const POOLS: &str = "pools";
/// The chain that masquerades what comes from a pool that asks for it.
const OUTGOING: &str = "outgoing";

/// Why masquerading could not be set up or looked at.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// There is no `nft`.
    #[error(
        "ipam.pools[].nat_outgoing takes the program nft, of the package nftables, and it is in none of {searched}"
    )]
    NoNft {
        /// The directories, as in `PATH`.
        searched: String,
    },
    /// `nft` could not be run.
    #[error("run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// `nft` refused the rules.
    #[error("nft refuses the rules of ipam.pools[].nat_outgoing: {reason}")]
    Refused {
        /// What it says.
        reason: String,
    },
    /// The rules that there are cannot be read.
    #[error("the rules of ipam.pools[].nat_outgoing")]
    Netlink(#[from] NetlinkError),
    /// The node's lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// What a network wants of the table.
#[derive(Debug)]
pub struct Nat<'a> {
    network: &'a str,
    run_dir: &'a Path,
    sets: [Set; 4],
}

/// One of a network's sets.
#[derive(Debug)]
struct Set {
    name: String,
    chain: &'static str,
    ipv4: bool,
    prefixes: Vec<IpNetwork>,
}

/// Something that is not as a network wants it.
#[derive(Debug)]
enum Defect<'a> {
    /// The chain at the hook, or one of its rules, is missing.
    Chain,
    /// A set is missing or holds something else.
    Elements(&'a Set),
    /// The rule that looks a set up is missing.
    Rule(&'a Set),
}

impl fmt::Display for Defect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain => {
                write!(f, "nftables table inet {TABLE} lacks rules of chain {POSTROUTING}")
            }
            Self::Elements(set) => {
                write!(f, "nftables set {} of table inet {TABLE} does not hold ", set.name)?;
                match set.prefixes.as_slice() {
                    [] => f.write_str("nothing"),
                    [prefix] => write!(f, "exactly {prefix}"),
                    prefixes => write!(f, "exactly the network's {} pools", prefixes.len()),
                }
            }
            Self::Rule(set) => {
                let Set { name, chain, .. } = set;
                write!(
                    f,
                    "nftables table inet {TABLE} lacks the rule of set {name} in chain {chain}"
                )
            }
        }
    }
}

impl<'a> Nat<'a> {
    /// What the network wants; `None` if it asks for no masquerading and there can be no rules that
    /// it would have to know of.
    #[must_use]
    pub fn of(conf: &'a NetConf) -> Option<Self> {
        let pools = conf.ipam.pools().map_or(&[][..], |pools| &pools.all);
        let set = |chain: &'static str, ipv4: bool| Set {
            name: format!("{chain}{}-{}", if ipv4 { 4 } else { 6 }, conf.name),
            chain,
            ipv4,
            prefixes: pools
                .iter()
                .filter(|pool| pool.cidr.is_ipv4() == ipv4)
                .filter(|pool| chain == POOLS || pool.nat_outgoing)
                .map(|pool| pool.cidr)
                .collect(),
        };
        let sets = [set(POOLS, true), set(POOLS, false), set(OUTGOING, true), set(OUTGOING, false)];
        let nat = Self { network: &conf.name, run_dir: &conf.paths.run_dir, sets };
        (nat.is_asked_for() || NatLock::was_taken(nat.run_dir)).then_some(nat)
    }

    /// Whether any pool of the network is to be masqueraded.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        self.sets.iter().any(|set| set.chain == OUTGOING && !set.prefixes.is_empty())
    }

    /// Makes the rules what the network wants. A network that asks for no masquerading only takes
    /// care that it has none left and that the others know its pools, and does without where that
    /// cannot be done.
    ///
    /// # Errors
    /// When the rules cannot be looked at, or have to be changed and cannot.
    pub async fn ensure(&self) -> Result<(), NatError> {
        match self.reconcile().await {
            Err(error) if !self.is_asked_for() => {
                let error = crate::error::chain(&error);
                tracing::warn!(error, "the node's NAT rules do not follow this network");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// What is not as the network wants it, in words that name the thing.
    ///
    /// # Errors
    /// When the rules cannot be looked at.
    pub async fn findings(&self) -> Result<Vec<String>, NatError> {
        if !self.is_asked_for() {
            return Ok(Vec::new());
        }
        let defects = self.defects(&Netfilter::open()?).await?;
        Ok(defects.iter().map(|defect| format!("{defect}: the next ADD mends it")).collect())
    }

    /// Whether an ADD could do its part.
    ///
    /// # Errors
    /// When it could not.
    pub async fn status(&self) -> Result<(), NatError> {
        if !self.is_asked_for() {
            return Ok(());
        }
        match transaction::find_nft() {
            Err(_) if self.defects(&Netfilter::open()?).await?.is_empty() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn reconcile(&self) -> Result<(), NatError> {
        let netfilter = Netfilter::open()?;
        if self.defects(&netfilter).await?.is_empty() {
            return Ok(());
        }
        let _lock = NatLock::take(self.run_dir)?;
        let defects = self.defects(&netfilter).await?;
        if defects.is_empty() {
            return Ok(());
        }
        for defect in &defects {
            tracing::debug!(%defect, "NAT rules");
        }
        let missing = defects.iter().filter_map(|defect| match defect {
            Defect::Rule(set) => Some(*set),
            Defect::Chain | Defect::Elements(_) => None,
        });
        transaction::commit(&transaction::of(&self.sets, missing))?;
        tracing::info!(network = self.network, "NAT rules written");
        Ok(())
    }

    async fn defects(&self, netfilter: &Netfilter) -> Result<Vec<Defect<'_>>, NatError> {
        let rules = netfilter.rules(TABLE).await?;
        let mut defects = Vec::new();
        let at_hook = rules.iter().filter(|rule| rule.chain == POSTROUTING).count();
        if at_hook == 0 && !self.is_asked_for() {
            return Ok(defects);
        }
        if at_hook != transaction::POSTROUTING_RULES {
            defects.push(Defect::Chain);
        }
        let looked_up: BTreeSet<(&str, &str)> = rules
            .iter()
            .filter_map(|rule| Some((rule.chain.as_str(), rule.set.as_deref()?)))
            .collect();
        for set in &self.sets {
            let wanted: Intervals = set.prefixes.iter().copied().collect();
            let found = netfilter.intervals(TABLE, &set.name).await?.unwrap_or_default();
            if found != wanted {
                defects.push(Defect::Elements(set));
            }
            // One that is to hold nothing does without.
            if !wanted.is_empty() && !looked_up.contains(&(set.chain, &set.name)) {
                defects.push(Defect::Rule(set));
            }
        }
        Ok(defects)
    }
}
