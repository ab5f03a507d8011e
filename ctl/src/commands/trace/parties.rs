//! Who is at the ends: pods by name, container ID or address; the node, other nodes, the world.

use std::net::{IpAddr, Ipv6Addr};

use margay::mtu;
use margay::netlink::Netlink;
use margay_abi::HOST_VETH_MAC;
use margay_datapath::{Datapath, Remote, remote_mode};
use margay_datastore::Endpoint;

use super::From;
use super::packet::{Mac, PacketError};
use crate::endpoints;
use crate::failure::Failure;
use crate::node::Node;

/// What is known of pods and addresses.
pub(super) struct Parties<'a> {
    endpoints: Vec<Endpoint>,
    datapath: &'a Datapath,
    netlink: &'a Netlink,
}

/// One end.
#[derive(Clone, Debug)]
pub(super) struct Party {
    /// What a person calls it.
    pub(super) name: String,
    /// The only one, or one or several of each family.
    pub(super) addresses: Vec<IpAddr>,
}

/// Where a packet begins, as far as this node is concerned.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A pod of this node, by its host veth.
    Pod { ifindex: u32, interface: String, pod_mac: Mac, host_mac: Mac },
    /// The host itself.
    Host,
    /// Another node, through the overlay or plainly.
    Node { interface: Interface, by_overlay: bool },
    /// The world.
    Outside { interface: Interface },
}

/// An interface that leads away.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
}

/// The source MAC address of what comes from elsewhere: any will do, none is looked at.
const ELSEWHERE: Mac = [2, 0, 0, 0, 0, 1];

impl Origin {
    /// Of a frame from there for one: whom it is for, and whom it is from.
    pub(super) fn macs(&self) -> [Mac; 2] {
        match self {
            Self::Pod { pod_mac, host_mac, .. } => [*host_mac, *pod_mac],
            Self::Host => [HOST_VETH_MAC; 2],
            Self::Node { interface, .. } | Self::Outside { interface } => {
                [interface.mac, ELSEWHERE]
            }
        }
    }
}

impl Party {
    /// Its address of a family.
    pub(super) fn address(&self, is_ipv4: bool) -> Result<IpAddr, PacketError> {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == is_ipv4);
        found.copied().ok_or_else(|| PacketError::NoAddress {
            name: self.name.clone(),
            family: if is_ipv4 { "IPv4" } else { "IPv6" },
        })
    }
}

impl<'a> Parties<'a> {
    /// Reads the records of pods. Without a datastore, addresses have to do.
    pub(super) fn new(node: &Node, datapath: &'a Datapath, netlink: &'a Netlink) -> Self {
        let mut endpoints = Vec::new();
        if let Ok(store) = node.store() {
            for network in &node.networks {
                endpoints.extend(store.endpoints(&network.name).unwrap_or_default());
            }
        }
        Self { endpoints, datapath, netlink }
    }

    /// Whoever goes by a name, a container ID or an address.
    pub(super) fn party(&self, text: &str) -> Result<Party, Failure> {
        if let Ok(address) = text.parse() {
            return Ok(Party { name: self.name_of(address), addresses: vec![address] });
        }
        let endpoint = endpoints::find(&self.endpoints, text)?;
        let addresses = endpoint.ips.iter().map(|ip| ip.ip()).collect();
        Ok(Party { name: endpoints::name(endpoint), addresses })
    }

    /// What a person calls the one that has an address.
    pub(super) fn name_of(&self, address: IpAddr) -> String {
        let owner = self.owner(address).map(endpoints::name);
        owner.unwrap_or_else(|| address.to_string())
    }

    fn owner(&self, address: IpAddr) -> Option<&Endpoint> {
        let has = |endpoint: &&Endpoint| endpoint.ips.iter().any(|ip| ip.ip() == address);
        self.endpoints.iter().find(has)
    }

    /// Where a packet of a sender begins.
    pub(super) async fn origin(
        &self,
        sender: IpAddr,
        from: Option<From>,
    ) -> Result<Origin, Failure> {
        let pod = self.pod(sender).await?;
        let remote = self.datapath.remotes().get(sender)?;
        let from = match from {
            Some(from) => from,
            None if pod.is_some() => From::Pod,
            None if remote.is_some() => From::Node,
            None if self.is_of_host(sender).await? => From::Host,
            None => From::Outside,
        };
        match from {
            From::Pod => pod.ok_or_else(|| Failure::Unknown {
                kind: "pod of this node with the address",
                name: sender.to_string(),
                list: "margayctl endpoint list",
            }),
            From::Host => Ok(Origin::Host),
            From::Node => self.other_node(remote, false).await,
            From::Overlay => self.other_node(remote, true).await,
            From::Outside => Ok(Origin::Outside { interface: self.way_to(sender).await? }),
        }
    }

    async fn pod(&self, address: IpAddr) -> Result<Option<Origin>, Failure> {
        let known = self.datapath.pods().get(address)?;
        let record = self.owner(address);
        let link = match (known, record) {
            (Some(pod), _) => self.netlink.link_by_index(pod.ifindex).await?,
            (None, Some(endpoint)) => self.netlink.link_by_name(&endpoint.host_veth).await?,
            (None, None) => None,
        };
        let Some(link) = link else { return Ok(None) };
        let of_record = record.map(|endpoint| (endpoint.pod_mac, endpoint.host_mac));
        let of_map = known.map(|pod| (pod.pod_mac, pod.host_mac));
        Ok(of_map.or(of_record).map(|(pod_mac, host_mac)| Origin::Pod {
            ifindex: link.index,
            interface: link.name,
            pod_mac,
            host_mac,
        }))
    }

    async fn other_node(&self, remote: Option<Remote>, is_asked: bool) -> Result<Origin, Failure> {
        let overlay = self.datapath.overlay()?;
        let device = match remote {
            Some(remote) => overlay.towards(&remote.node),
            None if overlay.ifindex_v4 == 0 => overlay.ifindex_v6,
            None => overlay.ifindex_v4,
        };
        let is_vxlan = remote.is_some_and(|remote| remote.mode == remote_mode::VXLAN);
        let by_overlay = is_asked || (is_vxlan && device != 0);
        let interface = match by_overlay {
            true => self.interface(device).await?,
            false => {
                let node = remote.map(|remote| node_address(&remote));
                self.way_to(node.unwrap_or(mtu::ELSEWHERE[0])).await?
            }
        };
        Ok(Origin::Node { interface, by_overlay })
    }

    async fn is_of_host(&self, address: IpAddr) -> Result<bool, Failure> {
        let addresses = self.netlink.all_addresses().await?;
        Ok(addresses.iter().any(|info| info.address == address))
    }

    /// The interface by which an address is reached.
    async fn way_to(&self, address: IpAddr) -> Result<Interface, Failure> {
        let route = self.netlink.route_to(address).await?;
        self.interface(route.and_then(|route| route.ifindex).unwrap_or_default()).await
    }

    async fn interface(&self, ifindex: u32) -> Result<Interface, Failure> {
        let link = match ifindex {
            0 => None,
            ifindex => self.netlink.link_by_index(ifindex).await?,
        };
        let link = link.ok_or_else(|| Failure::Unknown {
            kind: "interface by which the packet could come, with the index",
            name: ifindex.to_string(),
            list: "ip link",
        })?;
        Ok(Interface { ifindex: link.index, name: link.name, mac: link.mac })
    }

    /// Name of an interface, or its number.
    pub(super) async fn interface_name(&self, ifindex: u32) -> Result<String, Failure> {
        let link = self.netlink.link_by_index(ifindex).await?;
        Ok(link.map_or_else(|| format!("interface {ifindex}"), |link| link.name))
    }
}

/// The node that has a pod.
pub(super) fn node_address(remote: &Remote) -> IpAddr {
    let address = Ipv6Addr::from(remote.node);
    address.to_ipv4_mapped().map_or(address.into(), IpAddr::V4)
}
