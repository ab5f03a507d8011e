//! The installer of the release tarball, on a system below a temporary root.

mod system;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{Invocation, Node};
use serde_json::json;

use system::{System, succeed};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PLUGIN: &str = "opt/cni/bin/margay";
const IPAM_PLUGIN: &str = "opt/cni/bin/margay-ipam";
const CONFLIST: &str = "etc/cni/net.d/10-margay.conflist";
const SHIPPED_CONFLIST: &str = "conf/10-margay.conflist";
const UNIT: &str = "usr/local/lib/systemd/system/margay-boot.service";
const AGENT: &str = "usr/local/sbin/margay-agent";
const AGENT_UNIT: &str = "usr/local/lib/systemd/system/margay-agent.service";
const CTL: &str = "usr/local/bin/margayctl";
const HELP: [&str; 5] = [
    "usr/local/share/man/man1/margayctl.1",
    "usr/local/share/man/man1/margayctl-endpoint.1",
    "usr/local/share/bash-completion/completions/margayctl",
    "usr/local/share/zsh/site-functions/_margayctl",
    "usr/local/share/fish/vendor_completions.d/margayctl.fish",
];
const HELP_FOLDERS: [&str; 8] = [
    "usr/local/share/man",
    "usr/local/share/man/man1",
    "usr/local/share/bash-completion",
    "usr/local/share/bash-completion/completions",
    "usr/local/share/zsh",
    "usr/local/share/zsh/site-functions",
    "usr/local/share/fish",
    "usr/local/share/fish/vendor_completions.d",
];
const AGENT_CONF: &str = "etc/margay/agent.json";
const SHIPPED_AGENT_CONF: &str = "conf/agent.json";
const OWN: &str = "usr/local/lib/margay";
const STATE: &str = "var/lib/margay/margay.db";
const PINS: &str = "sys/fs/bpf/margay";

#[test]
fn what_is_installed_serves_pods_until_it_is_uninstalled() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    let before = system.files();

    system.install(&[]);

    let network = system.network();
    system.execute(&Invocation::new(&system.plugin(), "STATUS", &network)).success();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    system.run(&a, "ADD", &network).success();
    let result = system.run(&b, "ADD", &network).success();
    assert_ping(&a, address(&result, true));
    assert_ping(&a, address(&result, false));
    system.run(&a, "DEL", &network).success();
    system.run(&b, "DEL", &network).success();

    system.uninstall(&[]);
    for gone in [PLUGIN, IPAM_PLUGIN, CONFLIST, UNIT, OWN, PINS, "run/margay"] {
        assert!(!system.has(gone), "{gone}");
    }
    for gone in [AGENT, AGENT_UNIT, AGENT_CONF, "etc/margay", CTL].into_iter().chain(HELP) {
        assert!(!system.has(gone), "{gone}");
    }
    assert!(system.has(STATE));
    system.uninstall(&["--purge"]);
    assert_eq!(system.files(), before);
}

#[test]
fn margay_ipam_is_the_same_executable_by_another_name() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let network = json!({
        "cniVersion": "1.1.0", "name": "side", "type": "ptp",
        "ipam": {
            "type": "margay-ipam",
            "state_dir": system.path("var/lib/margay"),
            "pools": [{"cidr": "10.245.0.0/16"}],
        },
    });
    let pod = node.sandbox("a");
    let ipam = system.path(IPAM_PLUGIN);

    let result = pod.invocation_of(ipam.to_str().unwrap(), "ADD", &network).execute().success();

    assert_eq!(fs::read_link(ipam).unwrap(), Path::new("margay"));
    assert_eq!(result["ips"][0]["gateway"], "10.245.0.1");
    assert!(result["interfaces"].as_array().is_none_or(Vec::is_empty), "{result}");
}

#[test]
fn margayctl_comes_with_its_manual_and_without_what_an_earlier_version_had_of_it() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    let others = system.path("usr/local/share/man/man1/margay-other.1");
    fs::create_dir_all(others.parent().unwrap()).unwrap();
    fs::write(&others, "of another").unwrap();
    system.install(&[]);
    for installed in [CTL].into_iter().chain(HELP) {
        assert!(system.has(installed), "{installed}");
    }
    let earlier = system.path("usr/local/share/man/man1/margayctl-earlier.1");
    fs::write(&earlier, "").unwrap();

    system.install(&[]);

    assert!(!earlier.exists() && others.exists());
    let config = system.path("etc/cni/net.d");
    let mut command = Command::new(system.path(CTL));
    let output = command.arg("--config").arg(config).args(["endpoint", "list"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("there is no datastore at"), "{message}");
    system.uninstall(&[]);
    assert!(others.exists());
    for folder in HELP_FOLDERS {
        assert_eq!(system.has(folder), others.starts_with(system.path(folder)), "{folder}");
    }
    fs::remove_file(others).unwrap();
    system.uninstall(&[]);
    for folder in HELP_FOLDERS {
        assert!(!system.has(folder), "{folder}");
    }
    assert!(system.has("usr/local/share"));
}

#[test]
fn verbs_go_on_while_the_plugin_is_replaced_over_and_over() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let network = system.network();
    let (stays, comes) = (node.sandbox("stays"), node.sandbox("comes"));
    let result = system.run(&stays, "ADD", &network).success();

    let replaced = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The installer needs nothing of the node, so it may run on any thread.
        scope.spawn(|| {
            for version in 0..5 {
                system.ship_version(version);
                system.install(&[]);
            }
            replaced.store(true, Ordering::Release);
        });
        while !replaced.load(Ordering::Acquire) {
            system.run(&comes, "ADD", &network).success();
            system.run(&comes, "DEL", &network).success();
        }
    });

    assert_ping(&node, address(&result, true));
    let mut checked = network.clone();
    checked["prevResult"] = result;
    system.run(&stays, "CHECK", &checked).success();
    system.run(&stays, "DEL", &network).success();
}

#[test]
fn an_install_that_is_killed_anywhere_leaves_a_system_that_works_and_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let complete = system.installed();
    for renames in 0.. {
        system.uninstall(&["--purge"]);
        system.ship_version(1);
        system.install(&[]);
        system.ship_version(2);

        let killed = !system.install_killed_after(renames);

        let network = system.network();
        system.execute(&Invocation::new(&system.plugin(), "STATUS", &network)).success();
        let pod = node.sandbox(&format!("after-{renames}"));
        system.run(&pod, "ADD", &network).success();
        system.run(&pod, "DEL", &network).success();
        system.install(&[]);
        assert_eq!(system.installed(), complete, "killed after {renames} renames");
        for (installed, shipped) in [
            (PLUGIN, "bin/margay"),
            (CONFLIST, SHIPPED_CONFLIST),
            (AGENT, "bin/margay-agent"),
            (CTL, "bin/margayctl"),
            (AGENT_UNIT, "conf/margay-agent.service"),
            (AGENT_CONF, SHIPPED_AGENT_CONF),
        ] {
            assert_eq!(system.read(installed), fs::read(system.shipped(shipped)).unwrap());
        }
        if !killed {
            assert!(renames >= 8, "only {renames} renames");
            break;
        }
    }
}

#[test]
fn a_first_install_that_is_killed_has_no_conflist_before_all_else_is_there() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    for renames in 0.. {
        let killed = !system.install_killed_after(renames);
        let others = [PLUGIN, IPAM_PLUGIN, UNIT, AGENT, AGENT_UNIT, AGENT_CONF, CTL];
        let is_complete = others.into_iter().all(|file| system.has(file));
        assert!(is_complete || !system.has(CONFLIST), "killed after {renames} renames");
        if !killed {
            break;
        }
        system.uninstall(&["--purge"]);
    }
    assert!(system.has(CONFLIST));
}

#[test]
fn an_edited_conflist_is_kept_until_one_asks_for_another() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let edited = b"{\"edited\": true}";
    fs::write(system.path(CONFLIST), edited).unwrap();
    let new = format!("{CONFLIST}.new");

    // The same version again: there is nothing new to show.
    let output = system.install(&[]);
    assert_eq!(system.read(CONFLIST), edited);
    assert!(!system.has(&new) && output.contains("which was edited"), "{output}");

    system.ship_version(1);
    let output = system.install(&[]);
    assert_eq!(system.read(CONFLIST), edited);
    let shipped = fs::read(system.shipped(SHIPPED_CONFLIST)).unwrap();
    assert_eq!(system.read(&new), shipped);
    assert!(output.contains("10-margay.conflist.new"), "{output}");

    system.uninstall(&[]);
    assert!(!system.has(CONFLIST));
    assert_eq!(system.read(&format!("{CONFLIST}.saved")), edited);
    system.install(&[]);
    assert_eq!(system.read(CONFLIST), edited);

    system.install(&["--replace-conf"]);
    assert_eq!(system.read(CONFLIST), shipped);
    assert_eq!(system.read(&format!("{CONFLIST}.old")), edited);
    assert!(!system.has(&new));
}

#[test]
fn an_edited_configuration_of_the_agent_is_kept_until_purged() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    let before = system.files();
    system.install(&[]);
    let edited = b"{\"datastore_type\": \"etcdv3\"}";
    fs::write(system.path(AGENT_CONF), edited).unwrap();

    system.ship_version(1);
    system.install(&[]);
    assert_eq!(system.read(AGENT_CONF), edited);
    let shipped = fs::read(system.shipped(SHIPPED_AGENT_CONF)).unwrap();
    assert_eq!(system.read(&format!("{AGENT_CONF}.new")), shipped);

    system.uninstall(&[]);
    assert_eq!(system.read(&format!("{AGENT_CONF}.saved")), edited);
    system.install(&[]);
    assert_eq!(system.read(AGENT_CONF), edited);

    system.uninstall(&["--purge"]);
    assert_eq!(system.files(), before);
}

#[test]
fn the_agent_starts_only_where_it_was_enabled_and_not_once_it_is_uninstalled() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    let enabled = "etc/systemd/system/multi-user.target.wants/margay-agent.service";
    system.install(&[]);
    assert!(!system.has(enabled));

    let root = system.root.to_str().unwrap();
    let enable = ["--quiet", "--root", root, "enable", "margay-agent.service"];
    match Command::new("systemctl").args(enable).output() {
        Ok(output) => succeed(output),
        // A machine without systemd.
        Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    };
    system.install(&[]);
    assert!(system.has(enabled));

    system.uninstall(&[]);
    assert!(!system.has(enabled) && !system.has(AGENT_UNIT));
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let directory = tempfile::tempdir().unwrap();
    let built = margay_tests::node::plugin_directory().join("margay-agent");
    let units = ["margay-agent.service", "margay-boot.service"].map(|name| {
        let unit = fs::read_to_string(Path::new(WORKSPACE).join("conf").join(name)).unwrap();
        // It looks whether what a unit executes is there.
        let unit = unit.replace("/usr/local/sbin/margay-agent", built.to_str().unwrap());
        let path = directory.path().join(name);
        fs::write(&path, unit).unwrap();
        path
    });

    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output();

    let output = match output {
        Ok(output) => output,
        // A machine without systemd.
        Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    };
    // It speaks of other units, too.
    let said = String::from_utf8_lossy(&output.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("margay-")).collect();
    assert_eq!(of_ours, [] as [&str; 0]);
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_unit_of_the_agent_starts_the_one_of_its_prefix() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    let before = system.files();

    system.install(&["--prefix", "/opt/margay"]);

    assert!(system.has("opt/margay/sbin/margay-agent"));
    let unit = system.read("opt/margay/lib/systemd/system/margay-agent.service");
    let unit = String::from_utf8(unit).unwrap();
    assert!(unit.contains("\nExecStart=/opt/margay/sbin/margay-agent --config /etc/"), "{unit}");
    system.uninstall(&["--prefix", "/opt/margay", "--purge"]);
    assert_eq!(system.files(), before);
}

#[test]
fn a_conflist_that_nobody_edited_follows_the_version() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);

    system.ship_version(1);
    system.install(&[]);

    let shipped = fs::read(system.shipped(SHIPPED_CONFLIST)).unwrap();
    assert_eq!(system.read(CONFLIST), shipped);
    assert!(!system.has(&format!("{CONFLIST}.new")));
}

#[test]
fn a_network_that_a_runtime_would_prefer_is_named() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    assert!(!system.install(&[]).contains("warning"));
    fs::write(system.path("etc/cni/net.d/10-calico.conflist"), "{}").unwrap();

    let output = system.install(&[]);

    assert!(output.contains("takes 10-calico.conflist"), "{output}");
}

#[test]
fn pods_keep_margay_installed_and_if_forced_their_pins_and_their_masquerading() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let network = system.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    system.run(&a, "ADD", &network).success();
    let result = system.run(&b, "ADD", &network).success();
    let installed = system.installed();

    let refused = system.script("uninstall.sh", &["--purge"]).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && message.contains("2 pod interface(s)"), "{message}");
    assert_eq!(system.installed(), installed);

    system.uninstall(&["--force"]);
    assert!(!system.has(PLUGIN) && !system.has(CONFLIST) && system.has(PINS));
    node.run(&["nft", "list table inet margay"]);
    assert_ping(&a, address(&result, true));

    system.install(&[]);
    system.run(&a, "DEL", &network).success();
    system.run(&b, "DEL", &network).success();
    system.uninstall(&[]);
    assert!(!system.has(PINS));
    assert_eq!(node.run(&["nft", "list tables"]), "");
}

/// A container that has the host's root mounted has a network namespace of its own as a rule.
#[test]
fn pods_of_a_host_whose_root_a_container_sees_keep_margay_installed() {
    let Some(node) = Node::new() else { return };
    let system = System::new(&node);
    system.install(&[]);
    let installed = system.installed();
    let devices = system.path("proc/1/net/dev");
    fs::create_dir_all(devices.parent().unwrap()).unwrap();
    fs::write(&devices, "    lo:    0  0\nmgy0123456789ab: 42  1\n mgyfedcba987654:    0  0\n")
        .unwrap();

    let refused = system.script("uninstall.sh", &[]).output().unwrap();

    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && message.contains("2 pod interface(s)"), "{message}");
    fs::remove_dir_all(system.path("proc")).unwrap();
    assert_eq!(system.installed(), installed);
}

#[test]
fn the_boot_unit_comes_before_every_runtime() {
    let unit = Path::new(WORKSPACE).join("conf/margay-boot.service");
    let text = fs::read_to_string(&unit).unwrap();
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.next().unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let runtimes = value("Before");
    for runtime in ["containerd", "crio", "kubelet", "k3s"] {
        assert!(runtimes.split(' ').any(|unit| unit == format!("{runtime}.service")), "{runtime}");
    }
    assert_eq!(value("Type"), "oneshot");
    assert_eq!(value("ConditionPathIsMountPoint"), "!/sys/fs/bpf");
    assert!(value("ExecStart").ends_with(" bpf /sys/fs/bpf"));
    match Command::new("systemd-analyze").arg("verify").arg(&unit).output() {
        Ok(output) => assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        // A machine without systemd.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}
