//! The node's addresses on the network between the nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay::mtu::ELSEWHERE;
use margay::netlink::{AddressInfo, Netlink, NetlinkError};

/// Where this node is on the network between the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Its addresses with the prefix lengths of their subnets, at most one of a family.
    pub addresses: Vec<IpNetwork>,
    /// MTU of the interface that has them, in bytes; the least, if they are several.
    pub mtu: u32,
}

impl Underlay {
    /// Finds out: as configured, else the first address of each family of the interface that the
    /// default route leads over. An IPv6 address is looked for on the interface of the IPv4 default
    /// route too, where IPv6 has none.
    ///
    /// # Errors
    /// When a netlink request fails.
    pub async fn detect(netlink: &Netlink, configured: &[IpNetwork]) -> Result<Self, NetlinkError> {
        let all = netlink.all_addresses().await?;
        let addresses = match configured {
            [] => first_of_each_family(netlink, &all).await?,
            configured => configured.to_vec(),
        };
        let mut mtu = None;
        for info in &all {
            if addresses.iter().any(|address| address.ip() == info.address)
                && let Some(link) = netlink.link_by_index(info.ifindex).await?
            {
                mtu = Some(mtu.map_or(link.mtu, |least: u32| least.min(link.mtu)));
            }
        }
        Ok(Self { addresses, mtu: mtu.unwrap_or(DEFAULT_MTU) })
    }
}

async fn first_of_each_family(
    netlink: &Netlink,
    all: &[AddressInfo],
) -> Result<Vec<IpNetwork>, NetlinkError> {
    let mut addresses: Vec<IpNetwork> = Vec::new();
    for elsewhere in ELSEWHERE {
        let Some((_, interface)) = netlink.next_hop_to(elsewhere).await? else { continue };
        for info in all.iter().filter(|info| info.ifindex == interface) {
            let has_one = addresses.iter().any(|one| one.is_ipv4() == info.address.is_ipv4());
            if !has_one && is_of_a_node(info.address) {
                addresses.extend(IpNetwork::new(info.address, info.prefix_length).ok());
            }
        }
    }
    Ok(addresses)
}

/// MTU where none of the interfaces has a configured address, in bytes: that of Ethernet.
const DEFAULT_MTU: u32 = 1500;

fn is_of_a_node(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
