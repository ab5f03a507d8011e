use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use margay_abi::event::{self, Note};

use crate::{
    maps::KernelMaps,
    packet::Skb,
    report,
    to_pod::{Hook, learn},
};

#[classifier]
pub(crate) fn to_overlay(context: TcContext) -> i32 {
    run(&context, event::Hook::ToOverlay)
}

#[classifier]
pub(crate) fn to_uplink(context: TcContext) -> i32 {
    run(&context, event::Hook::ToUplink)
}

#[inline(always)]
fn run(context: &TcContext, hook: event::Hook) -> i32 {
    let packet = Skb::new(context);
    packet.set_note(Note::default());
    learn(&packet, &KernelMaps, Hook::ToNode);
    report::end(context, hook, TC_ACT_UNSPEC, 0)
}
