//! Pools and the blocks they are cut into: arithmetic only, nothing is read or written here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

const DEFAULT_BLOCK_V4: u8 = 26;
const DEFAULT_BLOCK_V6: u8 = 122;
/// A block is one record that every allocation rewrites; 4,096 slots are Calico's limit as well.
const MAX_BLOCK_BITS: u8 = 12;

/// A range that addresses are handed out from.
///
/// The first and the last address of an IPv4 pool (its network and broadcast address) and the
/// first of an IPv6 pool (the subnet-router anycast address, RFC 4291 section 2.6.1) are never
/// handed out; pools of one or two addresses hand out all (RFC 3021, RFC 6164).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The range, without host bits.
    pub cidr: IpNetwork,
    /// What configurations may call it; empty if nobody has named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Prefix length of the blocks it is cut into. A pool smaller than this is one block.
    pub block_size: u8,
    /// Whether packets to destinations outside all pools leave with the node's address.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// Gives no new addresses; those that are out stay valid.
    #[serde(default)]
    pub disabled: bool,
    /// The same by an operator's word, which no network configuration overrules: `disabled` is
    /// written by every node whose configuration says something else, and this by nobody but the operator.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// An address of the range that stands for the way out and is never handed out either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// How packets reach a pod of this pool on another node.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Which nodes may use the pool; empty for all. Carried for the callers, not judged here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
}

/// How packets reach a pod on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encapsulation {
    /// Plain routing.
    #[default]
    None,
    /// VXLAN to every other node.
    Vxlan,
    /// VXLAN to nodes on another subnet, plain routing to those on the same.
    VxlanCrossSubnet,
}

/// Why a pool, or several together, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The range has bits set after its prefix.
    #[error("pool {cidr} has host bits set; the range is {range}")]
    HostBits {
        /// The range as given.
        cidr: IpNetwork,
        /// The range it lies in.
        range: IpNetwork,
    },
    /// The block size is outside what the family allows.
    #[error("pool {cidr}: block size /{block_size} is not between /{smallest} and /{largest}")]
    BlockSize {
        /// The pool.
        cidr: IpNetwork,
        /// The prefix length as given.
        block_size: u8,
        /// The shortest prefix length that is allowed.
        smallest: u8,
        /// The longest prefix length that is allowed.
        largest: u8,
    },
    /// Two pools share addresses.
    #[error("pools {first} and {second} overlap")]
    Overlap {
        /// One of them.
        first: IpNetwork,
        /// The other.
        second: IpNetwork,
    },
    /// Another pool has the name.
    #[error("pool {of} is named {name:?} already")]
    Name {
        /// The name.
        name: String,
        /// The pool that has it.
        of: IpNetwork,
    },
    /// A stored pool that shares addresses with this one is cut into blocks of another size.
    #[error(
        "pool {cidr} with blocks of /{block_size} overlaps the stored pool {stored} with blocks of /{stored_block_size}; release its addresses and remove it first"
    )]
    OtherBlockSize {
        /// The pool as given.
        cidr: IpNetwork,
        /// Its effective block size.
        block_size: u8,
        /// The stored pool.
        stored: IpNetwork,
        /// The stored pool's effective block size.
        stored_block_size: u8,
    },
}

impl Pool {
    /// An enabled pool with the defaults: blocks of /26 or /122, no NAT, no encapsulation.
    pub fn new(cidr: IpNetwork) -> Self {
        let block_size = match cidr {
            IpNetwork::V4(_) => DEFAULT_BLOCK_V4,
            IpNetwork::V6(_) => DEFAULT_BLOCK_V6,
        };
        Self {
            cidr,
            name: String::new(),
            block_size,
            nat_outgoing: false,
            disabled: false,
            closed: false,
            gateway: None,
            encapsulation: Encapsulation::None,
            node_selector: String::new(),
        }
    }

    /// Whether it gives new addresses, if it has any left.
    pub fn is_open(&self) -> bool {
        !self.disabled && !self.closed
    }

    /// Whether the pool makes sense by itself.
    pub fn check(&self) -> Result<(), PoolError> {
        let range = mask(self.cidr.ip(), self.cidr.prefix());
        if range != self.cidr {
            return Err(PoolError::HostBits { cidr: self.cidr, range });
        }
        let largest = width(&self.cidr);
        let smallest = largest - MAX_BLOCK_BITS;
        if !(smallest..=largest).contains(&self.block_size) {
            let (cidr, block_size) = (self.cidr, self.block_size);
            return Err(PoolError::BlockSize { cidr, block_size, smallest, largest });
        }
        Ok(())
    }

    /// Whether the pools make sense each and together.
    pub fn check_all(pools: &[Self]) -> Result<(), PoolError> {
        for (index, pool) in pools.iter().enumerate() {
            pool.check()?;
            if let Some(other) = pools[..index].iter().find(|other| other.overlaps(pool)) {
                return Err(PoolError::Overlap { first: other.cidr, second: pool.cidr });
            }
        }
        Ok(())
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.cidr.contains(other.cidr.ip()) || other.cidr.contains(self.cidr.ip())
    }

    /// Whether an address may be handed out: inside the range and not one of its reserved ends.
    pub fn hands_out(&self, ip: IpAddr) -> bool {
        self.cidr.contains(ip) && !self.reserves(ip)
    }

    /// Number of addresses that the pool can hand out; `u128::MAX` for the whole of IPv6.
    pub fn capacity(&self) -> u128 {
        let host_bits = u32::from(width(&self.cidr) - self.cidr.prefix());
        let all = 1u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        let ends = match self.cidr {
            _ if host_bits < 2 => 0,
            IpNetwork::V4(_) => 2,
            IpNetwork::V6(_) => 1,
        };
        let inside = |ip: &IpAddr| self.cidr.contains(*ip) && !self.is_end(*ip);
        all - ends - u128::from(self.gateway.as_ref().is_some_and(inside))
    }

    fn reserves(&self, ip: IpAddr) -> bool {
        self.gateway == Some(ip) || self.is_end(ip)
    }

    fn is_end(&self, ip: IpAddr) -> bool {
        if width(&self.cidr) - self.cidr.prefix() < 2 {
            return false;
        }
        ip == self.cidr.ip() || (ip.is_ipv4() && ip == self.cidr.broadcast())
    }
}

/// The blocks of a pool.
impl Pool {
    /// The prefix length that blocks really have.
    pub(crate) fn effective_block_size(&self) -> u8 {
        self.block_size.max(self.cidr.prefix())
    }

    /// Number of blocks, as far as a number of 64 bits can count them.
    pub(crate) fn block_count(&self) -> u64 {
        let bits = u32::from(self.effective_block_size() - self.cidr.prefix());
        1u64.checked_shl(bits).unwrap_or(u64::MAX)
    }

    /// The block with the given index, which is below [`Pool::block_count`].
    pub(crate) fn block_at(&self, index: u64) -> IpNetwork {
        let prefix = self.effective_block_size();
        let shift = u32::from(width(&self.cidr) - prefix);
        let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
        mask(from_number(&self.cidr, number(self.cidr.ip()).wrapping_add(offset)), prefix)
    }

    /// The block that an address of the pool lies in.
    pub(crate) fn block_of(&self, ip: IpAddr) -> IpNetwork {
        mask(ip, self.effective_block_size())
    }

    /// Whether a block, by its range, is one of this pool's.
    pub(crate) fn owns(&self, block: &IpNetwork) -> bool {
        self.cidr.contains(block.ip()) && block.prefix() == self.effective_block_size()
    }
}

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(range: &IpNetwork) -> Self {
        match range {
            IpNetwork::V4(_) => Self::V4,
            IpNetwork::V6(_) => Self::V6,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    pub(crate) fn of_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a range is no block: it has host bits, or more addresses than a block may have.
pub(crate) fn block_defect(range: &IpNetwork) -> Option<String> {
    if mask(range.ip(), range.prefix()) != *range {
        Some(format!("{range} has host bits set"))
    } else if width(range) - range.prefix() > MAX_BLOCK_BITS {
        Some(format!("{range} is larger than a block may be"))
    } else {
        None
    }
}

/// The addresses of a block, in order.
pub(crate) fn addresses(block: &IpNetwork) -> impl Iterator<Item = IpAddr> + use<> {
    let block = *block;
    let first = number(block.ip());
    let count = 1u128 << (width(&block) - block.prefix()).min(MAX_BLOCK_BITS);
    (0..count).map(move |offset| from_number(&block, first + offset))
}

fn width(range: &IpNetwork) -> u8 {
    match range {
        IpNetwork::V4(_) => 32,
        IpNetwork::V6(_) => 128,
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn from_number(like: &IpNetwork, number: u128) -> IpAddr {
    match like {
        #[expect(clippy::cast_possible_truncation, reason = "IPv4 numbers have 32 bits")]
        IpNetwork::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// The range of the given prefix length that `ip` lies in.
fn mask(ip: IpAddr, prefix: u8) -> IpNetwork {
    let range = IpNetwork::new(ip, prefix).unwrap_or_else(|_| IpNetwork::from(ip));
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, block_size: u8) -> Pool {
        Pool { block_size, ..Pool::new(cidr.parse().unwrap()) }
    }

    #[test]
    fn a_pool_is_cut_into_blocks_in_order() {
        let pool = pool("10.1.0.0/16", 26);

        assert_eq!(pool.block_count(), 1024);
        assert_eq!(pool.block_at(0).to_string(), "10.1.0.0/26");
        assert_eq!(pool.block_at(1).to_string(), "10.1.0.64/26");
        assert_eq!(pool.block_at(1023).to_string(), "10.1.255.192/26");
        assert_eq!(pool.block_of("10.1.0.65".parse().unwrap()), pool.block_at(1));
        assert_eq!(addresses(&pool.block_at(1)).count(), 64);
        assert_eq!(addresses(&pool.block_at(1)).last().unwrap().to_string(), "10.1.0.127");
    }

    #[test]
    fn a_pool_smaller_than_a_block_is_one_block() {
        let pool = pool("10.1.0.0/29", 26);

        assert_eq!((pool.block_count(), pool.capacity()), (1, 6));
        assert_eq!(pool.block_at(0).to_string(), "10.1.0.0/29");
    }

    #[test]
    fn the_largest_and_smallest_pools_do_not_overflow() {
        assert_eq!(pool("::/0", 122).block_count(), u64::MAX);
        assert_eq!(pool("::/0", 122).capacity(), u128::MAX - 1);
        assert_eq!(pool("::/0", 122).block_at(u64::MAX - 1).prefix(), 122);
        assert_eq!(pool("0.0.0.0/0", 32).block_count(), 1 << 32);
        assert_eq!(pool("fd00::1/128", 122).capacity(), 1);
        assert_eq!(pool("255.255.255.255/32", 26).block_at(0).to_string(), "255.255.255.255/32");
    }

    #[test]
    fn the_ends_of_a_pool_are_not_handed_out() {
        let v4 = pool("10.1.0.0/24", 26);
        assert!(!v4.hands_out("10.1.0.0".parse().unwrap()));
        assert!(!v4.hands_out("10.1.0.255".parse().unwrap()));
        assert!(v4.hands_out("10.1.0.63".parse().unwrap()), "the ends of a block are");
        assert!(v4.hands_out("10.1.0.64".parse().unwrap()));
        let v6 = pool("fd00::/64", 122);
        assert!(!v6.hands_out("fd00::".parse().unwrap()));
        assert!(v6.hands_out("fd00::ffff:ffff:ffff:ffff".parse().unwrap()));
        assert!(pool("10.1.0.0/31", 26).hands_out("10.1.0.0".parse().unwrap()));
        assert!(pool("10.1.0.7/32", 26).hands_out("10.1.0.7".parse().unwrap()));
    }

    #[test]
    fn the_gateway_of_a_pool_is_not_handed_out_and_does_not_count() {
        let gateway = |cidr, ip: &str| Pool { gateway: ip.parse().ok(), ..pool(cidr, 26) };
        let with = gateway("10.1.0.0/29", "10.1.0.1");
        assert!(!with.hands_out("10.1.0.1".parse().unwrap()));
        assert!(with.hands_out("10.1.0.2".parse().unwrap()));
        assert_eq!(with.capacity(), 5);
        assert_eq!(gateway("10.1.0.0/29", "10.1.0.7").capacity(), 6, "an end counts once");
        assert_eq!(gateway("10.1.0.0/29", "10.2.0.1").capacity(), 6, "outside of the range");
    }

    #[test]
    fn pools_that_make_no_sense_are_refused() {
        let host_bits = pool("10.1.0.5/16", 26);
        assert!(matches!(host_bits.check(), Err(PoolError::HostBits { .. })));
        for (cidr, block_size) in [("10.1.0.0/16", 19), ("10.1.0.0/16", 33), ("fd00::/64", 26)] {
            let error = pool(cidr, block_size).check();
            assert!(matches!(error, Err(PoolError::BlockSize { .. })), "{cidr} {block_size}");
        }
        let overlapping = [pool("10.0.0.0/8", 26), pool("10.1.0.0/16", 26)];
        assert!(matches!(Pool::check_all(&overlapping), Err(PoolError::Overlap { .. })));
    }
}
