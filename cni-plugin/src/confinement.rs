//! What keeps this process from things that root may do: kernel lockdown, SELinux, AppArmor, a
//! seccomp filter, capabilities that were taken away. A refusal of any of these is `EPERM` or
//! `EACCES`, which says nothing about where it comes from.
//!
//! Looks only after a refusal, and only at what the kernel says of itself and of this process; it
//! names what is there and does not claim that it was the one.

use std::error::Error;
use std::{fs, io};

use rustix::io::Errno;

/// Capabilities without which margay is refused something, each with the bits of which one will do
/// (`include/uapi/linux/capability.h`): `CAP_BPF` is younger than `CAP_SYS_ADMIN`, which contains it.
const CAPABILITIES: [(u64, &str); 3] =
    [(1 << 12, "CAP_NET_ADMIN"), (1 << 21, "CAP_SYS_ADMIN"), (1 << 39 | 1 << 21, "CAP_BPF")];

/// What confines this process, if `error` or one of its causes is a refusal that it explains.
#[must_use]
pub fn of_refusal(error: &(dyn Error + 'static)) -> Option<String> {
    if !is_refusal(error) {
        return None;
    }
    let found = confinements(|path| fs::read_to_string(path).ok());
    (!found.is_empty()).then(|| found.join(", "))
}

fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let errno = error
            .downcast_ref::<io::Error>()
            .and_then(Errno::from_io_error)
            .or_else(|| error.downcast_ref::<Errno>().copied());
        if matches!(errno, Some(Errno::PERM | Errno::ACCESS)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Each in a few words. `read` gives the content of a file that there is.
fn confinements(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(lockdown(&read));
    found.extend(selinux(&read).or_else(|| apparmor(&read)));
    found.extend(read("/proc/self/status").iter().flat_map(|status| limits(status)));
    found
}

/// `none integrity [confidentiality]`: the bracketed word is what is in force.
fn lockdown(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let modes = read("/sys/kernel/security/lockdown")?;
    let (_, mode) = modes.split_once('[')?;
    let (mode, _) = mode.split_once(']')?;
    (mode != "none").then(|| format!("kernel lockdown is in force ({mode})"))
}

fn selinux(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    if read("/sys/fs/selinux/enforce")?.trim() != "1" {
        return None;
    }
    let context = read("/proc/self/attr/current").unwrap_or_default();
    let context = context.trim_end_matches(['\0', '\n']);
    Some(format!("SELinux is enforcing ({context}; the audit log has what it denied)"))
}

/// A profile and its mode, such as `runtime/default (enforce)`; `unconfined` without one.
fn apparmor(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let profile = read("/proc/self/attr/apparmor/current")?;
    let profile = profile.trim();
    profile.ends_with("(enforce)").then(|| format!("AppArmor profile {profile}"))
}

/// From `/proc/self/status` (`proc_pid_status(5)`): the seccomp mode and the capabilities.
fn limits(status: &str) -> Vec<String> {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let mut found = Vec::new();
    if field("Seccomp") == Some("2") {
        found.push("a seccomp filter is in force".to_owned());
    }
    let effective = field("CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    if let Some(bits) = effective {
        let lacking = CAPABILITIES.iter().filter(|(any, _)| bits & any == 0);
        found.extend(lacking.map(|(_, name)| format!("the process lacks {name}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        confinements(|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, content)| (*content).to_owned())
        })
    }

    #[test]
    fn a_process_that_nothing_confines_is_told_nothing() {
        let files = [
            ("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
            ("/sys/fs/selinux/enforce", "0"),
            ("/proc/self/attr/apparmor/current", "unconfined\n"),
            ("/proc/self/status", "CapEff:\t000001ffffffffff\nSeccomp:\t0\n"),
        ];
        assert_eq!(of(&files), Vec::<String>::new());
        assert_eq!(of(&[]), Vec::<String>::new());
    }

    #[test]
    fn everything_that_confines_is_named() {
        let files = [
            ("/sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
            ("/sys/fs/selinux/enforce", "1"),
            ("/proc/self/attr/current", "system_u:system_r:container_t:s0\0"),
            ("/proc/self/status", "Name:\tmargay\nCapEff:\t0000000000000000\nSeccomp:\t2\n"),
        ];
        let wanted = [
            "kernel lockdown is in force (confidentiality)",
            "SELinux is enforcing (system_u:system_r:container_t:s0; the audit log has what it denied)",
            "a seccomp filter is in force",
            "the process lacks CAP_NET_ADMIN",
            "the process lacks CAP_SYS_ADMIN",
            "the process lacks CAP_BPF",
        ];
        assert_eq!(of(&files), wanted);
    }

    #[test]
    fn an_apparmor_profile_is_named_where_it_enforces() {
        let path = "/proc/self/attr/apparmor/current";
        let enforced = of(&[(path, "runtime/default (enforce)\n")]);
        assert_eq!(enforced, ["AppArmor profile runtime/default (enforce)"]);
        assert_eq!(of(&[(path, "runtime/default (complain)\n")]), Vec::<String>::new());
    }

    #[test]
    fn cap_bpf_is_not_missed_where_cap_sys_admin_contains_it() {
        let old_kernel = "CapEff:\t0000003fffffffff\n";
        assert_eq!(limits(old_kernel), Vec::<String>::new());
    }

    #[test]
    fn refusals_are_found_behind_whatever_reports_them() {
        let io = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        let behind = |errno| crate::error::Error::Runtime(io(errno));
        assert!(is_refusal(&behind(Errno::PERM)));
        assert!(is_refusal(&behind(Errno::ACCESS)));
        assert!(is_refusal(&Errno::PERM));
        assert!(!is_refusal(&behind(Errno::NOSPC)));
    }
}
