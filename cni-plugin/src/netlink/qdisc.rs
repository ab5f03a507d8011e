//! Queueing disciplines and the filter behind margay's program: what limits a rate.
//!
//! netlink-packet-route has neither the token bucket's attributes nor those of a classic BPF filter.
//! They are put together here, field by field as the kernel's headers have them.

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, Nla, NlaBuffer,
    NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption,
};
use rustix::io::Errno;

use super::{Netlink, NetlinkError};

/// A token bucket (`tbf`) to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// How fast it fills, in bytes per second.
    pub rate_bytes_per_s: u64,
    /// How much it holds. A packet that is longer is cut into its segments, or dropped.
    pub burst_bytes: u32,
    /// How much may wait for it; what comes then is dropped.
    pub queue_bytes: u32,
}

/// What the kernel says of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucketInfo {
    /// How fast it fills, in bytes per second.
    pub rate_bytes_per_s: u64,
    /// How much may wait for it.
    pub queue_bytes: u32,
}

/// The kernel sends a qdisc or a filter to whoever asks for it only with `NLM_F_ECHO`.
const READ: u16 = NLM_F_ACK | NLM_F_ECHO;
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Netlink {
    /// Makes a token bucket the root qdisc of an interface that has none but its default one.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no `tbf`.
    pub async fn create_token_bucket(
        &self,
        ifindex: u32,
        bucket: &TokenBucket,
    ) -> Result<(), NetlinkError> {
        let mut message = root_qdisc(ifindex);
        message.attributes.push(TcAttribute::Kind(tbf::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(tbf::options(bucket)));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.execute("create token bucket", &on(ifindex), message, CREATE).await
    }

    /// The token bucket that is the root qdisc of an interface, if there is one.
    ///
    /// # Errors
    /// Any errno but those that say that there is none.
    pub async fn token_bucket(
        &self,
        ifindex: u32,
    ) -> Result<Option<TokenBucketInfo>, NetlinkError> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(root_qdisc(ifindex));
        let answers = self.query("look up token bucket", &on(ifindex), message, READ).await;
        Ok(none_if_absent(answers)?.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc) => tbf::info(&qdisc),
            _ => None,
        }))
    }

    /// Makes the qdisc that filters hang on at TC ingress, unless the interface has one: `clsact`, or
    /// `ingress`, which will do.
    ///
    /// # Errors
    /// Any errno but `EEXIST`.
    pub async fn ensure_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        match self.execute("create clsact qdisc", &on(ifindex), message, CREATE).await {
            Err(error) if error.is(Errno::EXIST) => Ok(()),
            outcome => outcome,
        }
    }

    /// Hands every packet that comes in by an interface, and that no filter before has decided on,
    /// to another interface, as if that one were to send it.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no `cls_bpf` or no `act_mirred`.
    pub async fn create_redirect(&self, ifindex: u32, to: u32) -> Result<(), NetlinkError> {
        let mut message = redirect_filter(ifindex);
        message.attributes.push(TcAttribute::Options(cls_bpf::redirect_to(to)));
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.execute("create redirect", &on(ifindex), message, CREATE).await
    }

    /// The interface that [`create_redirect`](Self::create_redirect) has packets handed to, if there
    /// is such a filter; 0 if that interface is gone.
    ///
    /// # Errors
    /// Any errno but those that say that there is none.
    pub async fn redirect(&self, ifindex: u32) -> Result<Option<u32>, NetlinkError> {
        let message = RouteNetlinkMessage::GetTrafficFilter(redirect_filter(ifindex));
        let answers = self.query("look up redirect", &on(ifindex), message, READ).await;
        Ok(none_if_absent(answers)?.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => cls_bpf::redirected_to(&filter),
            _ => None,
        }))
    }
}

fn on(ifindex: u32) -> String {
    format!("on link with index {ifindex}")
}

fn root_qdisc(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message
}

/// Names the filter exactly: the last priority there is, so that whatever others have put behind
/// margay's program is asked first, and a handle that tells it from one of theirs.
fn redirect_filter(ifindex: u32) -> TcMessage {
    /// "mgy", as margay's programs have it.
    const HANDLE: u32 = 0x6d_6779;
    /// `ETH_P_ALL` in network byte order, as the lower half of `tcm_info` has it.
    const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent =
        TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
    message.header.handle = HANDLE.into();
    message.header.info = TcHandle { major: u16::MAX, minor: ALL_PROTOCOLS }.into();
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

/// `EINVAL` is the answer where there is no qdisc but the default one.
fn none_if_absent(
    answers: Result<Vec<RouteNetlinkMessage>, NetlinkError>,
) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
    match answers {
        Err(error) if error.is_absent() || error.is(Errno::INVAL) => Ok(Vec::new()),
        answers => answers,
    }
}

fn options(message: &TcMessage) -> impl Iterator<Item = &TcOption> {
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten()
}

/// The token bucket's options: `include/uapi/linux/pkt_sched.h`, `TCA_TBF_*`.
mod tbf {
    use super::{
        DefaultNla, Nla, NlaBuffer, NlasIterator, TcAttribute, TcMessage, TcOption, TokenBucket,
        TokenBucketInfo, options as options_of,
    };

    pub(super) const KIND: &str = "tbf";

    const PARMS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;

    /// `TC_LINKLAYER_ETHERNET`: packets count with what they have, and no table of rates is needed.
    const ETHERNET: u8 = 1;
    /// Of `struct tc_ratespec`: `cell_log`, `linklayer`, `overhead`, `cell_align`, `mpu`, `rate`.
    const RATESPEC_LEN: usize = 12;
    /// Of `struct tc_tbf_qopt`: `rate`, `peakrate`, `limit`, `buffer`, `mtu`.
    const QOPT_LEN: usize = 2 * RATESPEC_LEN + 12;
    const RATE: usize = 8;
    const LIMIT: usize = 2 * RATESPEC_LEN;

    /// `BURST` gives bytes, so that `buffer`, which is a time in 32 bits, may be 0. `RATE64` is for
    /// what `rate` cannot hold.
    pub(super) fn options(bucket: &TokenBucket) -> Vec<TcOption> {
        let mut qopt = vec![0; QOPT_LEN];
        qopt[1] = ETHERNET;
        let rate = u32::try_from(bucket.rate_bytes_per_s).unwrap_or(u32::MAX);
        qopt[RATE..RATE + 4].copy_from_slice(&rate.to_ne_bytes());
        qopt[LIMIT..LIMIT + 4].copy_from_slice(&bucket.queue_bytes.to_ne_bytes());
        let mut options = vec![
            DefaultNla::new(PARMS, qopt),
            DefaultNla::new(BURST, bucket.burst_bytes.to_ne_bytes().to_vec()),
        ];
        if bucket.rate_bytes_per_s > u64::from(rate) {
            options.push(DefaultNla::new(RATE64, bucket.rate_bytes_per_s.to_ne_bytes().to_vec()));
        }
        options.into_iter().map(TcOption::Other).collect()
    }

    /// The options of a kind that netlink-packet-route does not know come as one attribute, unread.
    pub(super) fn info(qdisc: &TcMessage) -> Option<TokenBucketInfo> {
        let is_tbf = |attribute: &TcAttribute| *attribute == TcAttribute::Kind(KIND.to_owned());
        if !qdisc.attributes.iter().any(is_tbf) {
            return None;
        }
        let TcOption::Other(nested) = options_of(qdisc).next()? else { return None };
        let mut bytes = vec![0; nested.value_len()];
        nested.emit_value(&mut bytes);
        read(&bytes)
    }

    fn read(nested: &[u8]) -> Option<TokenBucketInfo> {
        let mut info = None;
        let mut rate64 = None;
        for option in NlasIterator::new(nested) {
            let option: NlaBuffer<&[u8]> = option.ok()?;
            let value = option.value();
            match option.kind() {
                PARMS => {
                    let word =
                        |at: usize| Some(u32::from_ne_bytes(*value.get(at..)?.first_chunk()?));
                    let rate_bytes_per_s = word(RATE)?.into();
                    info = Some(TokenBucketInfo { rate_bytes_per_s, queue_bytes: word(LIMIT)? });
                }
                RATE64 => rate64 = value.first_chunk().map(|rate| u64::from_ne_bytes(*rate)),
                _ => {}
            }
        }
        let info = info?;
        Some(TokenBucketInfo { rate_bytes_per_s: rate64.unwrap_or(info.rate_bytes_per_s), ..info })
    }

    #[cfg(test)]
    mod tests {
        use netlink_packet_core::Emitable;

        use super::*;

        #[test]
        fn a_rate_of_any_size_reads_back() {
            for rate_bytes_per_s in [1, 2_500_000, u32::MAX.into(), 12_500_000_000, u64::MAX] {
                let bucket =
                    TokenBucket { rate_bytes_per_s, burst_bytes: 131_072, queue_bytes: 200_000 };
                let options = options(&bucket);
                let mut bytes = vec![0; options.as_slice().buffer_len()];
                options.as_slice().emit(&mut bytes);

                let info = TokenBucketInfo { rate_bytes_per_s, queue_bytes: 200_000 };
                assert_eq!(read(&bytes), Some(info));
            }
        }

        #[test]
        fn options_that_are_cut_short_say_nothing() {
            let bucket = TokenBucket { rate_bytes_per_s: 1, burst_bytes: 2, queue_bytes: 3 };
            let options = options(&bucket);
            let mut bytes = vec![0; options.as_slice().buffer_len()];
            options.as_slice().emit(&mut bytes);
            for len in 0..QOPT_LEN + 4 {
                assert_eq!(read(&bytes[..len]), None, "{len}");
            }
        }
    }
}

/// A filter's options: `include/uapi/linux/pkt_cls.h`, `TCA_BPF_*`; `include/uapi/linux/filter.h`.
mod cls_bpf {
    use super::{
        DefaultNla, Emitable, Nla, NlasIterator, Parseable, TcAction, TcActionAttribute,
        TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcFilterBpfOption,
        TcMessage, TcMirror, TcMirrorActionType, TcOption, options as options_of,
    };

    const ACT: u16 = 1;
    const OPS_LEN: u16 = 4;
    const OPS: u16 = 5;

    /// `BPF_RET | BPF_K`.
    const RETURN_CONSTANT: u16 = 0x06;
    /// "This filter matches": what is done then is up to its action.
    const MATCH: u32 = u32::MAX;

    /// A classic program of one instruction, which matches everything, and the action `mirred`. The
    /// classifiers that are made for that are missing from more kernels than this one.
    pub(super) fn redirect_to(ifindex: u32) -> Vec<TcOption> {
        let [code, constant] = [&RETURN_CONSTANT.to_ne_bytes()[..], &MATCH.to_ne_bytes()];
        let instruction = [code, &[0, 0], constant].concat();
        let mut mirror = TcMirror::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = ifindex;
        let parameters = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
            TcActionAttribute::Options(vec![parameters]),
        ];
        let actions = [action];
        let mut bytes = vec![0; actions.as_slice().buffer_len()];
        actions.as_slice().emit(&mut bytes);
        let options = [
            DefaultNla::new(OPS_LEN, 1_u16.to_ne_bytes().to_vec()),
            DefaultNla::new(OPS, instruction),
            DefaultNla::new(ACT, bytes),
        ];
        options.map(|option| TcOption::Bpf(TcFilterBpfOption::Other(option))).into()
    }

    /// Where the filter's action sends packets; `None` if it has no such action.
    pub(super) fn redirected_to(filter: &TcMessage) -> Option<u32> {
        let actions = options_of(filter).find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::Other(option)) if option.kind() == ACT => Some(option),
            _ => None,
        })?;
        let mut bytes = vec![0; actions.value_len()];
        actions.emit_value(&mut bytes);
        let first = NlasIterator::new(&bytes).next()?.ok()?;
        let attributes = TcAction::parse(&first).ok()?.attributes.into_iter();
        let options = attributes.filter_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        });
        options.flatten().find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
                if mirror.eaction == TcMirrorActionType::EgressRedir =>
            {
                Some(mirror.ifindex)
            }
            _ => None,
        })
    }
}
