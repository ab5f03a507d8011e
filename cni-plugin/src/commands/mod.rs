//! The verbs of the network plugin, one file each.

mod add;
mod check;
mod del;
mod gc;
mod session;
mod status;
pub(crate) mod teardown;

use rscni_types::types::CNIResult;

pub(crate) use add::routes;

use crate::error::Error;
use crate::protocol::{Call, Plugin, Target};

/// The network plugin.
#[derive(Clone, Copy, Debug)]
pub struct Margay;

impl Plugin for Margay {
    fn add(&self, call: &Call, target: &Target) -> Result<CNIResult, Error> {
        add::add(call, target)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), Error> {
        del::del(call, target)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), Error> {
        check::check(call, target)
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        gc::gc(call)
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        status::status(call)
    }
}
