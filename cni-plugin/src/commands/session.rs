//! What every verb on an attachment opens: its lock, the datastore, a netlink socket.

use std::fmt::Display;
use std::fs;

use margay_datastore::{Attachment, Endpoint, Sqlite, Store};

use crate::config::NetConf;
use crate::error::Error;
use crate::lock::Lock;
use crate::log;
use crate::naming;
use crate::netlink::{LinkInfo, Netlink};
use crate::phases::Phases;
use crate::protocol::{Call, Target};

/// The configuration of a verb, valid, with logging started as it says.
pub(super) fn configuration(call: &Call) -> Result<NetConf, Error> {
    let conf = NetConf::from_map(&call.config)?;
    log::init(&conf.log);
    log::report_unused(conf.unused_keys());
    Ok(conf)
}

/// The attachment that a verb is about.
pub(super) fn attachment(conf: &NetConf, target: &Target) -> Result<Attachment, Error> {
    Ok(Attachment::new(&conf.name, &target.container_id, &target.ifname)?)
}

/// Runs a verb on a runtime of this thread alone, and logs how it went.
pub(super) fn run<T>(
    verb: &'static str,
    subject: impl Display,
    work: impl AsyncFnOnce(&mut Phases) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut phases = Phases::start(verb, subject);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(work(&mut phases)),
        Err(error) => Err(Error::Runtime(error)),
    };
    phases.finish(&outcome);
    outcome
}

/// One attachment, locked.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) conf: &'a NetConf,
    pub(super) attachment: Attachment,
    pub(super) host_veth: String,
    pub(super) store: Store,
    pub(super) netlink: Netlink,
    _lock: Lock,
}

/// Who has the name of the attachment's host veth.
#[derive(Debug)]
pub(super) enum HostVeth {
    /// Nobody.
    Absent,
    /// The attachment: its alias says so, or it has none yet since an ADD was cut short.
    Ours(LinkInfo),
    /// Somebody else.
    Foreign(LinkInfo),
}

impl<'a> Session<'a> {
    /// Waits for the attachment's lock and opens the rest.
    pub(super) fn open(conf: &'a NetConf, attachment: Attachment) -> Result<Self, Error> {
        let host_veth = naming::host_veth(&attachment);
        let lock = Lock::take(&conf.paths.run_dir, &host_veth)?;
        let store = open_store(conf)?;
        Ok(Self { conf, attachment, host_veth, store, netlink: Netlink::open()?, _lock: lock })
    }

    /// The endpoint that an ADD of this attachment wrote.
    pub(super) fn endpoint(&self) -> Result<Option<Endpoint>, Error> {
        Ok(self.store.endpoint(&self.attachment)?)
    }

    /// Looks for the attachment's host veth.
    pub(super) async fn host_veth(&self) -> Result<HostVeth, Error> {
        let Some(link) = self.netlink.link_by_name(&self.host_veth).await? else {
            return Ok(HostVeth::Absent);
        };
        let is_ours = match &link.alias {
            Some(alias) => *alias == naming::alias(&self.attachment),
            None => link.kind == "veth",
        };
        Ok(if is_ours { HostVeth::Ours(link) } else { HostVeth::Foreign(link) })
    }
}

/// Opens the node's datastore and, as the first verb of a boot, takes back the addresses that
/// earlier boots left behind.
pub(super) fn open_store(conf: &NetConf) -> Result<Store, Error> {
    Ok(Store::new(Sqlite::open(&conf.paths.database())?))
}

/// The kernel's name for this boot.
pub(super) fn boot_id() -> Result<String, Error> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(Error::BootId)?;
    Ok(id.trim().to_owned())
}
