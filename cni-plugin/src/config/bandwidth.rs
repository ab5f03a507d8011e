//! `runtimeConfig.bandwidth`: how fast a pod may receive ("ingress") and send ("egress"), in bits, by
//! CNI's conventions and with the bounds of the standard `bandwidth` plugin.

use margay_datastore::{Bandwidth, RateLimit};
use serde_json::json;

use super::ConfigError;
use super::field::{Field, Object};

/// What containerd and CRI-O write for the burst of a pod, whose annotations name a rate and
/// nothing else. Half a gigabyte at full speed would make little of the rate.
const BURST_OF_NOBODY: u64 = u32::MAX as u64;
/// A burst that nobody named: as much as comes in 50 ms, so that a timer that is late on a busy node
/// costs no throughput, and at least two of the largest packets that there are, so that none has to be
/// cut into its segments.
const DEFAULT_BURST_PER_SECOND: u64 = 20;
const LEAST_DEFAULT_BURST_BYTES: u32 = 128 * 1024;
/// What a packet has in front of its MTU.
const ETHERNET_HEADER_BYTES: u32 = 14;

/// The keys of one direction.
struct Direction {
    rate: &'static str,
    burst: &'static str,
}

const TO_POD: Direction = Direction { rate: "ingressRate", burst: "ingressBurst" };
const FROM_POD: Direction = Direction { rate: "egressRate", burst: "egressBurst" };

/// The bandwidth that a place in the configuration asks for.
pub(super) fn bandwidth(place: &Object<'_>) -> Result<Bandwidth, ConfigError> {
    let Some(bandwidth) = place.object("bandwidth")? else { return Ok(Bandwidth::default()) };
    for key in ["shapedSubnets", "unshapedSubnets"] {
        if let Some(field) = bandwidth.get(key)
            && !field.list()?.is_empty()
        {
            return Err(field.unsupported("all that a pod sends or receives is shaped, or nothing"));
        }
    }
    Ok(Bandwidth { to_pod: limit(&bandwidth, &TO_POD)?, from_pod: limit(&bandwidth, &FROM_POD)? })
}

/// Verifies that a packet fits into each burst: else none would ever pass.
pub(super) fn must_hold_packets(bandwidth: &Bandwidth, mtu: u32) -> Result<(), ConfigError> {
    let longest = mtu.saturating_add(ETHERNET_HEADER_BYTES);
    for (limit, keys) in [(bandwidth.to_pod, &TO_POD), (bandwidth.from_pod, &FROM_POD)] {
        if let Some(limit) = limit.filter(|limit| limit.burst_bytes < longest) {
            return Err(ConfigError::Invalid {
                field: format!("runtimeConfig.bandwidth.{}", keys.burst),
                value: json!(u64::from(limit.burst_bytes) * 8).to_string(),
                reason: format!(
                    "must hold a packet: {} bits with MTU {mtu}",
                    u64::from(longest) * 8
                ),
            });
        }
    }
    Ok(())
}

/// A rate of 0 is none, as runtimes write it.
fn limit(bandwidth: &Object<'_>, keys: &Direction) -> Result<Option<RateLimit>, ConfigError> {
    let rate = bits(bandwidth, keys.rate)?;
    let burst = bits(bandwidth, keys.burst)?;
    let (rate_field, rate_bits) = match (rate, &burst) {
        (Some(rate), _) => rate,
        (None, Some((burst, _))) => {
            return Err(burst.invalid(format!("needs {}, which is missing or 0", keys.rate)));
        }
        (None, None) => return Ok(None),
    };
    let rate_bytes_per_s = rate_bits / 8;
    if rate_bytes_per_s == 0 {
        return Err(rate_field.invalid("must be 8 bits per second or more"));
    }
    let burst_bytes = match burst.filter(|(_, bits)| *bits != BURST_OF_NOBODY) {
        Some((field, bits)) => u32::try_from(bits / 8).map_err(|_| {
            field.invalid(format!("must be at most {} bits", u64::from(u32::MAX) * 8))
        })?,
        None => default_burst(rate_bytes_per_s),
    };
    Ok(Some(RateLimit { rate_bytes_per_s, burst_bytes }))
}

fn default_burst(rate_bytes_per_s: u64) -> u32 {
    let burst = rate_bytes_per_s / DEFAULT_BURST_PER_SECOND;
    u32::try_from(burst).unwrap_or(u32::MAX).max(LEAST_DEFAULT_BURST_BYTES)
}

/// A number of bits; 0 is an absent one.
fn bits<'v>(bandwidth: &Object<'v>, key: &str) -> Result<Option<(Field<'v>, u64)>, ConfigError> {
    let Some(field) = bandwidth.get_in_any_case(key) else { return Ok(None) };
    let Some(bits) = field.value().as_u64() else {
        return Err(field.invalid("must be a whole number, not negative"));
    };
    Ok((bits > 0).then_some((field, bits)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(bandwidth_value: Value) -> Result<Bandwidth, ConfigError> {
        let runtime = json!({ "bandwidth": bandwidth_value });
        bandwidth(&Object::root(runtime.as_object().unwrap()))
    }

    #[test]
    fn bits_become_bytes_and_each_direction_has_its_own() {
        let wanted = parse(json!({
            "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 80_000_000_000_u64,
        }));

        let to_pod = RateLimit { rate_bytes_per_s: 1_000_000, burst_bytes: 100_000 };
        let from_pod = RateLimit { rate_bytes_per_s: 10_000_000_000, burst_bytes: 500_000_000 };
        let expected = Bandwidth { to_pod: Some(to_pod), from_pod: Some(from_pod) };
        assert_eq!(wanted, Ok(expected));
    }

    #[test]
    fn keys_are_read_as_containerd_writes_them() {
        let as_go_names_it =
            json!({"IngressRate": 80, "IngressBurst": 1_000_000, "EgressRate": 80});
        let limited = parse(as_go_names_it).unwrap();
        assert_eq!(limited.to_pod.unwrap().burst_bytes, 125_000);
        assert_eq!(limited.from_pod.unwrap().rate_bytes_per_s, 10);
    }

    #[test]
    fn zero_and_absent_are_no_limit() {
        for nothing in [
            json!(null),
            json!({}),
            json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}),
            json!({"unshapedSubnets": [], "shapedSubnets": null}),
        ] {
            assert_eq!(parse(nothing), Ok(Bandwidth::default()));
        }
    }

    #[test]
    fn the_burst_that_runtimes_write_where_nobody_named_one_is_the_default() {
        for burst in [json!(0), json!(null), json!(4_294_967_295_u32)] {
            let limited = parse(json!({"egressRate": 1_000_000, "egressBurst": burst})).unwrap();
            assert_eq!(limited.from_pod.unwrap().burst_bytes, 131_072);
        }
    }

    #[test]
    fn rates_of_any_size_have_a_burst() {
        let limited = parse(json!({"egressRate": u64::MAX})).unwrap().from_pod.unwrap();
        assert_eq!(limited.rate_bytes_per_s, u64::MAX / 8);
        assert_eq!(limited.burst_bytes, u32::MAX);
    }

    #[test]
    fn a_burst_holds_a_packet_of_the_mtu() {
        let limited = parse(json!({"ingressRate": 8, "ingressBurst": 1514 * 8})).unwrap();

        assert_eq!(must_hold_packets(&limited, 1500), Ok(()));
        let error = must_hold_packets(&limited, 1501).unwrap_err().to_string();
        assert!(error.contains("runtimeConfig.bandwidth.ingressBurst = 12112: "), "{error}");
        let by_default = parse(json!({"egressRate": 8})).unwrap();
        assert_eq!(must_hold_packets(&by_default, 65_535), Ok(()));
    }
}
