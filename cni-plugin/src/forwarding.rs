//! The switches without which the host forwards nothing, and what else they switch.

use std::collections::BTreeSet;
use std::fs;

use crate::sysctl::{self, SysctlError};

/// `RTF_ADDRCONF` of `linux/ipv6_route.h`: the route is out of a router advertisement.
const FROM_ADVERTISEMENT: u32 = 0x0004_0000;

/// Makes the host forward IPv4.
///
/// # Errors
/// When the switch cannot be set.
pub fn ensure_ipv4() -> Result<(), SysctlError> {
    sysctl::ensure("ipv4/ip_forward", "1")
}

/// Makes the host forward IPv6, and lets it keep the routes that routers advertise to it: a host that
/// forwards drops its default routes of that kind, and accepts no more, but on interfaces whose
/// `accept_ra` is 2 (`rt6_purge_dflt_routers`). To forward on one interface is enough for that, so
/// this comes before any of them is told to.
///
/// # Errors
/// When a switch cannot be set.
pub fn ensure_ipv6() -> Result<(), SysctlError> {
    const FORWARDING: &str = "ipv6/conf/all/forwarding";
    if sysctl::get(FORWARDING)? == "1" {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    for interface in advertised_to(&table) {
        let accept_ra = format!("ipv6/conf/{interface}/accept_ra");
        if sysctl::get(&accept_ra)? == "1" {
            tracing::info!(interface, "accepts router advertisements though the host forwards");
            sysctl::ensure(&accept_ra, "2")?;
        }
    }
    sysctl::ensure(FORWARDING, "1")
}

/// The interfaces that have routes out of router advertisements, by the table in
/// `/proc/net/ipv6_route`: ten columns, the ninth is the flags, the last one the interface.
fn advertised_to(table: &str) -> BTreeSet<&str> {
    let interface = |line| {
        let columns: Vec<&str> = str::split_whitespace(line).collect();
        let flags = u32::from_str_radix(columns.get(8)?, 16).ok()?;
        (flags & FROM_ADVERTISEMENT != 0).then(|| columns.get(9).copied())?
    };
    table.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_out_of_advertisements_are_told_by_their_flag() {
        const NONE: &str = "00000000000000000000000000000000";
        let line = |flags: &str, interface: &str| {
            format!("{NONE} 00 {NONE} 00 {NONE} 00000400 00000001 00000000 {flags} {interface}\n")
        };
        let table = [
            line("00450003", "eth0"),
            line("00000003", "eth1"),
            line("00440001", "wlan0"),
            "cut off".to_owned(),
        ]
        .concat();

        assert_eq!(advertised_to(&table), BTreeSet::from(["eth0", "wlan0"]));
    }
}
