//! The pod's end of an attachment: addresses, link, routes, sysctls, set from inside the pod's
//! network namespace.
//!
//! Everything here lives in the pod's namespace and goes with the veth pair: there is nothing to
//! undo but the pair itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use margay_abi::{GATEWAY_V4, GATEWAY_V6};

use crate::netlink::{LinkInfo, Netlink, NetlinkError, NewRoute};
use crate::netns::{Netns, NetnsError};
use crate::sysctl::{self, SysctlError};

/// Why the pod's end could not be set up or looked at.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A netlink request in the pod's namespace failed.
    #[error("in the pod's network namespace")]
    Netlink(#[from] NetlinkError),
    /// A sysctl of the pod could not be set.
    #[error("in the pod's network namespace")]
    Sysctl(#[from] SysctlError),
    /// The namespace could not be entered.
    #[error("use the pod's network namespace")]
    Netns(#[from] NetnsError),
    /// No runtime for the thread in the namespace.
    #[error("start the netlink runtime in the pod's network namespace")]
    Runtime(#[source] std::io::Error),
    /// The interface is not in the namespace.
    #[error("interface {ifname:?} does not exist in the pod's network namespace")]
    NoInterface {
        /// The interface looked for.
        ifname: String,
    },
}

/// What the pod's end is to be.
#[derive(Clone, Debug)]
pub struct PodSide {
    /// Name of the interface.
    pub ifname: String,
    /// Its addresses, each with a host prefix.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod's default routes go over it.
    pub default_route: bool,
    /// Other destinations that go over it.
    pub routes: Vec<IpNetwork>,
    /// Whether the pod may forward packets.
    pub allow_ip_forwarding: bool,
}

impl PodSide {
    /// The gateway of a family: an address that is on no interface; the dataplane answers for it.
    #[must_use]
    pub fn gateway(ipv4: bool) -> IpAddr {
        if ipv4 {
            IpAddr::V4(Ipv4Addr::from(GATEWAY_V4))
        } else {
            IpAddr::V6(Ipv6Addr::from(GATEWAY_V6))
        }
    }

    /// The routes over an interface with this index, in the order in which they must be made.
    #[must_use]
    pub fn routes(&self, ifindex: u32) -> Vec<NewRoute> {
        let mut routes = Vec::new();
        for ipv4 in [true, false] {
            if !self.has(|address| address.is_ipv4() == ipv4) {
                continue;
            }
            let gateway = Self::gateway(ipv4);
            // The standard plugin's shape. Only one interface of a pod can have the on-link route:
            // the others reach the gateway by the flag on each of their routes.
            if ipv4 && self.default_route {
                routes.push(NewRoute::on_link(gateway, ifindex));
            }
            let default = self.default_route.then(|| everything(ipv4));
            let others = self.routes.iter().copied().filter(|route| route.is_ipv4() == ipv4);
            routes.extend(default.into_iter().chain(others).map(|destination| NewRoute {
                destination,
                gateway: Some(gateway),
                onlink: ipv4 && !self.default_route,
                ifindex,
                // Two interfaces on one network have routes to the same destinations.
                priority: (!self.default_route).then_some(ifindex),
            }));
        }
        routes
    }

    /// Sets up the pod's end, which exists and is down.
    ///
    /// # Errors
    /// At the first request that fails; what was set stays until the link is deleted.
    pub fn configure(&self, netns: &Netns) -> Result<(), PodError> {
        in_pod(netns, async |netlink| {
            let ifindex = link(&netlink, &self.ifname).await?.index;
            self.set_sysctls()?;
            for &address in &self.addresses {
                netlink.add_address(ifindex, address).await?;
            }
            netlink.set_link_up(ifindex).await?;
            for route in self.routes(ifindex) {
                netlink.add_route(&route).await?;
            }
            Ok(())
        })
    }

    fn set_sysctls(&self) -> Result<(), SysctlError> {
        if self.has(IpAddr::is_ipv6) {
            let conf = format!("ipv6/conf/{}", self.ifname);
            // Runtimes turn IPv6 off in new sandboxes until a plugin wants it.
            sysctl::ensure(&format!("{conf}/disable_ipv6"), "0")?;
            sysctl::ensure(&format!("{conf}/accept_dad"), "0")?;
            sysctl::ensure(&format!("{conf}/accept_ra"), "0")?;
        }
        for (key, value) in self.forwarding_sysctls() {
            sysctl::ensure(&key, value)?;
        }
        Ok(())
    }

    /// The sysctls that let the pod forward packets, if it may, and their values.
    #[must_use]
    pub fn forwarding_sysctls(&self) -> Vec<(String, &'static str)> {
        let mut sysctls = Vec::new();
        if self.allow_ip_forwarding && self.has(IpAddr::is_ipv4) {
            sysctls.push(("ipv4/ip_forward".to_owned(), "1"));
        }
        if self.allow_ip_forwarding && self.has(IpAddr::is_ipv6) {
            sysctls.push(("ipv6/conf/all/forwarding".to_owned(), "1"));
        }
        sysctls
    }

    fn has(&self, family: impl Fn(&IpAddr) -> bool) -> bool {
        self.addresses.iter().any(family)
    }
}

/// Runs `work` with a netlink socket of the pod's namespace.
///
/// # Errors
/// Those of `work`, and when the namespace cannot be entered.
pub fn in_pod<T: Send>(
    netns: &Netns,
    work: impl AsyncFnOnce(Netlink) -> Result<T, PodError> + Send,
) -> Result<T, PodError> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(PodError::Runtime)?;
        runtime.block_on(async { work(Netlink::open()?).await })
    })?
}

/// An interface of the pod.
///
/// # Errors
/// [`PodError::NoInterface`] when there is none of this name.
pub async fn link(netlink: &Netlink, ifname: &str) -> Result<LinkInfo, PodError> {
    let link = netlink.link_by_name(ifname).await?;
    link.ok_or_else(|| PodError::NoInterface { ifname: ifname.to_owned() })
}

fn everything(ipv4: bool) -> IpNetwork {
    let unspecified =
        if ipv4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    IpNetwork::new(unspecified, 0).unwrap_or_else(|_| IpNetwork::from(unspecified))
}
