//! What the programs remember of flows: `flows_v4` and `flows_v6`.
//!
//! The programs write them by themselves. Losing an entry costs speed, never correctness.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use margay_abi::{Flow, FlowKeyV4, FlowKeyV6};

use super::{MapError, Table};

/// What the programs remember of one flow, both directions in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowEntry {
    /// The two ends, the lesser first. For ICMP echo the identifier is both ports.
    pub ends: [SocketAddr; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`margay_abi::flow_verdict`].
    pub verdict: u8,
}

/// The flow verdicts of this node.
#[derive(Debug)]
pub struct Flows {
    v4: Table<FlowKeyV4, Flow>,
    v6: Table<FlowKeyV6, Flow>,
}

impl Flows {
    pub(super) fn new(v4: Table<FlowKeyV4, Flow>, v6: Table<FlowKeyV6, Flow>) -> Self {
        Self { v4, v6 }
    }

    /// The verdict on an IPv4 flow, if there is one; by the tuple of either direction.
    pub fn get_v4(&self, key: &FlowKeyV4) -> Result<Option<Flow>, MapError> {
        self.v4.get(key.canonical())
    }

    /// The verdict on an IPv6 flow, if there is one; by the tuple of either direction.
    pub fn get_v6(&self, key: &FlowKeyV6) -> Result<Option<Flow>, MapError> {
        self.v6.get(key.canonical())
    }

    /// Gives an IPv4 flow a verdict, as the programs do by themselves: for who looks at them packet
    /// by packet.
    pub fn set_v4(&self, key: &FlowKeyV4, verdict: u8) -> Result<(), MapError> {
        self.v4.insert(key.canonical(), Flow { verdict, reserved: [0; 3] })
    }

    /// The same for IPv6.
    pub fn set_v6(&self, key: &FlowKeyV6, verdict: u8) -> Result<(), MapError> {
        self.v6.insert(key.canonical(), Flow { verdict, reserved: [0; 3] })
    }

    /// Writes what only programs write.
    #[cfg(test)]
    pub(crate) fn fill_for_test(&self, flows: u8) {
        for flow in 0..flows {
            let mut v4: FlowKeyV4 = bytemuck::Zeroable::zeroed();
            v4.src[3] = flow;
            let mut v6: FlowKeyV6 = bytemuck::Zeroable::zeroed();
            v6.src[15] = flow;
            self.set_v4(&v4, margay_abi::flow_verdict::DIRECT).expect("insert");
            self.set_v6(&v6, margay_abi::flow_verdict::DIRECT).expect("insert");
        }
    }

    /// Flows in both maps.
    pub fn count(&self) -> Result<usize, MapError> {
        Ok(keys(&self.v4)?.len() + keys(&self.v6)?.len())
    }

    /// Flows of a family, and how many there is room for.
    pub fn fill(&self, ipv4: bool) -> Result<(usize, u32), MapError> {
        Ok(match ipv4 {
            true => (keys(&self.v4)?.len(), self.v4.max_entries()),
            false => (keys(&self.v6)?.len(), self.v6.max_entries()),
        })
    }

    /// Every flow, in order. One that comes or goes during the walk may be missed.
    pub fn entries(&self) -> Result<BTreeSet<FlowEntry>, MapError> {
        let mut entries = BTreeSet::new();
        let port = |octets| u16::from_be_bytes(octets);
        self.v4.for_each(|key, flow| {
            let end = |ip: [u8; 4], of| SocketAddr::new(Ipv4Addr::from(ip).into(), port(of));
            let ends = [end(key.src, key.src_port), end(key.dst, key.dst_port)];
            entries.insert(FlowEntry { ends, protocol: key.protocol, verdict: flow.verdict });
        })?;
        self.v6.for_each(|key, flow| {
            let end = |ip: [u8; 16], of| SocketAddr::new(Ipv6Addr::from(ip).into(), port(of));
            let ends = [end(key.src, key.src_port), end(key.dst, key.dst_port)];
            entries.insert(FlowEntry { ends, protocol: key.protocol, verdict: flow.verdict });
        })?;
        Ok(entries)
    }

    /// Forgets every flow known at the time of the call.
    pub fn clear(&self) -> Result<(), MapError> {
        for key in keys(&self.v4)? {
            self.v4.remove(key)?;
        }
        for key in keys(&self.v6)? {
            self.v6.remove(key)?;
        }
        Ok(())
    }
}

fn keys<K, V>(table: &Table<K, V>) -> Result<HashSet<K>, MapError>
where
    K: bytemuck::Pod + std::hash::Hash + Eq,
    V: bytemuck::Pod,
{
    let mut keys = HashSet::new();
    table.for_each(|key, _| {
        keys.insert(key);
    })?;
    Ok(keys)
}
