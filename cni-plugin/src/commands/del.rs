//! DEL: takes a sandbox off the network. Content with whatever is gone already: the namespace, the
//! link, the records, all of it.

use super::session::{self, Session};
use super::teardown::teardown;
use crate::error::Error;
use crate::ipam;
use crate::protocol::{Call, Target};

/// Takes away everything of the attachment.
pub(super) fn del(call: &Call, target: &Target) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let attachment = session::attachment(&conf, target)?;
    session::run("DEL", &attachment, async |phases| {
        phases.enter("open")?;
        let session = Session::open(call, &conf, attachment.clone())?;
        phases.enter("teardown")?;
        teardown(&session, || session.release()).await?;
        phases.enter("upkeep")?;
        ipam::upkeep(&session.site.store);
        Ok(())
    })
}
