//! What can go wrong while handing out or taking back addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::pool::PoolError;
use crate::Attachment;
use crate::backend::BackendError;
use crate::store::StoreError;

/// Why addresses were not handed out or taken back.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Every address of the pools is held by someone.
    #[error("no free addresses in {}", list(pools))]
    Exhausted {
        /// The pools that were looked through.
        pools: Vec<IpNetwork>,
    },
    /// No pool of a wanted family was given, or all are disabled.
    #[error("no enabled {family} pool to take an address from")]
    NoPool {
        /// `ipv4` or `ipv6`.
        family: &'static str,
    },
    /// The attachment has addresses, or an assignment for it was begun and never undone.
    #[error("{attachment} already has addresses ({})", list(addresses))]
    AlreadyAssigned {
        /// The attachment.
        attachment: Attachment,
        /// What it holds; empty if an assignment was only begun.
        addresses: Vec<IpAddr>,
    },
    /// A requested address lies in none of the pools.
    #[error("requested address {ip} is not in {}", list(pools))]
    RequestedNotInPool {
        /// The address.
        ip: IpAddr,
        /// The pools.
        pools: Vec<IpNetwork>,
    },
    /// A requested address lies in a pool that gives no new addresses.
    #[error("requested address {ip} is in pool {pool}, which is disabled")]
    RequestedInDisabledPool {
        /// The address.
        ip: IpAddr,
        /// The pool.
        pool: IpNetwork,
    },
    /// A requested address is one of the ends of its pool that are never handed out.
    #[error("requested address {ip} is reserved in pool {pool}")]
    RequestedReserved {
        /// The address.
        ip: IpAddr,
        /// The pool.
        pool: IpNetwork,
    },
    /// A requested address is held by someone.
    #[error("requested address {ip} is in use by {holder}")]
    RequestedInUse {
        /// The address.
        ip: IpAddr,
        /// Who holds it.
        holder: Attachment,
    },
    /// A requested address lies in another node's block and borrowing is forbidden.
    #[error("requested address {ip} belongs to node {node} and affinity is strict")]
    RequestedElsewhere {
        /// The address.
        ip: IpAddr,
        /// The node whose block it is.
        node: String,
    },
    /// A pool, or the pools together, cannot be used.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// There is no record of a pool.
    #[error("no pool {pool} was ever used or created")]
    UnknownPool {
        /// The pool.
        pool: IpNetwork,
    },
    /// A pool that is to be removed still has addresses out.
    #[error("pool {pool} has {used} addresses in use")]
    PoolInUse {
        /// The pool.
        pool: IpNetwork,
        /// How many addresses are out.
        used: u64,
    },
    /// A pool was deleted while an address was being taken from it; worth another try, by a configuration
    /// that names another.
    #[error("pool {pool} was deleted while addresses were being assigned from it")]
    PoolDeleted {
        /// The pool.
        pool: IpNetwork,
    },
    /// A pool that was being deleted was enabled meanwhile.
    #[error("pool {pool} was enabled while it was being deleted")]
    PoolEnabled {
        /// The pool.
        pool: IpNetwork,
    },
    /// The attachment was released while its addresses were being assigned.
    #[error("{attachment} was released while addresses were being assigned to it")]
    Interrupted {
        /// The attachment.
        attachment: Attachment,
    },
    /// Others changed the same records again and again until the deadline; worth another try later.
    #[error("too many others change the same blocks at once")]
    Contended,
    /// The datastore failed, or holds a record that does not decode.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IpamError {
    /// Whether the same call may well succeed a little later with nobody having mended anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Contended | Self::Interrupted { .. } | Self::PoolDeleted { .. } => true,
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }

    /// See [`StoreError::is_outdated`].
    pub(super) fn is_outdated(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_outdated())
    }
}

impl From<BackendError> for IpamError {
    fn from(error: BackendError) -> Self {
        Self::Store(error.into())
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
