//! What is told of packets and to whom, with the packet in memory.

use bytemuck::Zeroable as _;
use margay_abi::{
    Counter,
    event::{Event, Interest, Note, event_has, interest},
    flow_verdict::{DIRECT, VIA_STACK},
};

use crate::{
    fixtures::{A, B, HOST_MAC, TestPacket, TestTables},
    frames::{self, Ipv4, Ipv6, ethernet, tcp_flags},
    from_pod,
    report::{Interested, describe, is_wanted},
    to_pod::{Hook, learn},
};

// What the hooks note

#[test]
fn a_flow_is_noted_when_it_gets_a_verdict_and_never_again() {
    let tables = TestTables::new();
    let noted = |flags| {
        let mut packet = a_to_b(6, &frames::tcp(1, 2, flags));
        from_pod::handle(&mut packet, &tables).expect("passed");
        packet.noted.get()
    };

    assert_eq!(noted(tcp_flags::SYN), Note { is: DIRECT, ..Note::default() });
    assert_eq!(noted(tcp_flags::ACK), Note::default());
    assert_eq!(noted(tcp_flags::SYN), Note::default());
}

#[test]
fn a_flow_whose_fin_is_lost_on_purpose_is_noted_as_the_stacks() {
    let mut packet = a_to_b(6, &frames::tcp(1, 2, tcp_flags::FIN | tcp_flags::ACK));

    from_pod::handle(&mut packet, &TestTables::new()).expect("passed");

    assert_eq!(packet.noted.get(), Note { is: VIA_STACK, ..Note::default() });
}

#[test]
fn a_flow_that_the_stack_takes_over_is_noted_with_what_it_was() {
    let tables = TestTables::all_direct();
    let packet = TestPacket::new(ethernet(HOST_MAC, A.mac, 0x0800, &a_to_b_v4(6)));

    learn(&packet, &tables, Hook::ToPod);
    assert_eq!(packet.noted.get(), Note { was: DIRECT, is: VIA_STACK, ..Note::default() });

    packet.noted.take();
    learn(&packet, &tables, Hook::ToPod);
    assert_eq!(packet.noted.get(), Note::default(), "it has the flow already");
}

#[test]
fn what_a_full_table_does_not_take_is_not_noted() {
    let tables = TestTables { remembers_nothing: true, ..TestTables::new() };
    let mut packet = a_to_b(6, &frames::tcp(1, 2, tcp_flags::SYN));

    from_pod::handle(&mut packet, &tables).expect("passed");
    learn(&packet, &tables, Hook::ToPod);

    assert_eq!(packet.noted.get(), Note::default());
}

// What is told of a packet

#[test]
fn addresses_protocol_and_ports_are_told_of_either_family() {
    let v4 = told(a_to_b(17, &frames::udp(7, 53, b"")));
    assert_eq!((v4.src[12..].to_vec(), v4.dst[12..].to_vec()), (A.v4.to_vec(), B.v4.to_vec()));
    assert_eq!(v4.src[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    assert_eq!((v4.src_port, v4.dst_port, v4.protocol), ([0, 7], [0, 53], 17));
    assert_eq!((v4.ifindex, v4.mac, v4.bytes), (A.ifindex, A.mac, 14 + 20 + 8));
    assert_eq!(v4.has, ALL);

    // Behind a header of options for the receiver.
    let options = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &frames::tcp(1, 2, tcp_flags::SYN)].concat();
    let packet = Ipv6::new(A.v6, B.v6, 60).packet(&options);
    let v6 = told(TestPacket::new(ethernet(HOST_MAC, A.mac, 0x86dd, &packet)));
    assert_eq!((v6.src, v6.dst), (A.v6, B.v6));
    assert_eq!((v6.src_port, v6.dst_port, v6.protocol, v6.has), ([0, 1], [0, 2], 6, ALL));
}

#[test]
fn an_echo_has_its_identifier_for_ports_and_what_has_none_has_none() {
    let echo = told(a_to_b(1, &frames::echo(8, 0x1234)));
    assert_eq!((echo.src_port, echo.dst_port, echo.has), ([0x12, 0x34], [0x12, 0x34], ALL));

    let without_ports = event_has::ADDRESSES | event_has::PROTOCOL;
    assert_eq!(told(a_to_b(47, &[0; 20])).has, without_ports, "GRE");
    let later = Ipv4 { fragment: 0x2001, ..Ipv4::new(A.v4, B.v4, 17) };
    let later = later.packet(&frames::udp(7, 53, b""));
    let later = told(TestPacket::new(ethernet(HOST_MAC, A.mac, 0x0800, &later)));
    assert_eq!(later.has, without_ports, "a fragment's middle has other bytes there");
}

#[test]
fn arp_has_sender_and_target() {
    let arp = frames::arp(1, (A.mac, A.v4), ([0; 6], B.v4));
    let event = told(TestPacket::new(ethernet([0xff; 6], A.mac, 0x0806, &arp)));

    assert_eq!((&event.src[12..], &event.dst[12..]), (&A.v4[..], &B.v4[..]));
    assert_eq!((event.ethertype, event.has), ([8, 6], event_has::ADDRESSES));
}

#[test]
fn of_a_packet_that_is_cut_off_all_is_told_that_is_there() {
    let whole = a_to_b(17, &frames::udp(7, 53, b"")).bytes;
    for len in 0..whole.len() {
        let event = told(TestPacket::new(whole[..len].to_vec()));

        let expected = match len {
            ..34 => 0,
            _ => event_has::ADDRESSES | event_has::PROTOCOL,
        };
        assert_eq!((event.has, event.bytes as usize), (expected, len));
    }
}

// To whom

#[test]
fn a_drop_is_told_to_who_asked_for_its_reason_and_a_flow_to_who_asked_for_flows() {
    let drop = |counter: Counter| Note { dropped: counter as u8, ..Note::default() };
    let flow = Note { is: DIRECT, ..Note::default() };
    let drops = Interest { drops: 1 << Counter::DropMalformed as u32, ..Interest::default() };
    let flows = Interest { flows: 1, ..Interest::default() };
    let wants = |note, interest: &Interest| {
        is_wanted(&Event { note, ..Event::zeroed() }, interest, &Nobody)
    };

    assert!(wants(drop(Counter::DropMalformed), &drops));
    assert!(!wants(drop(Counter::DropSpoofedSource), &drops));
    assert!(!wants(flow, &drops) && wants(flow, &flows));
    assert!(!wants(drop(Counter::DropMalformed), &flows));
    let both = Note { is: DIRECT, ..drop(Counter::DropMalformed) };
    assert!(wants(both, &drops) && wants(both, &flows));
}

#[test]
fn of_pods_and_addresses_that_were_asked_for_both_must_be_found() {
    let event = Event {
        note: Note { is: DIRECT, ..Note::default() },
        ifindex: A.ifindex,
        src: A.v6,
        dst: B.v6,
        has: event_has::ADDRESSES,
        ..Event::zeroed()
    };
    let wants = |bits, event: &Event| {
        is_wanted(event, &Interest { flows: 1, bits, ..Interest::default() }, &LinkAHostB)
    };
    let elsewhere = Event { ifindex: 99, ..event };
    let stranger = Event { dst: A.v6, ..event };
    let without_addresses = Event { has: 0, ..event };

    let both = interest::POD | interest::ADDRESS;
    assert!(wants(interest::POD, &event) && !wants(interest::POD, &elsewhere));
    assert!(wants(interest::ADDRESS, &event) && !wants(interest::ADDRESS, &stranger));
    assert!(wants(both, &event) && !wants(both, &elsewhere) && !wants(both, &stranger));
    assert!(wants(interest::POD, &without_addresses) && !wants(both, &without_addresses));
}

const ALL: u8 = event_has::ADDRESSES | event_has::PROTOCOL | event_has::PORTS;

struct Nobody;

impl Interested for Nobody {
    fn interest(&self) -> Option<&Interest> {
        None
    }

    fn of_host(&self, _: &[u8; 16]) -> u32 {
        panic!("nobody asked for addresses")
    }

    fn of_link(&self, _: u32) -> u32 {
        panic!("nobody asked for pods")
    }
}

/// The pod that was asked for is A's interface, and the address B's.
struct LinkAHostB;

impl Interested for LinkAHostB {
    fn interest(&self) -> Option<&Interest> {
        None
    }

    fn of_host(&self, address: &[u8; 16]) -> u32 {
        if *address == B.v6 { interest::ADDRESS } else { 0 }
    }

    fn of_link(&self, ifindex: u32) -> u32 {
        if ifindex == A.ifindex { interest::POD } else { 0 }
    }
}

fn told(packet: TestPacket) -> Event {
    let mut event = Event::zeroed();
    describe(&packet, &mut event);
    event
}

fn a_to_b(protocol: u8, payload: &[u8]) -> TestPacket {
    let packet = Ipv4::new(A.v4, B.v4, protocol).packet(payload);
    TestPacket::new(ethernet(HOST_MAC, A.mac, 0x0800, &packet))
}

fn a_to_b_v4(protocol: u8) -> Vec<u8> {
    Ipv4::new(A.v4, B.v4, protocol).packet(&frames::tcp(1, 2, tcp_flags::ACK))
}
