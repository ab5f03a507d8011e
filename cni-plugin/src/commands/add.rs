//! ADD: the way of a pod onto the network, one step after the other.
//!
//! Invariant: everything that a step makes can be found from the attachment alone. So an ADD that
//! fails cleans up as DEL does, and one that is killed is cleaned up by the next DEL, GC or ADD.

use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use margay_abi::HOST_VETH_MAC;
use margay_datastore::{Attachment, Endpoint, EndpointState};
use rscni_types::types::CNIResult;
use rustix::io::Errno;

use super::session::{self, Session};
use super::teardown::Teardown;
use crate::config::{self, IpamConf, NetConf, Requested};
use crate::dataplane::{self, Dataplane, DataplaneError};
use crate::deletions::{Deletions, Share};
use crate::error::{Error, chain};
use crate::hold::HostVeth;
use crate::host::HostSide;
use crate::ipam::{IpamResult, pod_ref};
use crate::lock::IpamGate;
use crate::mtu::Mtu;
use crate::nat::Nat;
use crate::netlink::{LinkInfo, Peer, VethPair};
use crate::netns::Netns;
use crate::phases::Phases;
use crate::pod::PodSide;
use crate::protocol::{Call, Target};
use crate::{boot_clock, log, naming, result, shaping};

/// Queues of each end of the pair unless configured: as the standard plugin has it.
const DEFAULT_QUEUES: u32 = 1;

/// Everything that was asked for, checked before anything is touched.
struct Request<'a> {
    target: &'a Target,
    conf: &'a NetConf,
    attachment: Attachment,
    netns: Netns,
    requested: Requested,
    previous: Option<CNIResult>,
    pod_mac: [u8; 6],
}

/// Attaches a sandbox.
pub(super) fn add(call: &Call, target: &Target) -> Result<CNIResult, Error> {
    let conf = session::configuration(call)?;
    log::report_unused(conf.unused_keys());
    let request = Request::validate(call, target, &conf)?;
    let attachment = request.attachment.clone();
    session::run("ADD", &attachment, async |phases| {
        phases.enter("open")?;
        let mut session = Session::open(call, &conf, attachment.clone())?;
        phases.enter("look_up")?;
        refuse_or_clean_up_earlier(&session).await?;
        session.settle()?;
        let request = Request { conf: &session.conf, ..request };
        let outcome = attach(&session, &request, phases).await;
        if outcome.is_err() {
            // The error that counts is the one that stopped the ADD.
            clean_up(&session).await;
        }
        outcome
    })
}

impl<'a> Request<'a> {
    fn validate(call: &Call, target: &'a Target, conf: &'a NetConf) -> Result<Self, Error> {
        let attachment = session::attachment(conf, target)?;
        let netns = session::netns(target)?;
        if netns.is_same_as(&Netns::current()?)? {
            return Err(Error::HostNetns { path: netns.path().to_owned() });
        }
        let requested = Requested::from_map(&call.config)?.or_args(&target.args);
        let previous = config::prev_result(&call.config)?;
        let pod_mac = requested.mac.unwrap_or_else(|| naming::pod_mac(&attachment));
        Ok(Self { target, conf, attachment, netns, requested, previous, pod_mac })
    }
}

/// After an ADD that failed.
async fn clean_up(session: &Session<'_>) {
    match session.teardown(None).await {
        Ok(Teardown::Complete) => {}
        Ok(Teardown::PutOff(error)) => {
            let error = chain(&error);
            tracing::warn!(error, "the datastore's part of the clean-up after it is put off");
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "the clean-up after it failed too; DEL will try again");
        }
    }
}

/// An ADD of an attachment that is alive is an error and leaves it alone. What is left of one that
/// is not is cleaned up.
async fn refuse_or_clean_up_earlier(session: &Session<'_>) -> Result<(), Error> {
    let endpoint = session.endpoint()?;
    let link = session.host_veth().await?;
    match link {
        HostVeth::Foreign(link) => {
            Err(Error::ForeignLink { name: link.name, alias: link.alias.unwrap_or_default() })
        }
        HostVeth::Ours(link) if is_alive(session, endpoint.as_ref(), &link)? => {
            Err(Error::AlreadyAdded { attachment: session.attachment.clone() })
        }
        HostVeth::Absent
            if endpoint.is_none()
                && !is_deletion_put_off(session)
                && !session.is_known_to_ipam()?
                && session.ifb().await?.is_none() =>
        {
            Ok(())
        }
        HostVeth::Ours(_) | HostVeth::Absent => {
            tracing::warn!(attachment = %session.attachment, "cleaning up what an earlier ADD left");
            session.teardown(None).await?.or_out_of_reach()
        }
    }
}

fn is_deletion_put_off(session: &Session<'_>) -> bool {
    Deletions::below(&session.site.paths.state_dir).has(&session.attachment)
}

/// Whether the ADD before came to its end and no DEL has begun since: a DEL begins with the map
/// entries, and without those the pod sends nothing.
fn is_alive(
    session: &Session<'_>,
    endpoint: Option<&Endpoint>,
    link: &LinkInfo,
) -> Result<bool, Error> {
    let ready = endpoint.filter(|endpoint| endpoint.state == EndpointState::Ready);
    let Some(endpoint) = ready else { return Ok(false) };
    if endpoint.dataplane != dataplane::EBPF {
        return Ok(true);
    }
    let Some(pods) = dataplane::pods(&session.conf.paths.bpffs_root)? else { return Ok(false) };
    for address in endpoint.ips.iter().map(|ip| ip.ip()) {
        let entry = pods.get(address).map_err(|source| DataplaneError::Map { address, source })?;
        if entry.is_none_or(|entry| entry.ifindex != link.index) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The steps of an ADD.
async fn attach(
    session: &Session<'_>,
    request: &Request<'_>,
    phases: &mut Phases,
) -> Result<CNIResult, Error> {
    phases.enter("dataplane")?;
    let dataplane = Dataplane::prepare(request.conf)?;

    phases.enter("mtu")?;
    let overlay = request.conf.uses_vxlan();
    let mtu = Mtu::find(&session.site.netlink, request.conf.mtu, overlay).await?;
    tracing::info!(mtu = mtu.bytes, source = %mtu.source, "MTU");
    request.requested.must_fit(mtu.bytes)?;

    if let Some(nat) = Nat::of(request.conf) {
        phases.enter("nat")?;
        nat.ensure().await?;
    }

    phases.enter("addresses")?;
    session::drain(request.conf, &session.site, Share::OfAdd).await;
    let (addresses, mut endpoint) = reserve(session, request, &dataplane, &mtu)?;

    phases.enter("veth")?;
    let (host, peer) = create_veth(session, request, &addresses, mtu.bytes).await?;

    phases.enter("pod_side")?;
    let pod = pod_side(request, &addresses);
    pod.configure(&request.netns)?;

    phases.enter("host_side")?;
    host.set_sysctls(dataplane.uses_proxy())?;

    phases.enter("attach")?;
    dataplane.attach(request.conf, &session.site.netlink, &host).await?;

    if !endpoint.bandwidth.is_unlimited() {
        phases.enter("bandwidth")?;
        let (netlink, attachment) = (&session.site.netlink, &session.attachment);
        shaping::limit(netlink, attachment, &host, mtu.bytes, &endpoint.bandwidth).await?;
    }

    phases.enter("link_up")?;
    session.site.netlink.set_link_up(host.ifindex).await?;
    if let Some(peer) = peer
        && let Err(error) = session.site.netlink.activate_peer(peer).await
    {
        // The worker will come.
        tracing::warn!(error = chain(&error), "the pod's first packets may be lost");
    }

    phases.enter("routes")?;
    host.route_to_pod(&session.site.netlink).await?;

    phases.enter("map")?;
    dataplane.publish(request.conf, &host, &endpoint)?;

    phases.enter("endpoint")?;
    endpoint.state = EndpointState::Ready;
    endpoint.ready_at_boot_us = boot_clock::now_us();
    session.site.store.put_endpoint(&endpoint)?;

    let dns = request.conf.dns.clone().or(addresses.dns);
    let ours = result::of_add(&endpoint, &pod, dns);
    Ok(result::after(request.previous.clone().unwrap_or_default(), ours))
}

/// Reserves addresses. Those that another IPAM plugin gave are written down before they are used, so
/// that whatever is made for them is found again; margay-ipam has written its own down already.
fn reserve(
    session: &Session<'_>,
    request: &Request<'_>,
    dataplane: &Dataplane,
    mtu: &Mtu,
) -> Result<(IpamResult, Endpoint), Error> {
    let is_delegated = matches!(session.conf.ipam, IpamConf::Delegated(_));
    let _gate = is_delegated.then(|| IpamGate::enter(&session.conf.paths.run_dir)).transpose()?;
    let requested = &request.requested.ips;
    let addresses = session.ipam().add(&session.attachment, request.target, requested)?;
    mtu.must_carry(addresses.addresses())?;
    let endpoint = endpoint(session, request, &addresses, dataplane, mtu.bytes);
    if is_delegated {
        session.site.store.put_endpoint(&endpoint)?;
    }
    Ok((addresses, endpoint))
}

async fn create_veth(
    session: &Session<'_>,
    request: &Request<'_>,
    addresses: &IpamResult,
    mtu: u32,
) -> Result<(HostSide, Option<Peer>), Error> {
    let name = session.host_veth.clone();
    let pair = VethPair {
        host_name: &name,
        host_mac: HOST_VETH_MAC,
        pod_name: request.attachment.ifname(),
        pod_mac: request.pod_mac,
        pod_netns: std::os::fd::AsFd::as_fd(&request.netns),
        mtu,
        queues: request.conf.num_queues.unwrap_or(DEFAULT_QUEUES),
    };
    match session.site.netlink.create_veth(&pair).await {
        Err(source) if source.is(Errno::EXIST) => {
            let ifname = request.attachment.ifname().to_owned();
            return Err(Error::InterfaceExists { ifname, source });
        }
        outcome => outcome?,
    }
    let link = session.site.netlink.link_by_name(&name).await?;
    let link = link.ok_or_else(|| Error::LinkVanished { name: name.clone() })?;
    let ifindex = link.index;
    session.site.netlink.set_link_alias(ifindex, &naming::alias(&session.attachment)).await?;
    let addresses = addresses.addresses().collect();
    Ok((HostSide { name, ifindex, addresses, pod_mac: request.pod_mac }, link.peer))
}

fn pod_side(request: &Request<'_>, addresses: &IpamResult) -> PodSide {
    let ifname = request.attachment.ifname();
    let default_route = request.conf.default_route_for(ifname);
    PodSide {
        ifname: ifname.to_owned(),
        addresses: addresses.addresses().collect(),
        default_route,
        routes: routes(request.conf, addresses, default_route),
        allow_ip_forwarding: request.conf.ip_forwarding,
    }
}

/// Where the pod goes over this interface besides the default: what the IPAM says; and, where
/// another interface has the default route, the network's own pools.
pub(crate) fn routes(
    conf: &NetConf,
    addresses: &IpamResult,
    default_route: bool,
) -> Vec<IpNetwork> {
    let told = addresses.routes.iter().map(|route| route.dst).filter(|dst| dst.prefix() > 0);
    match &conf.ipam {
        IpamConf::Builtin(pools) if !default_route => {
            told.chain(pools.all.iter().map(|pool| pool.cidr)).collect()
        }
        _ => told.collect(),
    }
}

/// The endpoint to be.
fn endpoint(
    session: &Session<'_>,
    request: &Request<'_>,
    addresses: &IpamResult,
    dataplane: &Dataplane,
    mtu: u32,
) -> Endpoint {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let uses_ebpf = matches!(dataplane, Dataplane::Ebpf(_));
    Endpoint {
        attachment: request.attachment.clone(),
        node: request.conf.nodename.clone(),
        pod: pod_ref(&request.target.args),
        host_veth: session.host_veth.clone(),
        pod_mac: request.pod_mac,
        host_mac: HOST_VETH_MAC,
        mtu,
        ips: addresses.addresses().map(IpNetwork::from).collect(),
        netns: request.netns.path().display().to_string(),
        netns_inode: request.netns.inode().ok(),
        boot_id: session.site.boot_id.clone(),
        labels: request.requested.labels.clone(),
        ports: request.requested.ports.clone(),
        bandwidth: request.requested.bandwidth,
        dataplane: dataplane.to_string(),
        attach: uses_ebpf.then(|| request.conf.attach.to_string()),
        answer_any_arp: uses_ebpf && request.conf.answer_any_arp,
        created_at: now.as_secs(),
        ready_at_boot_us: 0,
        state: EndpointState::Pending,
    }
}
