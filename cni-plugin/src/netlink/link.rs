//! Links: the veth pair, the ifb device, their state, their alias.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo as Info,
    LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Netlink, NetlinkError};

/// A veth pair to be made: everything that can be set at creation is, so that no other process
/// (udev above all) ever sees an end with another name or MAC address.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of the end that stays in the socket's namespace.
    pub host_name: &'a str,
    /// MAC address of that end.
    pub host_mac: [u8; 6],
    /// Name of the end in the pod.
    pub pod_name: &'a str,
    /// MAC address of the end in the pod.
    pub pod_mac: [u8; 6],
    /// Network namespace of the pod.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// Transmit and receive queues of each end.
    pub queues: u32,
}

/// What the kernel says of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alias: on a host veth or an ifb the token that names its attachment.
    pub alias: Option<String>,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Kind, such as `veth`; empty for a physical device.
    pub kind: String,
    /// What it is one end of, or on top of, if that is in another namespace: of a veth, the other end.
    pub peer: Option<Peer>,
}

/// An interface in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Interface index.
    pub index: u32,
    /// Number of its namespace in the socket's.
    pub netns_id: i32,
}

impl Netlink {
    /// Makes both ends of a veth pair, down, in one request.
    ///
    /// # Errors
    /// `EEXIST` when one of the names is taken in its namespace.
    pub async fn create_veth(&self, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
        let peer =
            end(pair.pod_name, pair.pod_mac, pair).setns_by_fd(pair.pod_netns.as_raw_fd()).build();
        let mut message = end(pair.host_name, pair.host_mac, pair).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            Info::Kind(InfoKind::Veth),
            Info::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let object = format!("{} with peer {}", pair.host_name, pair.pod_name);
        let message = RouteNetlinkMessage::NewLink(message);
        self.execute("create veth", &object, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Makes an ifb device, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no ifb devices.
    pub async fn create_ifb(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().name(name).mtu(mtu).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![Info::Kind(InfoKind::Ifb)]));
        let message = RouteNetlinkMessage::NewLink(message);
        self.execute("create ifb", name, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// Any errno but `ENODEV`.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        self.one_link(name, message).await
    }

    /// The link of this index, if there is one.
    ///
    /// # Errors
    /// Any errno but `ENODEV`.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<LinkInfo>, NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
        self.one_link(&format!("with index {index}"), message).await
    }

    /// Every link. For garbage collection and inspection, never for an ADD or a DEL.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn links(&self) -> Result<Vec<LinkInfo>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(without_statistics(LinkMessage::default()));
        let answers = self.query("list", "links", message, NLM_F_DUMP).await?;
        Ok(answers.into_iter().filter_map(link_info).collect())
    }

    /// Sets the alias.
    ///
    /// # Errors
    /// Any errno.
    pub async fn set_link_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).alias(alias).build();
        self.change_link("set alias of link", index, message).await
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// Any errno.
    pub async fn set_link_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.change_link("set up link", index, message).await
    }

    /// Has the other end of a veth pair, whose ends are both up, send what it is given.
    ///
    /// The end that was up first has a carrier as soon as the second is up, but drops what it sends until a worker of
    /// the kernel, which many changes of links keep waiting, has seen that (`linkwatch_event`). Who looks the link
    /// up has it seen at once, from Linux 6.8 on (`linkwatch_sync_dev` in `rtnl_getlink`, commit facd15dfd691).
    ///
    /// # Errors
    /// Any errno but `ENODEV`.
    pub async fn activate_peer(&self, peer: Peer) -> Result<(), NetlinkError> {
        let Peer { index, netns_id } = peer;
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::IfNetnsId(netns_id))
            .build();
        self.one_link(&format!("with index {index} in namespace {netns_id}"), message).await?;
        Ok(())
    }

    /// Deletes a link, and the other end with it; returns whether it was there.
    ///
    /// # Errors
    /// Any errno but `ENODEV`.
    pub async fn delete_link(&self, index: u32) -> Result<bool, NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).build();
        let object = format!("with index {index}");
        match self.execute("delete link", &object, RouteNetlinkMessage::DelLink(message), 0).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn change_link(
        &self,
        operation: &'static str,
        index: u32,
        message: LinkMessage,
    ) -> Result<(), NetlinkError> {
        let object = format!("with index {index}");
        self.execute(operation, &object, RouteNetlinkMessage::NewLink(message), 0).await
    }

    async fn one_link(
        &self,
        object: &str,
        message: LinkMessage,
    ) -> Result<Option<LinkInfo>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(without_statistics(message));
        match self.query("look up link", object, message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(link_info)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn end(name: &str, mac: [u8; 6], pair: &VethPair<'_>) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new()
        .name(name)
        .address(mac.to_vec())
        .mtu(pair.mtu)
        .append_extra_attribute(LinkAttribute::NumTxQueues(pair.queues))
        .append_extra_attribute(LinkAttribute::NumRxQueues(pair.queues))
}

/// Asks the kernel to leave the statistics out of the answer: they are most of its bytes.
fn without_statistics(mut message: LinkMessage) -> LinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn link_info(message: RouteNetlinkMessage) -> Option<LinkInfo> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut info = LinkInfo {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mac: [0; 6],
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: String::new(),
        peer: None,
    };
    let (mut peer_index, mut peer_netns_id) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name = name,
            LinkAttribute::IfAlias(alias) => info.alias = Some(alias),
            LinkAttribute::Address(bytes) => info.mac = bytes.try_into().unwrap_or([0; 6]),
            LinkAttribute::Mtu(mtu) => info.mtu = mtu,
            LinkAttribute::Link(index) => peer_index = Some(index),
            // Of a namespace that has no number it is -1 (`NETNSA_NSID_NOT_ASSIGNED`).
            LinkAttribute::LinkNetNsId(id) => peer_netns_id = Some(id).filter(|id| *id >= 0),
            LinkAttribute::LinkInfo(infos) => {
                for nested in infos {
                    if let Info::Kind(kind) = nested {
                        info.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    info.peer = peer_index.zip(peer_netns_id).map(|(index, netns_id)| Peer { index, netns_id });
    Some(info)
}
