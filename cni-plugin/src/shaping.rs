//! How fast a pod may receive and send: the `bandwidth` capability.
//!
//! What goes to the pod waits in a token bucket, the root qdisc of the host veth. What the pod sends
//! comes in by that veth, where no qdisc can make it wait. So the last filter there, behind
//! margay's program, hands it to an ifb device of the attachment's own: its root qdisc is a token
//! bucket, and what has passed it goes on to the stack as if it came from the host veth just then,
//! past the filters, which have seen it.
//!
//! Invariant: everything is in the host's network namespace, out of the pod's reach. If the ifb is
//! lost, the kernel drops what the pod sends rather than let it pass unlimited.

use margay_datastore::{Attachment, Bandwidth, RateLimit};

use crate::host::HostSide;
use crate::naming;
use crate::netlink::{LinkInfo, Netlink, NetlinkError, TokenBucket, TokenBucketInfo};

/// The longest that a packet waits for tokens, as the standard plugin has it: 25 ms.
const LONGEST_WAITS_PER_SECOND: u64 = 40;

/// Why a pod's bandwidth could not be limited.
#[derive(Debug, thiserror::Error)]
pub enum ShapingError {
    /// A netlink request failed.
    #[error("limit the bandwidth")]
    Netlink(#[from] NetlinkError),
    /// The ifb device was deleted while it was being set up.
    #[error("link {name} vanished while it was being set up")]
    LinkVanished {
        /// Its name.
        name: String,
    },
}

/// Limits what the pod receives and sends. The host veth is still down.
///
/// # Errors
/// When the kernel refuses a qdisc, the filter or the ifb device, or has none of the kind.
pub async fn limit(
    netlink: &Netlink,
    attachment: &Attachment,
    host: &HostSide,
    mtu: u32,
    bandwidth: &Bandwidth,
) -> Result<(), ShapingError> {
    if let Some(limit) = &bandwidth.to_pod {
        netlink.create_token_bucket(host.ifindex, &token_bucket(limit)).await?;
    }
    if let Some(limit) = &bandwidth.from_pod {
        let ifb = create_ifb(netlink, attachment, mtu).await?;
        netlink.create_token_bucket(ifb, &token_bucket(limit)).await?;
        netlink.set_link_up(ifb).await?;
        netlink.ensure_clsact(host.ifindex).await?;
        netlink.create_redirect(host.ifindex, ifb).await?;
    }
    Ok(())
}

async fn create_ifb(
    netlink: &Netlink,
    attachment: &Attachment,
    mtu: u32,
) -> Result<u32, ShapingError> {
    let name = naming::ifb(attachment);
    netlink.create_ifb(&name, mtu).await?;
    let link = netlink.link_by_name(&name).await?;
    let ifindex = link.ok_or(ShapingError::LinkVanished { name })?.index;
    netlink.set_link_alias(ifindex, &naming::alias(attachment)).await?;
    Ok(ifindex)
}

/// What is not as [`limit`] left it, each in words that name the thing.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn inspect(
    netlink: &Netlink,
    host: &HostSide,
    ifb: Option<&LinkInfo>,
    bandwidth: &Bandwidth,
) -> Result<Vec<String>, NetlinkError> {
    let mut findings = Vec::new();
    if let Some(limit) = &bandwidth.to_pod {
        findings.extend(inspect_bucket(netlink, &host.name, host.ifindex, limit).await?);
    }
    let Some(limit) = &bandwidth.from_pod else { return Ok(findings) };
    let Some(ifb) = ifb else {
        findings.push("the ifb device that limits what the pod sends does not exist".to_owned());
        return Ok(findings);
    };
    findings.extend(inspect_bucket(netlink, &ifb.name, ifb.index, limit).await?);
    if !ifb.up {
        findings.push(format!("host interface {} is down", ifb.name));
    }
    if netlink.redirect(host.ifindex).await? != Some(ifb.index) {
        findings.push(format!("no filter on {} hands packets to {}", host.name, ifb.name));
    }
    Ok(findings)
}

async fn inspect_bucket(
    netlink: &Netlink,
    name: &str,
    ifindex: u32,
    limit: &RateLimit,
) -> Result<Option<String>, NetlinkError> {
    let TokenBucket { rate_bytes_per_s, queue_bytes, .. } = token_bucket(limit);
    let wanted = TokenBucketInfo { rate_bytes_per_s, queue_bytes };
    Ok(match netlink.token_bucket(ifindex).await? {
        None => Some(format!("no token bucket limits host interface {name}")),
        Some(found) if found != wanted => {
            Some(format!("the token bucket of {name} is {found:?}, not {wanted:?}"))
        }
        Some(_) => None,
    })
}

fn token_bucket(limit: &RateLimit) -> TokenBucket {
    let RateLimit { rate_bytes_per_s, burst_bytes } = *limit;
    let waiting = u32::try_from(rate_bytes_per_s / LONGEST_WAITS_PER_SECOND).unwrap_or(u32::MAX);
    TokenBucket { rate_bytes_per_s, burst_bytes, queue_bytes: waiting.saturating_add(burst_bytes) }
}
