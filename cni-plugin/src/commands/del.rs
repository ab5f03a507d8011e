//! DEL: takes a sandbox off the network. Content with whatever is gone already: the namespace, the
//! link, the records, all of it. Where the datastore is out of reach, content with what is on this node. Where it
//! is damaged, that is done all the same, before the error is said.

use super::session::{self, Session};
use super::teardown::Teardown;
use crate::error::{Error, chain};
use crate::protocol::{Call, Target};

/// Takes away everything of the attachment.
pub(super) fn del(call: &Call, target: &Target) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let attachment = session::attachment(&conf, target)?;
    session::run("DEL", &attachment, async |phases| {
        phases.enter("open")?;
        let session = Session::open_anyway(call, &conf, attachment.clone())?;
        let out_of_reach = match session.reclaim_earlier_boots() {
            Err(error) if error.is_out_of_reach() => Some(error),
            Err(error) if error.is_busy() => return Err(error),
            Err(error) => {
                // What of the datastore this attachment needs may be whole.
                let error = chain(&error);
                tracing::error!(error, "what earlier boots left is not taken back");
                None
            }
            Ok(()) => None,
        };
        phases.enter("teardown")?;
        if let Teardown::PutOff(error) = session.teardown(out_of_reach).await? {
            let error = chain(&error);
            tracing::warn!(error, "the datastore is out of reach: its part of the DEL is put off");
            return Ok(());
        }
        phases.enter("upkeep")?;
        session::upkeep(&conf, &session.site).await;
        Ok(())
    })
}
