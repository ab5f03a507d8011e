//! Address management.

mod error;
mod pool;

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::Attachment;
use crate::records::PodRef;
use crate::store::Store;

pub use error::IpamError;
pub(crate) use pool::Family;
pub use pool::{Encapsulation, Pool, PoolError};

/// How long a released address rests before it is handed out again, while there are others.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);

/// What an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignRequest {
    /// Who the addresses are for.
    pub attachment: Attachment,
    /// The pod, if the runtime named one; kept with the addresses for people to read.
    pub pod: Option<PodRef>,
    /// Path of the network namespace, by which [`Ipam::reclaim_earlier_boots`] judges.
    pub netns: Option<String>,
    /// The pools to take from, both families mixed, the preferred ones first.
    pub pools: Vec<Pool>,
    /// Whether one IPv4 address is wanted.
    pub ipv4: bool,
    /// Whether one IPv6 address is wanted.
    pub ipv6: bool,
    /// Addresses that are wanted by number. They stand in for the free choice in their family.
    pub requested: Vec<IpAddr>,
    /// Whether only blocks of this node may be used.
    pub strict_affinity: bool,
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// The pool.
    pub pool: IpNetwork,
    /// Number of addresses it can hand out at all.
    pub capacity: u128,
    /// Number of addresses that are out.
    pub used: u128,
}

impl PoolUsage {
    /// Number of addresses left.
    pub fn free(&self) -> u128 {
        self.capacity.saturating_sub(self.used)
    }
}

/// Address management as one node in one boot sees it.
pub struct Ipam<'a> {
    store: &'a Store,
    node: String,
    boot_id: String,
    cool_down: Duration,
}

impl<'a> Ipam<'a> {
    /// Address management for `node`, whose kernel's boot ID is `boot_id`.
    pub fn new(store: &'a Store, node: &str, boot_id: &str) -> Self {
        let (node, boot_id) = (node.to_owned(), boot_id.to_owned());
        Self { store, node, boot_id, cool_down: DEFAULT_COOL_DOWN }
    }

    /// Replaces [`DEFAULT_COOL_DOWN`].
    #[must_use]
    pub fn cool_down(mut self, cool_down: Duration) -> Self {
        self.cool_down = cool_down;
        self
    }

    /// Hands out what the request asks for, all of it or nothing; in the order requested addresses,
    /// IPv4, IPv6.
    pub fn assign(&self, request: &AssignRequest) -> Result<Vec<IpAddr>, IpamError> {
        todo!("{request:?} {} {} {:?}", self.node, self.boot_id, self.cool_down)
    }

    /// Takes back everything that the attachment holds, and says what that was; nothing held is
    /// fine.
    pub fn release(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, IpamError> {
        todo!("{attachment}")
    }

    /// What the attachment holds.
    pub fn assigned(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, IpamError> {
        todo!("{attachment}")
    }

    /// The attachments of a network that hold addresses, or whose assignment was begun.
    pub fn attachments(&self, network: &str) -> Result<Vec<Attachment>, IpamError> {
        todo!("{network} {}", self.store.pools()?.len())
    }

    /// Whether each pool can give this node another address, in the order given. Made for STATUS:
    /// its cost does not grow with the addresses that are out, unless the pool is full.
    pub fn has_free(&self, pools: &[Pool], strict_affinity: bool) -> Result<Vec<bool>, IpamError> {
        todo!("{pools:?} {strict_affinity}")
    }

    /// How full each pool is, exactly. Reads every block of the pools.
    pub fn usage(&self, pools: &[Pool]) -> Result<Vec<PoolUsage>, IpamError> {
        todo!("{pools:?}")
    }

    /// Once per boot, releases what this node's earlier boots left behind: everything whose network
    /// namespace `is_alive` denies. Returns the attachments released; from the second call in a
    /// boot on it is one read and returns none.
    pub fn reclaim_earlier_boots(
        &self,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Attachment>, IpamError> {
        todo!("{}", is_alive(""))
    }

    /// Forgets a pool that has no addresses out, with its blocks, so that it can come back with
    /// another block size. For moments when nobody assigns from it.
    pub fn remove_pool(&self, pool: &IpNetwork) -> Result<(), IpamError> {
        todo!("{pool}")
    }
}
