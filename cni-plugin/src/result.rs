//! The result of an ADD.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay_datastore::Endpoint;
use rscni_types::ipnet::IpNet;
use rscni_types::types::{CNIResult, Dns, Interface, IpConfig, Route};

use crate::pod::PodSide;

/// Index of the pod's interface in the result.
const POD_INTERFACE: u32 = 1;

/// Both ends of the veth pair, the pod's addresses with their gateways, its routes.
#[must_use]
pub fn of_add(endpoint: &Endpoint, pod: &PodSide, dns: Option<Dns>) -> CNIResult {
    let interface = |name: &str, mac, sandbox| Interface {
        name: name.to_owned(),
        mac: mac_text(mac),
        mtu: Some(endpoint.mtu),
        sandbox,
        socket_path: None,
        pci_id: None,
    };
    let sandbox = Some(endpoint.netns.clone());
    CNIResult {
        interfaces: vec![
            interface(&endpoint.host_veth, endpoint.host_mac, None),
            interface(endpoint.attachment.ifname(), endpoint.pod_mac, sandbox),
        ],
        ips: endpoint.ips.iter().map(|&ip| ip_config(ip)).collect(),
        // The interface index is of no meaning outside the pod, and in the result of none at all.
        routes: pod.routes(0).into_iter().filter_map(route).collect(),
        dns,
    }
}

/// A result behind that of the plugins before in the chain, which is handed on as it is.
#[must_use]
pub fn after(mut previous: CNIResult, ours: CNIResult) -> CNIResult {
    let offset = u32::try_from(previous.interfaces.len()).unwrap_or(u32::MAX);
    previous.interfaces.extend(ours.interfaces);
    previous.ips.extend(ours.ips.into_iter().map(|ip| IpConfig {
        interface: ip.interface.map(|index| index.saturating_add(offset)),
        ..ip
    }));
    previous.routes.extend(ours.routes);
    previous.dns = ours.dns.or(previous.dns);
    previous
}

/// A MAC address as `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip_config(ip: IpNetwork) -> IpConfig {
    IpConfig {
        interface: Some(POD_INTERFACE),
        address: host_prefix(ip.ip()),
        gateway: Some(PodSide::gateway(ip.is_ipv4())),
    }
}

fn route(route: crate::netlink::NewRoute) -> Option<Route> {
    // The on-link route to the gateway is how the pod reaches it, not where the pod can go.
    let gateway = route.gateway?;
    let destination = IpNet::new(route.destination.ip(), route.destination.prefix()).ok()?;
    Some(Route {
        dst: destination,
        gw: Some(gateway),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    })
}

fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
