//! A packet that looks as if it had come through a tunnel.
//!
//! `BPF_PROG_TEST_RUN` has no way to say so. A program of a few instructions does: it gives the packet a
//! tunnel whose own end is the other node's address, which `bpf_skb_get_tunnel_key` takes for the end
//! that the packet came from, and goes on in the program that is rehearsed.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::maps::MapData;
use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_CALL, BPF_DW, BPF_EXIT, BPF_IMM, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD,
    BPF_MEM, BPF_MOV, BPF_PSEUDO_MAP_FD, BPF_ST, BPF_W, BPF_X, bpf_insn, bpf_map_type,
};
use margay_abi::mapped_ipv4;

use super::set_program;
use crate::bound::{self, Bound};
use crate::bpf::{self, Records, TcProgram};
use crate::test_run::SkBuff;

/// Numbers of helpers (`include/uapi/linux/bpf.h`).
const TAIL_CALL: i32 = 12;
const SET_TUNNEL_KEY: i32 = 21;
const BPF_F_TUNINFO_IPV6: i32 = 1;
/// `struct bpf_tunnel_key`, and where the packet's own end is in it (Linux 6.0, 26101f5ab6bd).
const KEY_BYTES: i16 = 44;
const LOCAL: i16 = 28;
/// Where the key begins on the stack, aligned.
const KEY: i16 = -48;
/// What it returns where the helper refuses, or the tail call leads nowhere. No TC action is this.
const REFUSED: i32 = 0x7fff;

/// Runs `program` on a packet that came from `node` through a tunnel.
pub(super) fn run(
    bound: &Bound,
    program: &OwnedFd,
    node: [u8; 16],
    frame: &mut Vec<u8>,
    context: SkBuff,
) -> io::Result<()> {
    let array =
        aya_obj::Map::new_from_params(bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32, 4, 4, 1, 0);
    let array = MapData::create(array, "rehearsed", None).map_err(io::Error::other)?;
    set_program(&array, program)?;
    let instructions = instructions(node, array.fd().as_fd());
    let none = || Records { bytes: &[], record_bytes: 1 };
    let entry = bound::verify(&TcProgram {
        name: c"in_tunnel",
        license: c"GPL",
        instructions: &instructions,
        btf: bound.btf(),
        functions: none(),
        lines: none(),
    });
    let entry = entry.map_err(io::Error::other)?;
    let action = bpf::run_program(entry.as_fd(), frame, bytemuck::bytes_of(&context))?;
    if action == REFUSED { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// `r6` keeps the packet.
fn instructions(node: [u8; 16], array: BorrowedFd<'_>) -> Vec<bpf_insn> {
    let (words, flags) = match mapped_ipv4(&node) {
        // The helper takes an IPv4 address as a number, and an IPv6 address as it is.
        Some(v4) => (vec![u32::from_be_bytes(v4)], 0),
        None => {
            let words = node.chunks_exact(4);
            let words = words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            (words.collect(), BPF_F_TUNINFO_IPV6)
        }
    };
    let mut code = vec![copy(6, 1)];
    for offset in (KEY..0).step_by(8) {
        code.push(insn(BPF_ST | BPF_MEM | BPF_DW, 10, 0, offset, 0));
    }
    for (place, word) in words.into_iter().enumerate() {
        let offset = KEY + LOCAL + 4 * place as i16;
        code.push(insn(BPF_ST | BPF_MEM | BPF_W, 10, 0, offset, word.cast_signed()));
    }
    code.extend([
        copy(2, 10),
        insn(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, KEY.into()),
        number(3, KEY_BYTES.into()),
        number(4, flags),
        insn(BPF_JMP | BPF_CALL, 0, 0, 0, SET_TUNNEL_KEY),
        // To the tail call if it has not refused.
        insn(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
        number(0, REFUSED),
        insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        copy(1, 6),
        insn(BPF_LD | BPF_IMM | BPF_DW, 2, BPF_PSEUDO_MAP_FD as u8, 0, array.as_raw_fd()),
        insn(0, 0, 0, 0, 0),
        number(3, 0),
        insn(BPF_JMP | BPF_CALL, 0, 0, 0, TAIL_CALL),
        number(0, REFUSED),
        insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    ]);
    code
}

fn copy(to: u8, from: u8) -> bpf_insn {
    insn(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)
}

fn number(to: u8, number: i32) -> bpf_insn {
    insn(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, number)
}

fn insn(code: u32, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
        off,
        imm,
    }
}
