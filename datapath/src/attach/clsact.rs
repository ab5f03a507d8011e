//! Attaches by `bpf` filters under a clsact qdisc, over netlink.
//!
//! Invariant: margay's filters are the ones at [`PRIORITY`] and [`HANDLE`], so every request names
//! them exactly and none needs a dump; only [`detach`] lists the filters of its one interface, to
//! leave a qdisc that others use.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use futures_util::StreamExt as _;
use margay_failpoints::{self as failpoints, Kind};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use rtnetlink::Handle;

use super::{AttachError, AttachMode, AttachedFilter};
use crate::{Program, ProgramId};

/// Filters run in the order of their priority until one gives a final verdict, as margay's always
/// do. What others attach to see every packet (Cilium's and Calico's own programs take 1 and 2,
/// observers usually as well) fits in front; what `tc` adds without a priority starts at 49152,
/// behind.
const PRIORITY: u16 = 100;
/// "mgy": tells margay's filter from one that somebody else put at the same priority, where `tc`
/// counts up from 1.
const HANDLE: u32 = 0x6d_6779;
/// `ETH_P_ALL` in network byte order, as the lower half of `tcm_info` has it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

const QDISC: &str = "clsact";

/// The kernel sends a qdisc to whoever asks for it only with `NLM_F_ECHO` (`qdisc_get_notify`).
const READ: u16 = NLM_F_ACK | NLM_F_ECHO;

/// Three requests for two programs, whatever is attached already.
pub(crate) async fn attach(
    programs: [(Program, BorrowedFd<'_>); 2],
    netlink: &Handle,
    ifindex: u32,
) -> Result<(), AttachError> {
    let netlink = Netlink { handle: netlink, ifindex };
    ensure_qdisc(&netlink).await?;
    for (program, fd) in programs {
        put_filter(&netlink, program, fd).await?;
    }
    Ok(())
}

pub(crate) async fn inspect(
    programs: [Program; 2],
    netlink: &Handle,
    ifindex: u32,
) -> Result<[Option<ProgramId>; 2], AttachError> {
    let netlink = Netlink { handle: netlink, ifindex };
    let [first, second] = programs;
    Ok([filter_program(&netlink, first).await?, filter_program(&netlink, second).await?])
}

pub(crate) async fn detach(
    programs: [Program; 2],
    netlink: &Handle,
    ifindex: u32,
) -> Result<(), AttachError> {
    remove_filters(programs, netlink, ifindex).await?;
    for program in programs {
        if has_filters(netlink, ifindex, program).await? {
            return Ok(());
        }
    }
    delete_qdisc(&Netlink { handle: netlink, ifindex }).await
}

/// Removes the filters and leaves the qdisc: with it the kernel would stop the interface's queues for a
/// moment, and drop what is sent then (`qdisc_graft` calls `dev_deactivate`).
pub(crate) async fn remove_filters(
    programs: [Program; 2],
    netlink: &Handle,
    ifindex: u32,
) -> Result<(), AttachError> {
    let netlink = Netlink { handle: netlink, ifindex };
    for program in programs {
        delete_filter(&netlink, program).await?;
    }
    Ok(())
}

async fn ensure_qdisc(netlink: &Netlink<'_>) -> Result<(), AttachError> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let request = RouteNetlinkMessage::NewQueueDiscipline(netlink.qdisc());
    match netlink.request("create the clsact qdisc", request, flags).await {
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Some(libc::EEXIST) => check_qdisc(netlink).await,
        Err(error) => Err(error.into_attach(netlink)),
    }
}

/// An `ingress` qdisc sits in the same place, and would take both filters for ingress ones.
async fn check_qdisc(netlink: &Netlink<'_>) -> Result<(), AttachError> {
    let mut message = netlink.qdisc();
    message.attributes.clear();
    let request = RouteNetlinkMessage::GetQueueDiscipline(message);
    let answers = netlink
        .request("look at the clsact qdisc", request, READ)
        .await
        .map_err(|error| error.into_attach(netlink))?;
    let is_clsact = answers.iter().any(|answer| {
        matches!(answer, RouteNetlinkMessage::NewQueueDiscipline(qdisc) if kind(qdisc) == Some(QDISC))
    });
    if is_clsact { Ok(()) } else { Err(AttachError::IngressQdisc { ifindex: netlink.ifindex }) }
}

/// With `NLM_F_CREATE` and without `NLM_F_EXCL` the kernel exchanges the program of a filter that
/// has this priority and handle in one step (`cls_bpf_change`, `list_replace_rcu`).
async fn put_filter(
    netlink: &Netlink<'_>,
    program: Program,
    fd: BorrowedFd<'_>,
) -> Result<(), AttachError> {
    let mut message = netlink.filter(program);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(fd.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(filter_name(program))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    let request = RouteNetlinkMessage::NewTrafficFilter(message);
    netlink
        .request("attach a BPF filter", request, NLM_F_ACK | NLM_F_CREATE)
        .await
        .map(|_| ())
        .map_err(|error| error.into_attach(netlink))
}

/// The program of margay's filter at one hook.
async fn filter_program(
    netlink: &Netlink<'_>,
    program: Program,
) -> Result<Option<ProgramId>, AttachError> {
    let request = RouteNetlinkMessage::GetTrafficFilter(netlink.filter(program));
    match netlink.request("look at the BPF filter", request, READ).await {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => program_id(filter),
            _ => None,
        })),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error.into_attach(netlink)),
    }
}

async fn delete_filter(netlink: &Netlink<'_>, program: Program) -> Result<(), AttachError> {
    let request = RouteNetlinkMessage::DelTrafficFilter(netlink.filter(program));
    netlink.request("remove the BPF filter", request, NLM_F_ACK).await.absent_is_fine(netlink)
}

/// Whether anybody has a filter at this hook.
pub(crate) async fn has_filters(
    netlink: &Handle,
    ifindex: u32,
    program: Program,
) -> Result<bool, AttachError> {
    Ok(!dump_filters(netlink, ifindex, program).await?.is_empty())
}

/// Everybody's filters at the hook of `program`, in the order in which they run.
pub(crate) async fn filters(
    netlink: &Handle,
    ifindex: u32,
    program: Program,
) -> Result<Vec<AttachedFilter>, AttachError> {
    let answers = dump_filters(netlink, ifindex, program).await?;
    let filters = answers.into_iter().filter_map(|answer| match answer {
        // Without a handle it is the head of a priority's list and no filter.
        RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle != 0.into() => {
            Some(described(&filter))
        }
        _ => None,
    });
    let mut filters: Vec<_> = filters.collect();
    filters.sort_by_key(|filter| filter.priority);
    Ok(filters)
}

fn described(filter: &TcMessage) -> AttachedFilter {
    let priority = TcHandle::from(filter.header.info).major;
    let is_in_place = priority == PRIORITY && filter.header.handle == HANDLE.into();
    AttachedFilter {
        mode: AttachMode::Clsact,
        priority: u32::from(priority),
        kind: kind(filter).unwrap_or_default().to_owned(),
        program: program_id(filter),
        is_in_margays_place: is_in_place,
    }
}

async fn dump_filters(
    netlink: &Handle,
    ifindex: u32,
    program: Program,
) -> Result<Vec<RouteNetlinkMessage>, AttachError> {
    let netlink = Netlink { handle: netlink, ifindex };
    let mut message = TcMessage::with_index(netlink.ifindex.cast_signed());
    message.header.parent = hook(program);
    let request = RouteNetlinkMessage::GetTrafficFilter(message);
    match netlink.request("list the filters", request, NLM_F_DUMP).await {
        Err(error) if error.is_absent() => Ok(Vec::new()),
        answers => answers.map_err(|error| error.into_attach(&netlink)),
    }
}

async fn delete_qdisc(netlink: &Netlink<'_>) -> Result<(), AttachError> {
    let request = RouteNetlinkMessage::DelQueueDiscipline(netlink.qdisc());
    netlink.request("remove the clsact qdisc", request, NLM_F_ACK).await.absent_is_fine(netlink)
}

/// One interface, seen through one connection.
struct Netlink<'a> {
    handle: &'a Handle,
    ifindex: u32,
}

impl Netlink<'_> {
    fn qdisc(&self) -> TcMessage {
        let mut message = TcMessage::with_index(self.ifindex.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        message.attributes.push(TcAttribute::Kind(QDISC.to_owned()));
        message
    }

    /// Names margay's filter for `program`.
    fn filter(&self, program: Program) -> TcMessage {
        let mut message = TcMessage::with_index(self.ifindex.cast_signed());
        message.header = TcHeader {
            parent: hook(program),
            handle: HANDLE.into(),
            info: u32::from(TcHandle { major: PRIORITY, minor: ALL_PROTOCOLS }),
            ..message.header
        };
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message
    }

    async fn request(
        &self,
        operation: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, RequestError> {
        let kind = match message {
            RouteNetlinkMessage::GetTrafficFilter(_)
            | RouteNetlinkMessage::GetQueueDiscipline(_) => Kind::NetlinkQuery,
            _ => Kind::Netlink,
        };
        failpoints::before(kind, operation)
            .map_err(|source| RequestError { operation, cause: Cause::Kernel(source) })?;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut responses = self
            .handle
            .clone()
            .request(request)
            .map_err(|source| RequestError { operation, cause: Cause::Connection(source) })?;

        let mut answers = Vec::new();
        while let Some(response) = responses.next().await {
            match response.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(RequestError { operation, cause: Cause::Kernel(error.to_io()) });
                }
                _ => {}
            }
        }
        Ok(answers)
    }
}

/// TC's name for the place a program has.
fn hook(program: Program) -> TcHandle {
    let minor = if program.is_at_ingress() { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

/// What `tc filter show` prints.
fn filter_name(program: Program) -> String {
    format!("margay/{}", program.name())
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn program_id(filter: &TcMessage) -> Option<ProgramId> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(ProgramId(*id)),
        _ => None,
    })
}

/// A request that failed, before it is known whether that is bad.
struct RequestError {
    operation: &'static str,
    cause: Cause,
}

enum Cause {
    Kernel(io::Error),
    Connection(rtnetlink::Error),
}

impl RequestError {
    fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Kernel(error) => error.raw_os_error(),
            Cause::Connection(_) => None,
        }
    }

    /// No such filter, no such qdisc (`EINVAL` for a filter request under it), no such interface.
    fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
    }

    fn into_attach(self, netlink: &Netlink<'_>) -> AttachError {
        let ifindex = netlink.ifindex;
        let operation = self.operation;
        match self.cause {
            Cause::Kernel(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                AttachError::NoInterface { ifindex }
            }
            Cause::Kernel(source) => AttachError::Netlink { operation, ifindex, source },
            Cause::Connection(source) => AttachError::Connection { operation, ifindex, source },
        }
    }
}

trait AbsentIsFine {
    fn absent_is_fine(self, netlink: &Netlink<'_>) -> Result<(), AttachError>;
}

impl<T> AbsentIsFine for Result<T, RequestError> {
    fn absent_is_fine(self, netlink: &Netlink<'_>) -> Result<(), AttachError> {
        match self {
            Err(error) if !error.is_absent() => Err(error.into_attach(netlink)),
            _ => Ok(()),
        }
    }
}
