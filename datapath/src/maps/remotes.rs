//! Which way the pods of other nodes are reached: `remote_v4` and `remote_v6` as one map keyed by
//! prefix.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use margay_abi::{Remote, map_name};

use super::plain::Plain;
use super::{MapError, Opener, errno, open_error};

/// The ways to other nodes' pods. What goes to a prefix that is not here takes the host's stack.
#[derive(Debug)]
pub struct Remotes {
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
}

impl Remotes {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Option<Self>, MapError> {
        let v4 = Trie::open(opener, map_name::REMOTE_V4)?;
        let v6 = Trie::open(opener, map_name::REMOTE_V6)?;
        Ok(v4.zip(v6).map(|(v4, v6)| Self { v4, v6 }))
    }

    /// Writes the way to a prefix, over any that it has. Of several prefixes that an address is in,
    /// the longest counts.
    ///
    /// # Errors
    /// [`MapError::Full`] names the map that has no room left.
    pub fn set(&self, prefix: IpNetwork, remote: &Remote) -> Result<(), MapError> {
        match prefix {
            IpNetwork::V4(prefix) => self.v4.insert(key_v4(prefix), *remote),
            IpNetwork::V6(prefix) => self.v6.insert(key_v6(prefix), *remote),
        }
    }

    /// Removes the way to exactly this prefix; `false` if there was none.
    pub fn remove(&self, prefix: IpNetwork) -> Result<bool, MapError> {
        match prefix {
            IpNetwork::V4(prefix) => self.v4.remove(key_v4(prefix)),
            IpNetwork::V6(prefix) => self.v6.remove(key_v6(prefix)),
        }
    }

    /// The way to an address, by the longest prefix that it is in.
    pub fn get(&self, address: IpAddr) -> Result<Option<Remote>, MapError> {
        match address {
            IpAddr::V4(address) => self.v4.get(Key::new(32, Plain(address.octets()))),
            IpAddr::V6(address) => self.v6.get(Key::new(128, Plain(address.octets()))),
        }
    }

    /// Every entry. One that comes or goes during the walk may be missed.
    pub fn entries(&self) -> Result<BTreeMap<IpNetwork, Remote>, MapError> {
        let mut entries = BTreeMap::new();
        self.v4.for_each(|prefix_len, network, remote| {
            let prefix = Ipv4Network::new(Ipv4Addr::from(network), prefix_len).ok();
            entries.extend(prefix.map(|prefix| (IpNetwork::V4(prefix), remote)));
        })?;
        self.v6.for_each(|prefix_len, network, remote| {
            let prefix = Ipv6Network::new(Ipv6Addr::from(network), prefix_len).ok();
            entries.extend(prefix.map(|prefix| (IpNetwork::V6(prefix), remote)));
        })?;
        Ok(entries)
    }
}

/// Without host bits, which the kernel would keep and [`Remotes::entries`] show.
fn key_v4(prefix: Ipv4Network) -> Key<Plain<[u8; 4]>> {
    Key::new(prefix.prefix().into(), Plain(prefix.network().octets()))
}

fn key_v6(prefix: Ipv6Network) -> Key<Plain<[u8; 16]>> {
    Key::new(prefix.prefix().into(), Plain(prefix.network().octets()))
}

/// The trie of one family.
struct Trie<A> {
    name: &'static str,
    map: Mutex<Ways<A>>,
}

type Ways<A> = LpmTrie<MapData, Plain<A>, Plain<Remote>>;

impl<A: bytemuck::Pod> Trie<A> {
    fn open(opener: &mut Opener<'_>, name: &'static str) -> Result<Option<Self>, MapError> {
        let Some(map) = opener.map(name)? else { return Ok(None) };
        Ok(Some(Self { name, map: Mutex::new(open_error(name, map.try_into())?) }))
    }

    fn insert(&self, key: Key<Plain<A>>, remote: Remote) -> Result<(), MapError> {
        self.lock().insert(&key, Plain(remote), 0).map_err(|error| match errno(&error) {
            // A trie that is full says so by another number than a hash does (`trie_update_elem`).
            Some(libc::ENOSPC) => {
                MapError::Full { map: self.name, max_entries: margay_abi::MAX_REMOTES }
            }
            _ => self.access_error("write", error),
        })
    }

    fn remove(&self, key: Key<Plain<A>>) -> Result<bool, MapError> {
        match self.lock().remove(&key) {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.access_error("remove from", error)),
        }
    }

    fn get(&self, key: Key<Plain<A>>) -> Result<Option<Remote>, MapError> {
        match self.lock().get(&key, 0) {
            Ok(Plain(remote)) => Ok(Some(remote)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.access_error("read", error)),
        }
    }

    fn for_each(&self, mut visit: impl FnMut(u8, A, Remote)) -> Result<(), MapError> {
        for entry in self.lock().iter() {
            let (key, Plain(remote)) = entry.map_err(|error| self.access_error("walk", error))?;
            let Plain(network) = key.data();
            visit(key.prefix_len() as u8, network, remote);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Ways<A>> {
        // As in `table`: the state behind the lock is the kernel's.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access_error(&self, operation: &'static str, source: aya::maps::MapError) -> MapError {
        MapError::Access { operation, map: self.name, source: Box::new(source) }
    }
}

impl<A> fmt::Debug for Trie<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trie").field(&self.name).finish()
    }
}
