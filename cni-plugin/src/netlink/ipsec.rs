//! Whether the host has IPsec policies, asked over `NETLINK_XFRM` (`linux/xfrm.h`), whatever put them
//! there.

use margay_failpoints::{self as failpoints, Kind};
use netlink_packet_core::NLM_F_REQUEST;
use rustix::io::Errno;
use rustix::net::netlink::{SocketAddrNetlink, XFRM};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use super::NetlinkError;

const OPERATION: &str = "count";
const OBJECT: &str = "IPsec policies";

/// Of a message (`struct nlmsghdr`), in bytes.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
/// `XFRM_MSG_NEWSPDINFO`: flags, then attributes.
const ANSWER: u16 = 0x24;
/// `XFRM_MSG_GETSPDINFO`: flags.
const REQUEST: u16 = 0x25;
/// `XFRMA_SPD_INFO`, which is the first attribute: how many policies there are for what comes in, goes out
/// and is forwarded, then as many of sockets.
const SPD_INFO: u16 = 1;
/// Five attributes of at most 24 bytes, with room for more.
const LONGEST_ANSWER: usize = 4096;

/// Whether there are IPsec policies in the calling thread's network namespace, those of single sockets
/// aside. None where the kernel is without IPsec.
///
/// # Errors
/// When the kernel refuses to say.
pub fn has_ipsec_policies() -> Result<bool, NetlinkError> {
    let error = |source: std::io::Error| NetlinkError::new(OPERATION, OBJECT, source);
    failpoints::before(Kind::NetlinkQuery, format_args!("{OPERATION} {OBJECT}")).map_err(error)?;
    match ask() {
        Ok(answer) => {
            policies(&answer).map(|counts| counts.iter().any(|count| *count > 0)).map_err(error)
        }
        Err(Errno::PROTONOSUPPORT) => Ok(false),
        Err(errno) => Err(error(errno.into())),
    }
}

/// The kernel answers while it is asked.
fn ask() -> rustix::io::Result<Vec<u8>> {
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(XFRM))?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; LONGEST_ANSWER];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    answer.truncate(length);
    Ok(answer)
}

/// In the host's byte order, as all of netlink's headers.
fn request() -> Vec<u8> {
    let length = HEADER as u32 + 4;
    let flags = 0_u32;
    [
        &length.to_ne_bytes()[..],
        &REQUEST.to_ne_bytes(),
        &NLM_F_REQUEST.to_ne_bytes(),
        &[0; 8],
        &flags.to_ne_bytes(),
    ]
    .concat()
}

/// Policies for what comes in, goes out and is forwarded.
fn policies(answer: &[u8]) -> std::io::Result<[u32; 3]> {
    let garbled = || std::io::Error::new(std::io::ErrorKind::InvalidData, "an unknown answer");
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let attribute = HEADER + 4;
    match (u16_at(4), u16_at(attribute + 2)) {
        (Some(NLMSG_ERROR), _) => {
            let errno = u32_at(HEADER).ok_or_else(garbled)?.cast_signed();
            Err(std::io::Error::from_raw_os_error(errno.saturating_neg()))
        }
        (Some(ANSWER), Some(SPD_INFO)) => {
            let count = |place: usize| u32_at(attribute + 4 + 4 * place).ok_or_else(garbled);
            Ok([count(0)?, count(1)?, count(2)?])
        }
        _ => Err(garbled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u32]) -> Vec<u8> {
        let length = (HEADER + 4 * body.len()) as u32;
        let body = body.iter().flat_map(|word| word.to_ne_bytes());
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]]
            .concat()
            .into_iter()
            .chain(body)
            .collect()
    }

    fn attribute_header() -> u32 {
        let [a, b] = 28_u16.to_ne_bytes();
        let [c, d] = SPD_INFO.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    #[test]
    fn counts_are_those_of_the_three_directions() {
        let answer = message(ANSWER, &[0, attribute_header(), 1, 2, 3, 7, 8, 9]);

        assert_eq!(policies(&answer).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn refusals_keep_their_errno_and_anything_else_is_an_error() {
        let refused = message(NLMSG_ERROR, &[(-1_i32).cast_unsigned()]);

        assert_eq!(policies(&refused).unwrap_err().raw_os_error(), Some(1));
        let answer = message(ANSWER, &[0, attribute_header(), 1, 2, 3]);
        for length in 0..answer.len() {
            assert!(policies(&answer[..length]).is_err(), "{length}");
        }
    }
}
