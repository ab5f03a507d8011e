//! Pools, blocks, allocations, workload endpoints and nodes, on a small key-value trait with
//! compare-and-swap.
//!
//! Three layers, each of which knows only the one below:
//!
//! - [`Ipam`] hands out addresses. Its promise: no address is ever held by two attachments, and
//!   whatever an attachment holds can be found again from the attachment alone.
//! - [`Store`] reads and writes typed records. Its promise: a record that does not decode is an
//!   error that names its key, never a panic and never a default.
//! - [`Backend`] keeps bytes under keys. [`Sqlite`] is the one for a single node, [`Etcd`] for several.
//!
//! Everything here is synchronous: a CNI verb lives for a few milliseconds and has nothing else to
//! do meanwhile. Nothing here touches namespaces or BPF, and the network only to reach etcd.

#![deny(unsafe_code)]

mod attachment;
mod backend;
mod departure;
mod etcd;
mod follow;
mod ipam;
mod keys;
mod records;
mod sqlite;
mod store;
mod unopened;

#[cfg(any(test, feature = "test-support"))]
pub mod testing;

pub use attachment::{Attachment, AttachmentError, is_cni_name};
pub use backend::{
    Along, Backend, BackendError, Cause, Event, Revision, Unchanged, Versioned, Watch, Write,
};
pub use departure::{Caution, HEARTBEAT_INTERVAL, RemoveNodeError, RemovedNode, remove_node};
pub use etcd::{ClientCert, Credentials, Etcd, EtcdConf, EtcdConfError, Lease, Password};
pub use follow::{Change, Fact, Follower, Topic};
pub use ipam::{
    AssignRequest, BlockEntry, DEFAULT_COOL_DOWN, Encapsulation, Holder, Holding, Ipam, IpamError,
    Ledger, Placement, Pool, PoolError, PoolUsage, Slot, TendedBlocks,
};
pub use records::{
    Bandwidth, Endpoint, EndpointPort, EndpointState, Heartbeat, Node, OverlayEnd, PodRef,
    Protocol, RateLimit,
};
pub use sqlite::Sqlite;
pub use store::{Store, StoreError};
pub use unopened::Unopened;
