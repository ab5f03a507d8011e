//! Finding the endpoint that a person means.

use std::net::IpAddr;

use margay_datastore::Endpoint;

use crate::failure::Failure;

/// What a person calls it: the pod, or the container where the runtime has named none.
pub(crate) fn name(endpoint: &Endpoint) -> String {
    match &endpoint.pod {
        Some(pod) if pod.namespace.is_empty() => pod.name.clone(),
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => endpoint.attachment.container_id().to_owned(),
    }
}

/// The one endpoint that goes by this name: a pod's, with its namespace or without, an address, a host
/// veth, an attachment, a container ID or the beginning of one.
pub(crate) fn find<'e>(endpoints: &'e [Endpoint], wanted: &str) -> Result<&'e Endpoint, Failure> {
    let exact: Vec<_> = endpoints.iter().filter(|endpoint| goes_by(endpoint, wanted)).collect();
    let begins = |endpoint: &&Endpoint| {
        !wanted.is_empty() && endpoint.attachment.container_id().starts_with(wanted)
    };
    let found = if exact.is_empty() { endpoints.iter().filter(begins).collect() } else { exact };
    match found.as_slice() {
        [endpoint] => Ok(endpoint),
        [] => Err(Failure::Unknown {
            kind: "endpoint",
            name: wanted.to_owned(),
            list: "margayctl endpoint list --all-nodes",
        }),
        several => Err(Failure::Ambiguous {
            kind: "endpoints",
            name: wanted.to_owned(),
            candidates: several
                .iter()
                .map(|endpoint| format!("{} ({})", endpoint.attachment, name(endpoint)))
                .collect(),
        }),
    }
}

fn goes_by(endpoint: &Endpoint, wanted: &str) -> bool {
    let address: Option<IpAddr> = wanted.split('/').next().and_then(|text| text.parse().ok());
    let is_pod = || endpoint.pod.as_ref().is_some_and(|pod| pod.name == wanted);
    name(endpoint) == wanted
        || is_pod()
        || endpoint.host_veth == wanted
        || endpoint.attachment.container_id() == wanted
        || endpoint.attachment.to_string() == wanted
        || address.is_some_and(|address| endpoint.ips.iter().any(|ip| ip.ip() == address))
}
