//! The `ipam` section when margay-ipam serves it: pools, and which of them an ADD may use.
//!
//! Invariant: a [`PoolSet`] that is settled has a usable pool for every family it assigns; no two of its pools
//! overlap, and every prefix is free of host bits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use margay_datastore::Encapsulation;

use super::ConfigError;
use super::choice::{Choice, Choices};
use super::field::{Field, Object};

/// Prefix lengths a block may have.
const BLOCK_SIZE_V4: std::ops::RangeInclusive<u32> = 20..=32;
const BLOCK_SIZE_V6: std::ops::RangeInclusive<u32> = 116..=128;
const DEFAULT_BLOCK_SIZE_V4: u8 = 26;
const DEFAULT_BLOCK_SIZE_V6: u8 = 122;

/// The pool that Calico makes where nobody has made one. Its network configuration names no pools:
/// they are in its own datastore.
const CALICOS_DEFAULT: (&str, IpNetwork) = (
    "default-ipv4-ippool",
    IpNetwork::V4(Ipv4Network::new_checked(Ipv4Addr::new(192, 168, 0, 0), 16).unwrap()),
);

/// Most pools of a network. Each is a record of the datastore, and each is compared with every
/// other; a range is made of neighbouring pools by writing it as one.
const MOST_POOLS: usize = 256;

/// An address pool of the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Name that `ipv4_pools` and `ipv6_pools` may use.
    pub name: Option<String>,
    /// The addresses, without host bits.
    pub cidr: IpNetwork,
    /// Prefix length of the blocks that nodes take from it.
    pub block_size: u8,
    /// Gives out no more addresses; those given out stay valid.
    pub disabled: bool,
    /// Pods' traffic to the outside is to be masqueraded.
    pub nat_outgoing: bool,
    /// How packets reach its pods on other nodes.
    pub encapsulation: Encapsulation,
}

/// The pools of one network and how to assign from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSet {
    /// Every pool of the configuration.
    pub all: Vec<Pool>,
    /// Those an ADD takes addresses from, in order of preference: enabled, chosen by
    /// `ipv4_pools` and `ipv6_pools`, of a family that is assigned.
    pub usable: Vec<Pool>,
    /// Every pod gets an IPv4 address.
    pub assign_ipv4: bool,
    /// Every pod gets an IPv6 address.
    pub assign_ipv6: bool,
    /// Never take an address from another node's block.
    pub strict_affinity: bool,
    /// The configuration is Calico's and names no pool, so its only one is Calico's default.
    pub is_calicos_default: bool,
    choices: Choices,
}

impl PoolSet {
    /// Whether pods may be reached through VXLAN, and their packets have to leave room for it.
    #[must_use]
    pub fn uses_vxlan(&self) -> bool {
        self.all.iter().any(|pool| pool.encapsulation != Encapsulation::None)
    }

    /// Reads the `ipam` object.
    pub(crate) fn from_object(ipam: &Object<'_>) -> Result<Self, ConfigError> {
        let mut all = Vec::new();
        refuse_too_many(ipam)?;
        for item in ipam.list("pools")? {
            let pool = Pool::from_object(&item.object()?)?;
            add_pool(&mut all, pool).map_err(|reason| item.invalid(reason))?;
        }
        let is_calicos_default = is_of_calico_without_pools(ipam)?;
        if is_calicos_default {
            let (name, cidr) = CALICOS_DEFAULT;
            let pool = Pool::with_defaults(cidr);
            all.push(Pool { name: Some(name.to_owned()), nat_outgoing: true, ..pool });
        }
        let choices = Choices::from_object(ipam, &mut all)?;
        let usable_v4 = usable(&all, &choices, true);
        let usable_v6 = usable(&all, &choices, false);
        let is_possible = |usable: &[Pool], ipv4| !usable.is_empty() || choices.has_stored(ipv4);
        let assign_ipv4 = assign(ipam, "assign_ipv4", is_possible(&usable_v4, true))?;
        let assign_ipv6 = assign(ipam, "assign_ipv6", is_possible(&usable_v6, false))?;
        if !assign_ipv4 && !assign_ipv6 {
            return Err(ipam.missing(
                "pools",
                "there is no enabled pool of a family that is assigned to pods; \
                 name one here or in ipv4_pools and ipv6_pools",
            ));
        }
        let mut usable = Vec::new();
        usable.extend(usable_v4.into_iter().filter(|_| assign_ipv4));
        usable.extend(usable_v6.into_iter().filter(|_| assign_ipv6));
        let strict_affinity = ipam.boolean("strict_affinity")?.unwrap_or(false);
        Ok(Self {
            all,
            usable,
            assign_ipv4,
            assign_ipv6,
            strict_affinity,
            is_calicos_default,
            choices,
        })
    }

    /// Whether it chooses pools that are in the datastore, or may be: until it is [settled](Self::settle), it is without
    /// those.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.choices.is_open()
    }

    /// The ranges of its pools that are the datastore's, which it only chooses: empty until it is settled.
    #[must_use]
    pub fn chosen(&self) -> Vec<IpNetwork> {
        self.choices.found()
    }

    /// Takes from the datastore's pools those that it chooses there.
    ///
    /// # Errors
    /// When one is not there, is of the other family, or overlaps another; when a family is left without a pool.
    pub fn settle(&mut self, records: &[margay_datastore::Pool]) -> Result<(), ConfigError> {
        let mut all = self.all.clone();
        let choices = self.choices.settled(records, &mut all)?;
        let mut usable = Vec::new();
        for (ipv4, is_assigned) in [(true, self.assign_ipv4), (false, self.assign_ipv6)] {
            if !is_assigned {
                continue;
            }
            let of_family = self::usable(&all, &choices, ipv4);
            if of_family.is_empty() {
                let key = if ipv4 { "ipv4_pools" } else { "ipv6_pools" };
                return Err(ConfigError::Missing {
                    field: format!("ipam.{key}"),
                    reason: "every pool that it names is disabled by a configuration",
                });
            }
            usable.extend(of_family);
        }
        (self.all, self.usable, self.choices) = (all, usable, choices);
        Ok(())
    }

    /// The same as far as the datastore has them, for a look at what has its addresses already: no pod needs the pool
    /// that they were taken from to be usable, or to have kept its name.
    pub fn settle_as_found(&mut self, records: &[margay_datastore::Pool]) {
        self.choices = self.choices.settled_as_found(records, &mut self.all);
        self.usable = Vec::new();
        for (ipv4, is_assigned) in [(true, self.assign_ipv4), (false, self.assign_ipv6)] {
            if is_assigned {
                self.usable.extend(usable(&self.all, &self.choices, ipv4));
            }
        }
    }
}

fn is_of_calico_without_pools(ipam: &Object<'_>) -> Result<bool, ConfigError> {
    for key in ["pools", "ipv4_pools", "ipv6_pools"] {
        if !ipam.list(key)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(ipam.string("type")? == Some("calico-ipam"))
}

fn refuse_too_many(ipam: &Object<'_>) -> Result<(), ConfigError> {
    for key in ["pools", "ipv4_pools", "ipv6_pools"] {
        if ipam.list(key)?.len() > MOST_POOLS {
            return Err(invalid(ipam, key, format!("must be {MOST_POOLS} pools at most")));
        }
    }
    Ok(())
}

impl Pool {
    fn from_object(object: &Object<'_>) -> Result<Self, ConfigError> {
        let cidr_field = object
            .get("cidr")
            .ok_or_else(|| object.missing("cidr", "a pool is a range of addresses"))?;
        let cidr = cidr(&cidr_field)?;
        let range = if cidr.is_ipv4() { BLOCK_SIZE_V4 } else { BLOCK_SIZE_V6 };
        let block_size = match object.integer("block_size", range)? {
            Some(size) if size < u32::from(cidr.prefix()) => {
                let reason = format!("a block cannot be larger than its pool {cidr}");
                return Err(invalid(object, "block_size", reason));
            }
            // The range's end is 128 at most.
            Some(size) => u8::try_from(size).unwrap_or(u8::MAX),
            None => default_block_size(&cidr),
        };
        Ok(Self {
            name: object.string("name")?.map(str::to_owned),
            cidr,
            block_size,
            disabled: object.boolean("disabled")?.unwrap_or(false),
            nat_outgoing: object.boolean("nat_outgoing")?.unwrap_or(false),
            encapsulation: encapsulation(object)?,
        })
    }

    pub(super) fn with_defaults(cidr: IpNetwork) -> Self {
        let block_size = default_block_size(&cidr);
        let encapsulation = Encapsulation::None;
        Self { name: None, cidr, block_size, disabled: false, nat_outgoing: false, encapsulation }
    }

    /// The first address after the network's own. margay-ipam names it as the gateway when
    /// another plugin than margay asks; no pod gets it. A pool of one or two addresses has none.
    #[must_use]
    pub fn gateway(&self) -> Option<IpAddr> {
        self.has_gateway().then(|| match self.cidr.network() {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + 1)),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() + 1)),
        })
    }

    fn has_gateway(&self) -> bool {
        self.cidr.prefix() < if self.cidr.is_ipv4() { 31 } else { 127 }
    }
}

impl From<&margay_datastore::Pool> for Pool {
    fn from(record: &margay_datastore::Pool) -> Self {
        Self {
            name: Some(record.name.clone()).filter(|name| !name.is_empty()),
            cidr: record.cidr,
            block_size: record.block_size,
            disabled: record.disabled,
            nat_outgoing: record.nat_outgoing,
            encapsulation: record.encapsulation,
        }
    }
}

impl From<&Pool> for margay_datastore::Pool {
    fn from(pool: &Pool) -> Self {
        Self {
            name: pool.name.clone().unwrap_or_default(),
            block_size: pool.block_size,
            nat_outgoing: pool.nat_outgoing,
            disabled: pool.disabled,
            encapsulation: pool.encapsulation,
            gateway: pool.gateway(),
            ..Self::new(pool.cidr)
        }
    }
}

/// Calico's words for it.
fn encapsulation(object: &Object<'_>) -> Result<Encapsulation, ConfigError> {
    match (object.string("vxlan_mode")?, object.get("vxlan_mode")) {
        (None | Some("Never"), _) | (_, None) => Ok(Encapsulation::None),
        (Some("Always"), _) => Ok(Encapsulation::Vxlan),
        (Some("CrossSubnet"), _) => Ok(Encapsulation::VxlanCrossSubnet),
        (_, Some(field)) => Err(field.invalid("must be Always, CrossSubnet or Never")),
    }
}

fn default_block_size(cidr: &IpNetwork) -> u8 {
    let size = if cidr.is_ipv4() { DEFAULT_BLOCK_SIZE_V4 } else { DEFAULT_BLOCK_SIZE_V6 };
    size.max(cidr.prefix())
}

fn invalid(object: &Object<'_>, key: &str, reason: String) -> ConfigError {
    match object.get(key) {
        Some(field) => field.invalid(reason),
        None => ConfigError::Invalid { field: object.path_of(key), value: "null".into(), reason },
    }
}

/// A prefix that pods can have addresses of.
pub(super) fn cidr(field: &Field<'_>) -> Result<IpNetwork, ConfigError> {
    let text = field.string()?;
    if !text.contains('/') {
        return Err(field.invalid("must be a prefix such as 10.244.0.0/16 or fd00:10:244::/64"));
    }
    let cidr: IpNetwork =
        field.parse("must be a prefix such as 10.244.0.0/16 or fd00:10:244::/64")?;
    if cidr.ip() != cidr.network() {
        let network = cidr.network();
        let reason = format!("has host bits set, did you mean {network}/{}?", cidr.prefix());
        return Err(field.invalid(reason));
    }
    check_range(&cidr).map_err(|reason| field.invalid(reason))?;
    Ok(cidr)
}

/// Says why pods can have no addresses of it.
pub(super) fn check_range(cidr: &IpNetwork) -> Result<(), String> {
    match reserved_range(cidr) {
        Some(what) => Err(format!("overlaps {what}, which pods cannot use")),
        None => Ok(()),
    }
}

/// The range that `cidr` overlaps and that no pod can have an address of.
fn reserved_range(cidr: &IpNetwork) -> Option<&'static str> {
    const RANGES: [(&str, &str); 10] = [
        ("0.0.0.0/8", "0.0.0.0/8 (this network)"),
        ("127.0.0.0/8", "127.0.0.0/8 (loopback)"),
        ("169.254.0.0/16", "169.254.0.0/16 (link-local, the pods' gateway)"),
        ("224.0.0.0/4", "224.0.0.0/4 (multicast)"),
        ("240.0.0.0/4", "240.0.0.0/4 (reserved)"),
        ("::/128", "::/128 (unspecified)"),
        ("::1/128", "::1/128 (loopback)"),
        ("::ffff:0:0/96", "::ffff:0:0/96 (IPv4-mapped)"),
        ("fe80::/10", "fe80::/10 (link-local, the pods' gateway)"),
        ("ff00::/8", "ff00::/8 (multicast)"),
    ];
    let overlapping = |range: &&(&str, &str)| {
        range.0.parse::<IpNetwork>().is_ok_and(|range| overlap(&range, cidr))
    };
    RANGES.iter().find(overlapping).map(|(_, what)| *what)
}

fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// Says why it cannot be one of them.
pub(super) fn add_pool(pools: &mut Vec<Pool>, pool: Pool) -> Result<(), String> {
    if let Some(other) = pools.iter().find(|other| overlap(&other.cidr, &pool.cidr)) {
        return Err(format!("overlaps the pool {}", other.cidr));
    }
    if let Some(name) = pool.name.as_ref()
        && pools.iter().any(|other| other.name.as_ref() == Some(name))
    {
        return Err(format!("a second pool is named {name:?}"));
    }
    pools.push(pool);
    Ok(())
}

fn usable(all: &[Pool], choices: &Choices, ipv4: bool) -> Vec<Pool> {
    let enabled = all.iter().filter(|pool| !pool.disabled && pool.cidr.is_ipv4() == ipv4);
    let Some(chosen) = choices.of(ipv4) else { return enabled.cloned().collect() };
    let pool = |cidr| enabled.clone().find(|pool| pool.cidr == cidr).cloned();
    chosen.iter().filter_map(Choice::range).filter_map(pool).collect()
}

fn assign(ipam: &Object<'_>, key: &str, possible: bool) -> Result<bool, ConfigError> {
    match ipam.boolean(key)? {
        Some(true) if !possible => {
            Err(invalid(ipam, key, "there is no enabled pool of this family".into()))
        }
        Some(wanted) => Ok(wanted),
        None => Ok(possible),
    }
}
