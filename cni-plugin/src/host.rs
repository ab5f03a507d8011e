//! The host's end of an attachment: sysctls of the host veth, its state, the neighbour entries and
//! routes to the pod.
//!
//! Everything here goes with the host veth when that is deleted, but for the two switches that let
//! the host forward at all; those belong to the host and stay.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::forwarding;
use crate::netlink::{Netlink, NetlinkError, NewRoute, ROUTE_PROTOCOL};
use crate::sysctl::{self, SysctlError};

/// Why the host's end could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's address is routed to another interface.
    #[error("address {address} is routed over interface {interface} already")]
    RouteTaken {
        /// The pod's address.
        address: IpAddr,
        /// Name of the interface that has the route.
        interface: String,
    },
}

/// The host veth, once it exists.
#[derive(Clone, Debug)]
pub struct HostSide {
    /// Name of the host veth.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
}

impl HostSide {
    /// Sets the sysctls of the host veth, which is still down. `proxy` lets the host's stack answer
    /// ARP and NDP for the gateway, as the standard plugin has it; without, a program answers.
    ///
    /// # Errors
    /// When one cannot be set.
    pub fn set_sysctls(&self, proxy: bool) -> Result<(), SysctlError> {
        if self.has(IpAddr::is_ipv4) {
            forwarding::ensure_ipv4()?;
        }
        if self.has(IpAddr::is_ipv6) {
            forwarding::ensure_ipv6()?;
        }
        for (key, value) in self.sysctls(proxy) {
            sysctl::ensure(&key, value)?;
        }
        Ok(())
    }

    /// The sysctls of the host veth and the values that they must have.
    #[must_use]
    pub fn sysctls(&self, proxy: bool) -> Vec<(String, &'static str)> {
        let on_if = |condition| if condition { "1" } else { "0" };
        let name = &self.name;
        let mut sysctls = vec![
            (format!("ipv4/conf/{name}/forwarding"), "1"),
            (format!("ipv4/conf/{name}/proxy_arp"), on_if(proxy)),
        ];
        if proxy {
            sysctls.push((format!("ipv4/neigh/{name}/proxy_delay"), "0"));
        }
        let conf = format!("ipv6/conf/{name}");
        if sysctl::has_ipv6(name) {
            // A pod must not reconfigure the host, with or without IPv6 addresses of its own.
            sysctls.push((format!("{conf}/accept_ra"), "0"));
            sysctls.push((format!("{conf}/accept_redirects"), "0"));
        }
        if self.has(IpAddr::is_ipv6) {
            sysctls.extend([
                (format!("{conf}/disable_ipv6"), "0"),
                // The link-local address must be the one that the MAC address gives: the gateway.
                (format!("{conf}/addr_gen_mode"), "0"),
                (format!("{conf}/accept_dad"), "0"),
                (format!("{conf}/forwarding"), "1"),
                (format!("{conf}/proxy_ndp"), on_if(proxy)),
            ]);
        }
        sysctls
    }

    /// Adds neighbour entries and routes to the pod. The host veth is up: the kernel refuses IPv4
    /// routes over one that is down.
    ///
    /// # Errors
    /// [`HostError::RouteTaken`] when another interface has one of the routes.
    pub async fn route_to_pod(&self, netlink: &Netlink) -> Result<(), HostError> {
        for &address in &self.addresses {
            netlink.set_permanent_neighbour(self.ifindex, address, self.pod_mac).await?;
            let route = NewRoute::on_link(address, self.ifindex);
            match netlink.add_route(&route).await {
                Err(error) if error.is(Errno::EXIST) => {
                    return Err(self.route_taken(netlink, address).await);
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Whether the host's route to an address of the pod is there, and margay's.
    pub(crate) async fn has_route(
        &self,
        netlink: &Netlink,
        address: IpAddr,
    ) -> Result<bool, NetlinkError> {
        let route = netlink.route_to(address).await?;
        Ok(route.is_some_and(|route| {
            route.ifindex == Some(self.ifindex) && route.protocol == ROUTE_PROTOCOL
        }))
    }

    /// Whether the permanent neighbour for an address of the pod is there.
    pub(crate) async fn has_neighbour(
        &self,
        netlink: &Netlink,
        address: IpAddr,
    ) -> Result<bool, NetlinkError> {
        let neighbour = netlink.neighbour(self.ifindex, address).await?;
        Ok(neighbour.is_some_and(|found| found.permanent && found.mac == Some(self.pod_mac)))
    }

    /// A route goes with its link, so there is a live interface behind one that exists: another
    /// pod's, whatever the datastore says. Taking the route over would cut that pod off.
    pub(crate) async fn route_taken(&self, netlink: &Netlink, address: IpAddr) -> HostError {
        let owner = async {
            let Some(ifindex) = netlink.route_to(address).await?.and_then(|route| route.ifindex)
            else {
                return Ok(None);
            };
            netlink.link_by_index(ifindex).await
        };
        match owner.await {
            Ok(Some(link)) => HostError::RouteTaken { address, interface: link.name },
            Ok(None) => HostError::RouteTaken { address, interface: "none".to_owned() },
            Err(error) => HostError::Netlink(error),
        }
    }

    fn has(&self, family: impl Fn(&IpAddr) -> bool) -> bool {
        self.addresses.iter().any(family)
    }
}
