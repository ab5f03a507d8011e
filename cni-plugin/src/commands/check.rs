//! CHECK: looks at everything that an ADD made, and names all that is off.

use std::net::IpAddr;

use margay_datastore::{Endpoint, EndpointState};
use rscni_types::types::CNIResult;

use super::session::{self, Session};
use crate::config;
use crate::error::Error;
use crate::inspection::{self, Defect, Promise};
use crate::ipam::IpamError;
use crate::nat::Nat;
use crate::protocol::{Call, Target};

/// Verifies that an attachment is as its ADD left it.
pub(super) fn check(call: &Call, target: &Target) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let attachment = session::attachment(&conf, target)?;
    let netns = session::netns(target)?;
    let expected = config::prev_result(&call.config)?;
    session::run("CHECK", &attachment, async |phases| {
        phases.enter("open")?;
        let mut session = Session::open(call, &conf, attachment.clone())?;
        session.settle_as_found()?;
        let endpoint = session.endpoint()?;
        let endpoint = endpoint.filter(|endpoint| endpoint.state == EndpointState::Ready);
        let endpoint =
            endpoint.ok_or_else(|| Error::NotAdded { attachment: attachment.clone() })?;
        let expected = expected.as_ref();
        let mut findings = Vec::new();
        findings.extend(expected.iter().flat_map(|it| compare_addresses(it, &endpoint)));
        let promise = Some(Promise { conf: &session.conf, result: expected });
        phases.enter("pod_side")?;
        let defects = inspection::pod_side(&netns, &endpoint, promise)?;
        findings.extend(defects.iter().map(Defect::to_string));
        phases.enter("host_side")?;
        let defects = inspection::host_side(&session.site, &endpoint, promise).await?;
        findings.extend(defects.iter().map(Defect::to_string));
        if let Some(nat) = Nat::of(&session.conf) {
            phases.enter("nat")?;
            findings.extend(nat.findings().await?);
        }
        phases.enter("addresses")?;
        let addresses: Vec<IpAddr> = endpoint.ips.iter().map(|ip| ip.ip()).collect();
        match session.ipam().check(&attachment, &addresses) {
            Err(error @ IpamError::Mismatch { .. }) => findings.push(error.to_string()),
            outcome => outcome?,
        }
        if findings.is_empty() { Ok(()) } else { Err(Error::Mismatch { findings }) }
    })
}

/// A plugin further down the chain may have added addresses of its own.
fn compare_addresses(expected: &CNIResult, endpoint: &Endpoint) -> Vec<String> {
    let is_missing = |ip: &IpAddr| !expected.ips.iter().any(|of| of.address.addr() == *ip);
    let missing = endpoint.ips.iter().map(|ip| ip.ip()).filter(is_missing);
    missing.map(|ip| format!("address {ip} is not in prevResult")).collect()
}
