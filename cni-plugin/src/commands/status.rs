//! STATUS: whether an ADD could succeed. A runtime asks every few seconds: no table is walked, and
//! nothing is changed but the datastore, which is made if it is missing (being able to is part of
//! the answer), takes earlier boots' addresses back and does what was put off.

use std::borrow::Cow;
use std::path::Path;

use super::session;
use crate::config;
use crate::dataplane::DataplaneError;
use crate::deletions::Share;
use crate::directories::check_writable;
use crate::error::Error;
use crate::ipam::{self, Ipam};
use crate::nat::Nat;
use crate::protocol::Call;

/// Whether an ADD could succeed.
pub(super) fn status(call: &Call) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let outcome = session::run("STATUS", &conf.name, async |phases| {
        if conf.dataplane == config::Dataplane::Ebpf {
            phases.enter("dataplane")?;
            margay_datapath::probe(&conf.paths.bpffs_root).map_err(DataplaneError::NotReady)?;
        }
        phases.enter("directories")?;
        check_writable(&conf.paths.run_dir)?;
        check_writable(conf.paths.database().parent().unwrap_or(Path::new("/")))?;
        phases.enter("datastore")?;
        let site = session::site_of_this_boot(&conf)?;
        session::drain(&conf, &site, Share::OfOthers).await;
        let mut conf = Cow::Borrowed(&conf);
        session::settle(&mut conf, &site.store)?;
        if let Some(nat) = Nat::of(&conf) {
            phases.enter("nat")?;
            nat.status().await?;
        }
        phases.enter("ipam")?;
        Ipam::new(&conf, call, &site.store, &site.boot_id).status()?;
        ipam::upkeep(&site.store);
        Ok(())
    });
    outcome.map_err(Error::into_status)
}
