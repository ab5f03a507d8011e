//! The packet's way from hook to hook, in a rehearsal.

use std::net::IpAddr;
use std::path::PathBuf;

use margay::netlink::{Netlink, PacketRoute};
use margay::result::mac_text;
use margay_abi::{Counter, pod_flags};
use margay_datapath::{
    Arrival, Datapath, NodeDatapath, NodeInterface, Program, Rehearsal, remote_mode,
};

use super::frame::{self, Flow, Frame};
use super::packet::ETHERNET;
use super::parties::{Origin, Parties, node_address};
use super::report::{
    Attached, Change, Ending, Lookup, Outcome, Packet, ProgramStep, Route, StackStep, Step, Trace,
};
use super::words::{Verdict, describe, in_words, meaning, summary, tcp_flags};
use crate::commands::datapath::flows::verdict_name;
use crate::failure::Failure;

/// What a walk needs.
pub(super) struct Walk<'a> {
    pub(super) rehearsal: Rehearsal,
    pub(super) datapath: &'a Datapath,
    pub(super) netlink: &'a Netlink,
    pub(super) parties: &'a Parties<'a>,
    pub(super) root: PathBuf,
}

/// A packet at a hook.
struct Visit<'f> {
    program: Program,
    ifindex: u32,
    ingress_ifindex: u32,
    interface: String,
    frame: &'f [u8],
}

/// What a hook made of it.
struct Visited {
    step: ProgramStep,
    frame: Vec<u8>,
    counter: Option<Counter>,
}

impl Walk<'_> {
    /// From where the packet begins to where it ends.
    pub(super) async fn trace(&self, origin: Origin, bytes: Vec<u8>) -> Result<Trace, Failure> {
        let packet = Packet {
            summary: summary(&bytes),
            length: bytes.len() - ETHERNET,
            frame: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        self.copy_flow(&bytes)?;
        let mut steps = Vec::new();
        let outcome = match entrance(&origin, &bytes) {
            None => self.in_the_stack(bytes, 0, &mut steps).await?,
            Some(visit) => {
                let Visited { step, frame, counter } = self.visit(&visit).await?;
                let verdict = step.verdict;
                steps.push(Step::Program(step));
                match verdict {
                    Verdict::Stack | Verdict::Pass => {
                        self.behind(counter, frame, visit.ifindex, &mut steps).await?
                    }
                    _ => self.past_the_stack(verdict, &frame, &bytes).await?,
                }
            }
        };
        Ok(Trace { packet, build: Rehearsal::BUILD, steps, outcome })
    }

    /// Has the rehearsal know what the live programs know of the packet's flow.
    fn copy_flow(&self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(flow) = flow(bytes) else { return Ok(()) };
        if let Some(verdict) = flow.verdict(self.datapath.flows())? {
            flow.set(self.rehearsal.flows(), verdict)?;
        }
        Ok(())
    }

    /// Takes the packet through a hook.
    async fn visit(&self, visit: &Visit<'_>) -> Result<Visited, Failure> {
        let attached = self.attached(visit).await?;
        let lookups = self.lookups(visit).await?;
        let mut step = ProgramStep {
            hook: visit.program.name(),
            interface: visit.interface.clone(),
            attached,
            lookups,
            counter: None,
            verdict: Verdict::Pass,
            meaning: String::new(),
            changes: Vec::new(),
            learned: None,
            notes: Vec::new(),
        };
        if attached == Attached::Nothing {
            step.lookups.clear();
            step.meaning = "no program is attached here: the packet passes".to_owned();
            return Ok(Visited { step, frame: visit.frame.to_vec(), counter: None });
        }
        if attached == Attached::OtherBuild {
            step.notes.push(format!(
                "programs of another build are attached here; what is said is what those of {} do",
                Rehearsal::BUILD
            ));
        }
        let before = self.known(visit.frame)?;
        let arrival = Arrival { ifindex: visit.ifindex, ingress_ifindex: visit.ingress_ifindex };
        let outcome = self.rehearsal.run(visit.program, visit.frame, arrival)?;
        let after = self.known(visit.frame)?;
        if before != after {
            step.learned = after.map(|verdict| verdict_name(verdict).to_owned());
        }
        let (verdict, words) = match outcome.counter {
            Some(counter) => meaning(counter),
            None => (Verdict::Pass, "passed on: it is not between two pods that the program knows"),
        };
        step.counter = outcome.counter.map(Counter::name);
        step.verdict = verdict;
        words.clone_into(&mut step.meaning);
        let (outer, inside) = frame::unwrapped(&outcome.frame, visit.frame.len());
        step.changes = changes(visit.frame, inside);
        if let Some([from, to]) = outer {
            step.notes.push(format!("outer headers of VXLAN from {from} to {to} are put in front"));
        }
        Self::note_proof(visit, &mut step);
        Ok(Visited { step, frame: outcome.frame, counter: outcome.counter })
    }

    /// A rehearsal's packet does not bring along what `from_pod` puts beside one for the hook behind the
    /// stack: by that, a flow whose first packet the stack leaves alone becomes direct.
    fn note_proof(visit: &Visit<'_>, step: &mut ProgramStep) {
        let is_behind =
            matches!(visit.program, Program::ToPod | Program::ToOverlay | Program::ToUplink);
        let is_proven = flow(visit.frame).is_some_and(|flow| !flow.is_connection());
        if is_behind && is_proven && step.learned.take().is_some() {
            step.notes.push(
                "the flow becomes direct if the packet comes out of the stack as it went in, and \
                 via_stack otherwise"
                    .to_owned(),
            );
        }
    }

    /// What the rehearsal knows of the frame's flow.
    fn known(&self, bytes: &[u8]) -> Result<Option<u8>, Failure> {
        match flow(bytes) {
            Some(flow) => Ok(flow.verdict(self.rehearsal.flows())?),
            None => Ok(None),
        }
    }

    /// What has gone past the stack.
    async fn past_the_stack(
        &self,
        verdict: Verdict,
        frame: &[u8],
        asked: &[u8],
    ) -> Result<Outcome, Failure> {
        let destination = Frame::read(asked).and_then(|frame| frame.addresses());
        let name = |address| self.parties.name_of(address);
        let [sender, receiver] =
            destination.map_or([String::new(), String::new()], |ends| ends.map(name));
        Ok(match verdict {
            Verdict::Answer => {
                let [_, mac] = Frame::read(frame).map_or([[0; 6]; 2], |frame| frame.macs);
                let summary = format!("Answered: {} is told {}.", sender, mac_text(mac));
                Outcome { result: Ending::Answered, summary }
            }
            Verdict::Drop => Outcome { result: Ending::Dropped, summary: "Dropped.".to_owned() },
            Verdict::Send => {
                let summary = match destination {
                    Some([_, receiver]) => {
                        let is_wrapped = frame::unwrapped(frame, asked.len()).0.is_some();
                        self.way_to_node(receiver, is_wrapped).await?
                    }
                    None => String::new(),
                };
                Outcome { result: Ending::Sent, summary }
            }
            _ => {
                let summary = format!("Delivered to {receiver}, past the host's stack.");
                Outcome { result: Ending::Delivered, summary }
            }
        })
    }

    async fn way_to_node(&self, receiver: IpAddr, is_wrapped: bool) -> Result<String, Failure> {
        let name = self.parties.name_of(receiver);
        let Some(remote) = self.datapath.remotes().get(receiver)? else {
            return Ok(format!("Sent to the node of {name}."));
        };
        let node = node_address(&remote);
        let shape = if remote.mode == remote_mode::VXLAN { "in VXLAN" } else { "as it is" };
        let ifindex = if remote.mode == remote_mode::VXLAN && !is_wrapped {
            Some(self.datapath.overlay()?.towards(&remote.node))
        } else {
            let route = self.netlink.route_to(if is_wrapped { node } else { receiver }).await?;
            route.and_then(|route| route.ifindex)
        };
        let interface = match ifindex {
            Some(ifindex) => format!(" by {}", self.parties.interface_name(ifindex).await?),
            None => String::new(),
        };
        Ok(format!("Sent to node {node}, {shape}{interface}, for {name}, past the host's stack."))
    }

    /// What a hook has left to the stack.
    async fn behind(
        &self,
        counter: Option<Counter>,
        frame: Vec<u8>,
        came_by: u32,
        steps: &mut Vec<Step>,
    ) -> Result<Outcome, Failure> {
        let why = match counter {
            Some(Counter::StackIcmpError) => Some((
                "the stack answers with an ICMP error; or it cuts the packet into fragments, where \
                 it may",
                Ending::Refused,
            )),
            Some(Counter::StackControl) => {
                Some(("the stack takes it for what is said on this link alone", Ending::Host))
            }
            Some(Counter::StackMulticast) => {
                Some(("the stack forwards no group's packets unless told to", Ending::Host))
            }
            _ => None,
        };
        let Some((meaning, result)) = why else {
            return self.in_the_stack(frame, came_by, steps).await;
        };
        steps.push(Step::Stack(StackStep {
            meaning: meaning.to_owned(),
            route: None,
            notes: Vec::new(),
        }));
        let summary = match result {
            Ending::Refused => "Refused by the host's stack.",
            _ => "Left to the host's stack.",
        };
        Ok(Outcome { result, summary: summary.to_owned() })
    }

    /// Where the kernel's routes lead it, and through the hook there.
    async fn in_the_stack(
        &self,
        frame: Vec<u8>,
        came_by: u32,
        steps: &mut Vec<Step>,
    ) -> Result<Outcome, Failure> {
        let mut step = StackStep { meaning: String::new(), route: None, notes: Vec::new() };
        let read = Frame::read(&frame).and_then(|frame| frame.ip);
        let Some(ip) = read.filter(|ip| !ip.is_to_group()) else {
            "the stack's own matter: not a packet to one IP address".clone_into(&mut step.meaning);
            steps.push(Step::Stack(step));
            let summary = "Left to the host's stack.".to_owned();
            return Ok(Outcome { result: Ending::Host, summary });
        };
        step.notes.push(
            "netfilter's rules (Services, NAT, firewalls) may send it elsewhere or drop it: they are \
             not looked at"
                .to_owned(),
        );
        let came_by_link = (came_by != 0).then_some(came_by);
        let found = self.netlink.route_of(ip.source, ip.destination, came_by_link).await?;
        let (ending, hops) = match &found {
            None => (Some((Ending::Refused, "no route, or the kernel refuses to forward it")), 0),
            Some(PacketRoute { is_local: true, .. }) => {
                (Some((Ending::Host, "for the host itself")), 0)
            }
            Some(_) if came_by != 0 && ip.hop_limit <= 1 => {
                (Some((Ending::Refused, "the last hop: the stack sends the ICMP error")), 0)
            }
            Some(_) => (None, u8::from(came_by != 0)),
        };
        step.route = match &found {
            Some(found) => Some(self.route(found, ip.destination).await?),
            None => None,
        };
        if let Some((result, meaning)) = ending {
            meaning.clone_into(&mut step.meaning);
            steps.push(Step::Stack(step));
            return Ok(Outcome { result, summary: in_words(result).to_owned() });
        }
        "forwarded by this route".clone_into(&mut step.meaning);
        steps.push(Step::Stack(step));
        let ifindex = found.and_then(|found| found.route.ifindex).unwrap_or_default();
        self.on_the_way_out(&frame, ip.destination, [came_by, ifindex], hops, steps).await
    }

    async fn route(&self, found: &PacketRoute, to: IpAddr) -> Result<Route, Failure> {
        let route = &found.route;
        let any = if to.is_ipv4() { "default" } else { "default (IPv6)" };
        Ok(Route {
            destination: match route.destination {
                Some(destination) => format!("{destination}/{}", route.prefix_length),
                None => any.to_owned(),
            },
            gateway: route.gateway.map(|gateway| gateway.to_string()),
            interface: match route.ifindex {
                Some(ifindex) => Some(self.parties.interface_name(ifindex).await?),
                None => None,
            },
        })
    }

    /// The hook of the interface that the stack sends it by.
    async fn on_the_way_out(
        &self,
        frame: &[u8],
        destination: IpAddr,
        [came_by, ifindex]: [u32; 2],
        hops: u8,
        steps: &mut Vec<Step>,
    ) -> Result<Outcome, Failure> {
        let link = self.netlink.link_by_index(ifindex).await?;
        let interface = self.parties.interface_name(ifindex).await?;
        let pod = self.datapath.pods().get(destination)?.filter(|pod| pod.ifindex == ifindex);
        let program = match link {
            _ if pod.is_some() => Program::ToPod,
            Some(link) if link.kind == "vxlan" => Program::ToOverlay,
            _ => Program::ToUplink,
        };
        let macs = pod.map_or([[0; 6]; 2], |pod| [pod.pod_mac, pod.host_mac]);
        let sent = frame::forwarded(frame, macs, hops);
        let visit = Visit {
            program,
            ifindex,
            ingress_ifindex: came_by,
            interface: interface.clone(),
            frame: &sent,
        };
        let attached = self.attached(&visit).await?;
        if pod.is_some() || attached != Attached::Nothing {
            let Visited { step, .. } = self.visit(&visit).await?;
            steps.push(Step::Program(step));
        }
        Ok(match pod {
            Some(_) => Outcome {
                result: Ending::Delivered,
                summary: format!(
                    "Delivered to {} by the host's stack.",
                    self.parties.name_of(destination)
                ),
            },
            None => Outcome {
                result: Ending::Left,
                summary: format!("Sent by {interface}, by the host's stack."),
            },
        })
    }

    /// Whose program is at a hook.
    async fn attached(&self, visit: &Visit<'_>) -> Result<Attached, Failure> {
        let netlink = self.netlink.handle();
        let (found, ours) = match visit.program {
            Program::FromPod | Program::ToPod => {
                let mode = Datapath::attach_mode_of(&self.root, &visit.interface);
                let found = self.datapath.inspect(netlink, visit.ifindex, mode).await?;
                let ours = Datapath::open(&self.root)?;
                let ours = ours.and_then(|ours| ours.program_ids().get(visit.program));
                (found.get(visit.program), ours)
            }
            program => {
                let interface = match program {
                    Program::FromOverlay | Program::ToOverlay => NodeInterface::Overlay,
                    _ => NodeInterface::Uplink,
                };
                let [ingress, egress] =
                    NodeDatapath::inspect(netlink, visit.ifindex, interface).await?;
                let is_ingress = matches!(program, Program::FromOverlay | Program::FromUplink);
                let ours = NodeDatapath::open(&self.root)?;
                let ours = ours.and_then(|ours| ours.program_id(program));
                (if is_ingress { ingress } else { egress }, ours)
            }
        };
        Ok(match found {
            None => Attached::Nothing,
            found if found == ours => Attached::ThisBuild,
            Some(_) => Attached::OtherBuild,
        })
    }

    /// What the maps say of what the program may ask for.
    async fn lookups(&self, visit: &Visit<'_>) -> Result<Vec<Lookup>, Failure> {
        let Some(read) = Frame::read(visit.frame) else { return Ok(Vec::new()) };
        let Some([source, destination]) = read.addresses() else { return Ok(Vec::new()) };
        let (pods, remotes) =
            if source.is_ipv4() { ("pods_v4", "remote_v4") } else { ("pods_v6", "remote_v6") };
        let is_pods = matches!(visit.program, Program::FromPod | Program::ToPod);
        let from_node = matches!(visit.program, Program::FromOverlay | Program::FromUplink);
        let mut lookups = Vec::new();
        let mut ends = vec![(source, from_node)];
        if read.ip.is_some() {
            ends.push((destination, !is_pods && !from_node));
        }
        for (address, is_remote) in ends {
            let pod = if is_remote { None } else { self.pod(address).await? };
            let is_known = pod.is_some();
            if !is_remote {
                lookups.push(Lookup { map: pods, key: address.to_string(), found: pod });
            }
            let is_elsewhere = visit.program == Program::FromPod && address == destination;
            let looks = is_elsewhere && self.rehearsal.node_program().is_some();
            let looks = looks || (visit.program == Program::ToPod && address == source);
            if is_remote || (!is_known && looks) {
                let found = self.remote(address)?;
                lookups.push(Lookup { map: remotes, key: address.to_string(), found });
            }
        }
        if let Some(flow) = read.ip.and_then(|ip| ip.flow) {
            let found = flow.verdict(self.rehearsal.flows())?;
            let map = if source.is_ipv4() { "flows_v4" } else { "flows_v6" };
            let found = found.map(|verdict| verdict_name(verdict).to_owned());
            lookups.push(Lookup { map, key: describe(&flow), found });
        }
        Ok(lookups)
    }

    async fn pod(&self, address: IpAddr) -> Result<Option<String>, Failure> {
        let Some(pod) = self.datapath.pods().get(address)? else { return Ok(None) };
        let name = self.parties.name_of(address);
        let interface = self.parties.interface_name(pod.ifindex).await?;
        let shaped = if pod.flags & pod_flags::SHAPED == 0 { "" } else { ", limited bandwidth" };
        let mtu = if pod.mtu == 0 { String::new() } else { format!(", MTU {}", pod.mtu) };
        Ok(Some(format!("{name}: {interface}, {}{mtu}{shaped}", mac_text(pod.pod_mac))))
    }

    fn remote(&self, address: IpAddr) -> Result<Option<String>, Failure> {
        let Some(remote) = self.datapath.remotes().get(address)? else { return Ok(None) };
        let way = if remote.mode == remote_mode::VXLAN { "VXLAN" } else { "plain" };
        Ok(Some(format!("node {}: {way}, MTU {}", node_address(&remote), remote.mtu)))
    }
}

/// The hook that the packet comes to first; the stack, where it begins there.
fn entrance<'f>(origin: &Origin, frame: &'f [u8]) -> Option<Visit<'f>> {
    let (program, ifindex, interface) = match origin {
        Origin::Pod { ifindex, interface, .. } => (Program::FromPod, *ifindex, interface),
        Origin::Host => return None,
        Origin::Node { interface, by_overlay: true } => {
            (Program::FromOverlay, interface.ifindex, &interface.name)
        }
        Origin::Node { interface, by_overlay: false } | Origin::Outside { interface } => {
            (Program::FromUplink, interface.ifindex, &interface.name)
        }
    };
    let interface = interface.clone();
    Some(Visit { program, ifindex, ingress_ifindex: ifindex, interface, frame })
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    Frame::read(bytes)?.ip?.flow
}

/// What is different.
fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let (Some(old), Some(new)) = (Frame::read(before), Frame::read(after)) else {
        return Vec::new();
    };
    let mut changes = Vec::new();
    let mut compare = |field, before: String, after: String| {
        if before != after {
            changes.push(Change { field, before, after });
        }
    };
    compare("destination MAC", mac_text(old.macs[0]), mac_text(new.macs[0]));
    compare("source MAC", mac_text(old.macs[1]), mac_text(new.macs[1]));
    if let (Some(old), Some(new)) = (&old.ip, &new.ip) {
        let field = if old.source.is_ipv4() { "TTL" } else { "hop limit" };
        compare(field, old.hop_limit.to_string(), new.hop_limit.to_string());
        if let (Some(old), Some(new)) = (old.tcp_flags, new.tcp_flags) {
            compare("TCP flags", tcp_flags(old), tcp_flags(new));
        }
    }
    changes
}
