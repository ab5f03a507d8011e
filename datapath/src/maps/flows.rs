//! What the programs remember of flows: `flows_v4` and `flows_v6`.
//!
//! The programs write them by themselves. Losing an entry costs speed, never correctness.

use std::collections::HashSet;

use margay_abi::{Flow, FlowKeyV4, FlowKeyV6};

use super::{MapError, Table};

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
