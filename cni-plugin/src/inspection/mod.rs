//! What there is of an endpoint, held against what its ADD made: for CHECK, and for who looks at a node as a
//! whole.
//!
//! The endpoint says what there must be; the kernel, the maps and the IPAM say what there is. Invariant:
//! nothing is changed. Whoever has not the attachment's lock may look while a verb is at work, and
//! has to look again before he believes what he saw.

mod host;
mod pod;

use std::fmt;

use rscni_types::types::CNIResult;

pub use host::inspect as host_side;
pub use pod::inspect as pod_side;

use crate::config::NetConf;
use crate::error::chain;
use crate::netlink::LinkInfo;
use crate::result::mac_text;
use crate::sysctl;

/// What a defect is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aspect {
    /// The pod's interface: whether it exists, its state, MAC address, MTU.
    PodInterface,
    /// An address of the pod's interface.
    PodAddress,
    /// A route of the pod.
    PodRoute,
    /// A sysctl of the pod.
    PodSysctl,
    /// The host veth: whether it exists and is ours, its state, MAC address, MTU, alias.
    HostVeth,
    /// A host route to the pod.
    HostRoute,
    /// A permanent neighbour for the pod.
    Neighbour,
    /// Bandwidth.
    Bandwidth,
    /// A sysctl of the host veth.
    HostSysctl,
    /// That no programs are pinned.
    Pins,
    /// A program that is not attached.
    Program,
    /// A program that is attached and of no build that is pinned.
    OtherProgram,
    /// A map entry.
    MapEntry,
}

/// Something that is not as ADD left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    /// What it is about.
    pub aspect: Aspect,
    text: String,
}

/// In words that name the thing.
impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a network says of its endpoints that their records do not.
#[derive(Clone, Copy, Debug)]
pub struct Promise<'a> {
    /// The network's configuration.
    pub conf: &'a NetConf,
    /// The final result of the chain, where the caller has it.
    pub result: Option<&'a CNIResult>,
}

/// What is off.
#[derive(Default)]
struct Defects(Vec<Defect>);

impl Defects {
    fn push(&mut self, aspect: Aspect, text: String) {
        self.0.push(Defect { aspect, text });
    }

    fn expect(&mut self, aspect: Aspect, is_right: bool, text: impl FnOnce() -> String) {
        if !is_right {
            self.push(aspect, text());
        }
    }

    fn compare_sysctls(
        &mut self,
        aspect: Aspect,
        place: &str,
        wanted: Vec<(String, &'static str)>,
    ) {
        for (key, wanted) in wanted {
            match sysctl::get(&key) {
                Ok(value) => self.expect(aspect, value == wanted, || {
                    format!("{place} sysctl net/{key} is {value}, not {wanted}")
                }),
                Err(error) => self.push(aspect, chain(&error)),
            }
        }
    }

    fn compare_link(
        &mut self,
        aspect: Aspect,
        place: &str,
        link: &LinkInfo,
        mac: [u8; 6],
        mtu: u32,
    ) {
        let name = &link.name;
        self.expect(aspect, link.up, || format!("{place} interface {name} is down"));
        self.expect(aspect, link.mac == mac, || {
            let (found, wanted) = (mac_text(link.mac), mac_text(mac));
            format!("{place} interface {name} has MAC address {found}, not {wanted}")
        });
        self.expect(aspect, link.mtu == mtu, || {
            format!("{place} interface {name} has MTU {}, not {mtu}", link.mtu)
        });
    }
}
