//! The pools that `ipv4_pools` and `ipv6_pools` choose: of `ipam.pools`, or of the datastore, by name or range.
//!
//! A pool of the datastore is what an operator created, or what a configuration of some node has. It counts as it is
//! recorded there, as with Calico, whose pools are all in its datastore.

use ipnetwork::IpNetwork;
use margay_datastore::Pool as Record;

use super::ConfigError;
use super::field::{Field, Object};
use super::pools::{Pool, add_pool, check_range, cidr};

/// What the two keys choose, in order; `None` where one chooses none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choices {
    pub(super) ipv4: Option<Vec<Choice>>,
    pub(super) ipv6: Option<Vec<Choice>>,
}

/// One entry of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Of the configuration.
    Listed(IpNetwork),
    /// A range, and of the datastore if it has it; else with the defaults.
    Range(IpNetwork),
    /// Of the datastore.
    Stored(Stored),
    /// The same, which the datastore has.
    Found(IpNetwork),
}

/// A pool that the datastore has to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Path of the entry.
    field: String,
    /// Name or range.
    text: String,
    ipv4: bool,
}

impl Choices {
    /// Where the configuration lists no pools of its own, a range that is chosen is a pool with the defaults.
    pub(super) fn from_object(ipam: &Object<'_>, all: &mut Vec<Pool>) -> Result<Self, ConfigError> {
        let listed = !all.is_empty();
        Ok(Self {
            ipv4: choose(ipam, "ipv4_pools", all, listed, true)?,
            ipv6: choose(ipam, "ipv6_pools", all, listed, false)?,
        })
    }

    pub(super) fn of(&self, ipv4: bool) -> Option<&[Choice]> {
        if ipv4 { self.ipv4.as_deref() } else { self.ipv6.as_deref() }
    }

    /// Whether the datastore has a word in it.
    pub(super) fn is_open(&self) -> bool {
        let mut choices = self.ipv4.iter().chain(&self.ipv6).flatten();
        choices.any(|choice| matches!(choice, Choice::Range(_) | Choice::Stored(_)))
    }

    /// The ranges of those that the datastore has.
    pub(super) fn found(&self) -> Vec<IpNetwork> {
        let found = |choice: &Choice| match choice {
            Choice::Found(cidr) => Some(*cidr),
            _ => None,
        };
        self.ipv4.iter().chain(&self.ipv6).flatten().filter_map(found).collect()
    }

    /// Whether a pool of this family is one that only the datastore knows.
    pub(super) fn has_stored(&self, ipv4: bool) -> bool {
        let mut choices = self.of(ipv4).into_iter().flatten();
        choices.any(|choice| matches!(choice, Choice::Stored(_)))
    }

    /// The same with what the datastore has; pools of it are put into `all`.
    pub(super) fn settled(
        &self,
        records: &[Record],
        all: &mut Vec<Pool>,
    ) -> Result<Self, ConfigError> {
        let mut settle = |ipv4| {
            let choices = self.of(ipv4)?.iter();
            Some(choices.map(|choice| choice.settled(records, all)).collect::<Result<Vec<_>, _>>())
        };
        Ok(Self { ipv4: settle(true).transpose()?, ipv6: settle(false).transpose()? })
    }

    /// The same as far as the datastore has them.
    pub(super) fn settled_as_found(&self, records: &[Record], all: &mut Vec<Pool>) -> Self {
        let mut settle = |choice: &Choice| {
            choice.settled(records, all).unwrap_or_else(|error| {
                tracing::warn!(%error, "a pool is not looked at");
                choice.clone()
            })
        };
        let mut settle = |ipv4| Some(self.of(ipv4)?.iter().map(&mut settle).collect());
        Self { ipv4: settle(true), ipv6: settle(false) }
    }
}

impl Choice {
    /// The range, where it is known without the datastore.
    pub(super) fn range(&self) -> Option<IpNetwork> {
        match self {
            Self::Listed(cidr) | Self::Range(cidr) | Self::Found(cidr) => Some(*cidr),
            Self::Stored(_) => None,
        }
    }

    fn settled(&self, records: &[Record], all: &mut Vec<Pool>) -> Result<Self, ConfigError> {
        match self {
            Self::Listed(cidr) => Ok(Self::Listed(*cidr)),
            Self::Found(cidr) => Ok(Self::Found(*cidr)),
            Self::Range(cidr) => {
                let record = records.iter().find(|record| record.cidr == *cidr);
                let pool = all.iter_mut().find(|pool| pool.cidr == *cidr);
                if let (Some(record), Some(pool)) = (record, pool) {
                    *pool = Pool::from(record);
                    return Ok(Self::Found(*cidr));
                }
                Ok(Self::Listed(*cidr))
            }
            Self::Stored(stored) => {
                let pool = Pool::from(stored.find(records)?);
                check_range(&pool.cidr).map_err(|reason| stored.invalid(reason))?;
                let cidr = pool.cidr;
                // The configuration's own, which the datastore has by another name.
                if all.iter().any(|known| known.cidr == cidr && *known != pool) {
                    return Ok(Self::Listed(cidr));
                }
                // Two entries may mean the same one, by its name and by its range.
                add_pool(all, pool).map_err(|reason| stored.invalid(reason))?;
                Ok(Self::Found(cidr))
            }
        }
    }
}

impl Stored {
    fn find<'r>(&self, records: &'r [Record]) -> Result<&'r Record, ConfigError> {
        let range: Option<IpNetwork> = self.text.parse().ok();
        let is_it = |record: &&Record| match range {
            Some(range) => record.cidr == range,
            None => record.name == self.text,
        };
        let found: Vec<&Record> = records.iter().filter(is_it).collect();
        match found.as_slice() {
            [record] if record.cidr.is_ipv4() != self.ipv4 => {
                Err(self.invalid(format!("{} is of the other address family", record.cidr)))
            }
            [record] => Ok(record),
            [] => Err(self.invalid(
                "is neither the name nor the cidr of one of ipam.pools, nor of a pool in the datastore \
                 (margayctl pool list)",
            )),
            several => {
                let ranges: Vec<_> = several.iter().map(|record| record.cidr.to_string()).collect();
                Err(self.invalid(format!("is the name of several pools: {}", ranges.join(", "))))
            }
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> ConfigError {
        let value = serde_json::Value::from(self.text.as_str()).to_string();
        ConfigError::Invalid { field: self.field.clone(), value, reason: reason.into() }
    }
}

fn choose(
    ipam: &Object<'_>,
    key: &str,
    all: &mut Vec<Pool>,
    listed: bool,
    ipv4: bool,
) -> Result<Option<Vec<Choice>>, ConfigError> {
    let items = ipam.list(key)?;
    if items.is_empty() {
        return Ok(None);
    }
    let mut chosen = Vec::with_capacity(items.len());
    for item in items {
        let choice = choice(&item, all, listed, ipv4)?;
        if chosen.contains(&choice) {
            return Err(item.invalid("is named twice"));
        }
        chosen.push(choice);
    }
    Ok(Some(chosen))
}

fn choice(
    item: &Field<'_>,
    all: &mut Vec<Pool>,
    listed: bool,
    ipv4: bool,
) -> Result<Choice, ConfigError> {
    let text = item.string()?;
    let known = |pool: &&Pool| pool.name.as_deref() == Some(text) || text.parse() == Ok(pool.cidr);
    let choice = match all.iter().find(known).map(|pool| pool.cidr) {
        Some(cidr) if listed => Choice::Listed(cidr),
        Some(cidr) => Choice::Range(cidr),
        None if listed || !text.contains('/') => {
            Choice::Stored(Stored { field: item.path().to_owned(), text: text.to_owned(), ipv4 })
        }
        None => {
            let cidr = cidr(item)?;
            add_pool(all, Pool::with_defaults(cidr)).map_err(|reason| item.invalid(reason))?;
            Choice::Range(cidr)
        }
    };
    match choice.range().or_else(|| text.parse().ok()) {
        Some(range) if range.is_ipv4() != ipv4 => {
            Err(item.invalid(format!("{range} is of the other address family")))
        }
        _ => Ok(choice),
    }
}
