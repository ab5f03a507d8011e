//! Names and addresses that follow from an attachment alone, so that DEL, GC and a repeated ADD
//! find what an earlier process made without anything that it left behind.

use margay_datastore::{Attachment, AttachmentError};
use sha1::{Digest, Sha1};

/// Prefix of every host veth's name.
pub const HOST_VETH_PREFIX: &str = "mgy";
/// Prefix of every ifb device's name.
const IFB_PREFIX: &str = "mgi";
/// Name of the node's overlay device whose outer headers are IPv4's. No host veth's: that has nothing but
/// hex digits behind its prefix.
pub const OVERLAY_DEVICE: &str = "mgyvxlan";
/// The same of IPv6.
pub const OVERLAY_DEVICE_V6: &str = "mgyvxlan6";
/// The network of the attachments by which nodes hold their addresses on the overlay.
pub const OVERLAY_NETWORK: &str = "margay.overlay";
/// Prefix of every alias.
const ALIAS_PREFIX: &str = "margay:";

/// Name of the attachment's host veth: `mgy` and the first 12 hex digits of the SHA-1 of
/// `network/container-id/ifname`; 15 characters, all that an interface name can hold.
#[must_use]
pub fn host_veth(attachment: &Attachment) -> String {
    link(HOST_VETH_PREFIX, attachment)
}

/// Name of the ifb device that what the pod sends passes, if that is limited: `mgi` and the digits
/// of the host veth.
#[must_use]
pub fn ifb(attachment: &Attachment) -> String {
    link(IFB_PREFIX, attachment)
}

fn link(prefix: &str, attachment: &Attachment) -> String {
    let digest = digest(attachment);
    let hex: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{hex}")
}

/// MAC address of the pod's end where none is asked for: locally administered, from the same
/// digest.
#[must_use]
pub fn pod_mac(attachment: &Attachment) -> [u8; 6] {
    locally_administered(&digest(attachment)[6..12])
}

/// Alias of the attachment's host veth and ifb: the token that says whose they are. A link that bears
/// the name and another alias is somebody else's and is never touched; one of the right kind with
/// none is one whose ADD was cut short before it had it.
#[must_use]
pub fn alias(attachment: &Attachment) -> String {
    format!("{ALIAS_PREFIX}{attachment}")
}

/// The attachment that an alias names, if it is one of margay's.
#[must_use]
pub fn attachment_of_alias(alias: &str) -> Option<Attachment> {
    alias.strip_prefix(ALIAS_PREFIX)?.parse().ok()
}

/// Whether a link's name is that of a host veth or an ifb device.
#[must_use]
pub fn is_of_a_pod(link: &str) -> bool {
    let digits = [HOST_VETH_PREFIX, IFB_PREFIX].iter().find_map(|prefix| link.strip_prefix(prefix));
    digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a link has the name of an overlay device.
#[must_use]
pub fn is_overlay_device(link: &str) -> bool {
    [OVERLAY_DEVICE, OVERLAY_DEVICE_V6].contains(&link)
}

/// MAC address of a node's overlay devices: locally administered, from the SHA-1 of the node's name.
#[must_use]
pub fn overlay_mac(node: &str) -> [u8; 6] {
    let digest: [u8; 20] = Sha1::digest(node).into();
    locally_administered(&digest[..6])
}

/// What holds a node's overlay address of a family in the datastore, as a pod's attachment holds the
/// pod's.
///
/// # Errors
/// Never.
pub fn overlay_attachment(node: &str, ipv4: bool) -> Result<Attachment, AttachmentError> {
    let hex: String = Sha1::digest(node).iter().map(|byte| format!("{byte:02x}")).collect();
    let family = if ipv4 { "4" } else { "6" };
    Attachment::new(OVERLAY_NETWORK, hex, format!("{OVERLAY_DEVICE}{family}"))
}

fn locally_administered(bytes: &[u8]) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(bytes);
    mac[0] = mac[0] & 0b1111_1100 | 0b0000_0010;
    mac
}

fn digest(attachment: &Attachment) -> [u8; 20] {
    Sha1::digest(attachment.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment::new("net", "4f1d", "eth0").unwrap()
    }

    #[test]
    fn the_host_veth_is_named_by_the_sha1_of_the_attachment() {
        // printf net/4f1d/eth0 | sha1sum
        assert_eq!(host_veth(&attachment()), "mgyce47502ad5ac");
        assert_eq!(ifb(&attachment()), "mgice47502ad5ac");
    }

    #[test]
    fn the_pod_mac_is_unicast_and_locally_administered() {
        let mac = pod_mac(&attachment());
        assert_eq!(mac[0] & 0b11, 0b10);
    }

    #[test]
    fn each_node_has_its_own_end_of_the_overlay_and_no_pods_link_is_it() {
        let longest = "n".repeat(253);
        for node in ["a", "b", longest.as_str()] {
            assert_eq!(overlay_mac(node)[0] & 0b11, 0b10);
            let ends = [true, false].map(|ipv4| overlay_attachment(node, ipv4).unwrap());
            assert_ne!(ends[0], ends[1]);
        }
        assert!(is_of_a_pod(&host_veth(&attachment())) && is_of_a_pod(&ifb(&attachment())));
        assert!(!is_of_a_pod(OVERLAY_DEVICE) && !is_of_a_pod("eth0"));
        assert!(!is_of_a_pod(OVERLAY_DEVICE_V6));
        assert_ne!(overlay_mac("a"), overlay_mac("b"));
        assert_ne!(overlay_attachment("a", true), overlay_attachment("b", true));
    }

    #[test]
    fn an_alias_names_its_attachment() {
        assert_eq!(attachment_of_alias(&alias(&attachment())), Some(attachment()));
        assert_eq!(attachment_of_alias("uplink of the rack"), None);
        assert_eq!(attachment_of_alias("margay:not-an-attachment"), None);
    }
}
