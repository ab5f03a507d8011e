//! The pod's end.

use ipnetwork::IpNetwork;
use margay_datastore::Endpoint;
use rscni_types::types::{CNIResult, Route};

use super::{Aspect, Defect, Defects, Promise};
use crate::commands;
use crate::error::Error;
use crate::ipam::IpamResult;
use crate::netns::Netns;
use crate::pod::{self, PodError, PodSide};

/// Looks at the pod's end, in the sandbox's namespace. Without a promise, nothing is known of routes and
/// forwarding.
///
/// # Errors
/// When the namespace cannot be entered, or something in it not be looked at.
pub fn inspect(
    netns: &Netns,
    endpoint: &Endpoint,
    promise: Option<Promise<'_>>,
) -> Result<Vec<Defect>, Error> {
    let pod = pod_side(endpoint, promise);
    let mut defects = Defects::default();
    match look(&mut defects, netns, endpoint, &pod) {
        Err(error @ PodError::NoInterface { .. }) => {
            defects.push(Aspect::PodInterface, error.to_string());
        }
        outcome => outcome?,
    }
    Ok(defects.0)
}

fn look(
    defects: &mut Defects,
    netns: &Netns,
    endpoint: &Endpoint,
    pod: &PodSide,
) -> Result<(), PodError> {
    let ifname = &pod.ifname;
    pod::in_pod(netns, async |netlink| {
        let link = pod::link(&netlink, ifname).await?;
        defects.compare_link(Aspect::PodInterface, "pod", &link, endpoint.pod_mac, endpoint.mtu);
        defects.expect(Aspect::PodInterface, link.mac == endpoint.pod_mac, || {
            "nothing gets through with a MAC address that was not asked of margay, by \
             runtimeConfig.mac"
                .to_owned()
        });
        let addresses = netlink.addresses(link.index).await?;
        for &ip in &pod.addresses {
            let found = addresses.iter().any(|info| info.address == ip);
            defects.expect(Aspect::PodAddress, found, || {
                format!("pod interface {ifname} lacks address {ip}")
            });
        }
        let routes = netlink.routes(link.index).await?;
        for wanted in pod.routes(link.index) {
            let found = routes.iter().any(|route| {
                route.prefix_length == wanted.destination.prefix()
                    && route.gateway == wanted.gateway
                    && (wanted.destination.prefix() == 0
                        || route.destination == Some(wanted.destination.ip()))
            });
            defects.expect(Aspect::PodRoute, found, || {
                format!("pod lacks route {}", wanted.destination)
            });
        }
        defects.compare_sysctls(Aspect::PodSysctl, "pod", pod.forwarding_sysctls());
        Ok(())
    })
}

/// What the pod's end should be. Of the routes, those that the chain's result still has: a plugin
/// further down may have taken some away.
fn pod_side(endpoint: &Endpoint, promise: Option<Promise<'_>>) -> PodSide {
    let ifname = endpoint.attachment.ifname().to_owned();
    let mut pod = PodSide {
        ifname,
        addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        default_route: false,
        routes: Vec::new(),
        allow_ip_forwarding: false,
    };
    let Some(Promise { conf, result }) = promise else { return pod };
    pod.allow_ip_forwarding = conf.ip_forwarding;
    match result {
        // The default route is among those.
        Some(result) => pod.routes = routes_of(result),
        None => {
            pod.default_route = conf.default_route_for(&pod.ifname);
            pod.routes = commands::routes(conf, &IpamResult::default(), pod.default_route);
        }
    }
    pod
}

fn routes_of(result: &CNIResult) -> Vec<IpNetwork> {
    let is_ours = |route: &&Route| route.gw == Some(PodSide::gateway(route.dst.addr().is_ipv4()));
    let ours = result.routes.iter().filter(is_ours).map(|route| route.dst);
    ours.filter_map(|dst| IpNetwork::new(dst.addr(), dst.prefix_len()).ok()).collect()
}
