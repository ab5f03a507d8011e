//! `margayctl ipam release`: takes back what nobody uses any more, by the one teardown.

use std::fmt;
use std::net::IpAddr;

use clap::Args;
use margay::naming;
use margay::upkeep::{self, Released};
use margay_datastore::{Attachment, Slot, Store};
use serde::Serialize;

use crate::endpoints;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Format, Report};

/// `ipam release`.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// An address, an attachment (NETWORK/CONTAINER/INTERFACE), or what `endpoint show` takes
    #[arg(value_name = "ADDRESS|ATTACHMENT")]
    what: String,
    /// Also where the sandbox lives: it loses its network. Of an address that no record leads to, also where a pod
    /// or another node has it
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(release: &Release, node: &Node, format: Format) -> Result<(), Failure> {
    let store = node.store()?;
    let holder = holder(&store, &release.what)?;
    let attachment = holder.attachment();
    if is_overlays(attachment) && !release.force {
        return Err(Failure::Refused(format!(
            "{attachment} is a node's end of the overlay: its agent holds it, and `margayctl node \
             delete` takes it back where the node is gone (--force does it all the same)"
        )));
    }
    let site = node.site(store)?;
    let released = match &holder {
        Holder::Attachment(attachment) => upkeep::release(&site, attachment, release.force).await?,
        Holder::Nobody(address, slot) => {
            upkeep::release_orphan(&site, *address, slot, release.force).await?
        }
    };
    let refused = match released {
        Released::Done(addresses) => {
            let attachment = attachment.to_string();
            return output::show(&GivenBack { attachment, addresses }, format);
        }
        Released::Unknown => match holder {
            Holder::Attachment(attachment) => {
                return Err(Failure::Unknown {
                    kind: "attachment",
                    name: attachment.to_string(),
                    list: "margayctl ipam show",
                });
            }
            Holder::Nobody(address, _) => format!("{address} changed hands meanwhile: try again"),
        },
        Released::Busy => format!("a verb is at work on {attachment}: try again"),
        Released::Alive { because } => format!(
            "{attachment} is alive: {because}. Remove the pod; --force takes its network away"
        ),
        Released::Elsewhere { node } => format!(
            "{attachment} is on node {node}: release it there, or `margayctl node delete {node}` \
             if that is gone for good"
        ),
        Released::OfAnotherIpam => format!(
            "another IPAM plugin gave {attachment} its addresses: only the runtime's DEL or GC can \
             give them back"
        ),
    };
    Err(Failure::Refused(refused))
}

enum Holder {
    Attachment(Attachment),
    /// A slot that nothing leads to has this address.
    Nobody(IpAddr, Slot),
}

impl Holder {
    fn attachment(&self) -> &Attachment {
        match self {
            Self::Attachment(attachment) => attachment,
            Self::Nobody(_, slot) => &slot.attachment,
        }
    }
}

fn holder(store: &Store, what: &str) -> Result<Holder, Failure> {
    if let Ok(attachment) = what.parse::<Attachment>() {
        return Ok(Holder::Attachment(attachment));
    }
    let ledger = store.ledger()?;
    if let Ok(address) = what.parse::<IpAddr>()
        && let Some((block, slot)) = ledger.slot(address)
    {
        let leads_here = ledger.holders.iter().any(|holder| {
            holder.attachment == slot.attachment
                && holder.assignment == slot.assignment
                && holder.blocks.contains(&block.cidr)
        });
        return Ok(match leads_here {
            true => Holder::Attachment(slot.attachment.clone()),
            false => Holder::Nobody(address, slot.clone()),
        });
    }
    let endpoint = endpoints::find(&ledger.endpoints, what)?;
    Ok(Holder::Attachment(endpoint.attachment.clone()))
}

fn is_overlays(attachment: &Attachment) -> bool {
    attachment.network() == naming::OVERLAY_NETWORK
}

/// What `ipam release` shows.
#[derive(Debug, Serialize)]
struct GivenBack {
    attachment: String,
    addresses: Vec<IpAddr>,
}

impl Report for GivenBack {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        match addresses.as_slice() {
            [] => writeln!(out, "removed {}, which had no address", self.attachment),
            _ => writeln!(out, "released {} of {}", addresses.join(", "), self.attachment),
        }
    }
}
