//! Addresses of a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError};

/// What the kernel says of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// Interface that has it.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_length: u8,
}

impl Netlink {
    /// Gives an interface an address with a host prefix (/32 or /128), to be used at once: it is
    /// unique by allocation, and not probed for.
    ///
    /// # Errors
    /// `EEXIST` when the interface has it.
    pub async fn add_address(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
        message.header.index = ifindex;
        message.header.scope = AddressScope::Universe;
        message.attributes.push(AddressAttribute::Address(address));
        message.attributes.push(AddressAttribute::Local(address));
        if address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.execute(
            "add address",
            &format!("{address} to link with index {ifindex}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Takes an address with a host prefix from an interface; content if it does not have it.
    ///
    /// # Errors
    /// Any errno but those that say so.
    pub async fn delete_address(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
        message.header.index = ifindex;
        message.attributes.push(AddressAttribute::Local(address));
        let object = format!("{address} of link with index {ifindex}");
        let message = RouteNetlinkMessage::DelAddress(message);
        match self.execute("delete address", &object, message, 0).await {
            Err(error) if error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    /// The addresses of one interface, in the kernel's order. The kernel has no request for one
    /// interface's addresses, so this dumps those of the namespace: for CHECK, never for an ADD or
    /// a DEL.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn addresses(&self, ifindex: u32) -> Result<Vec<AddressInfo>, NetlinkError> {
        let mut infos = self.all_addresses().await?;
        infos.retain(|info| info.ifindex == ifindex);
        Ok(infos)
    }

    /// The addresses of every interface, in the kernel's order.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn all_addresses(&self) -> Result<Vec<AddressInfo>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.query("list", "addresses", message, NLM_F_DUMP).await?;
        Ok(answers.into_iter().filter_map(address_info).collect())
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_info(message: RouteNetlinkMessage) -> Option<AddressInfo> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    Some(AddressInfo {
        ifindex: message.header.index,
        address,
        prefix_length: message.header.prefix_len,
    })
}
