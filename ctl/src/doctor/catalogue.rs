//! Everything that can be found, once: by a name that stays, with its gravity, its meaning and its remedy.
//!
//! docs/troubleshooting.md has the same as a table, and each has a test that causes it; both are held against
//! this list.

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Gravity {
    /// Something does not work, or will not with the next pod.
    Error,
    /// Something works less well than it could, or will not work for long.
    Warning,
    /// Good to know.
    Note,
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Kind {
    /// Its name, which stays.
    pub(crate) id: &'static str,
    /// How much it matters.
    pub(crate) gravity: Gravity,
    /// What follows from it.
    pub(crate) meaning: &'static str,
    /// What to do.
    pub(crate) remedy: &'static str,
    /// Whether `--fix` does it, where it is safe.
    pub(crate) fixable: bool,
}

/// What [`Kind::fixable`] is the remedy of.
const FIX: &str = "margayctl doctor --fix";

macro_rules! catalogue {
    ($($name:ident $id:literal $gravity:ident: $meaning:literal $(=> $remedy:literal)? $(; $fix:ident)?,)*) => {
        $(
            pub(crate) const $name: Kind = Kind {
                id: $id,
                gravity: Gravity::$gravity,
                meaning: $meaning,
                remedy: catalogue!(@remedy $($remedy)? $($fix)?),
                fixable: catalogue!(@fixable $($fix)?),
            };
        )*
        /// Every kind, by area.
        pub(crate) const ALL: &[&Kind] = &[$(&$name),*];
    };
    (@remedy $remedy:literal) => { $remedy };
    (@remedy fix) => { FIX };
    (@fixable fix) => { true };
    (@fixable) => { false };
}

// What the node is told.
catalogue! {
    CONFIG_MISSING "config-missing" Error:
        "The runtime has no network of margay's to attach pods to."
        => "margay's install.sh, or cp conf/10-margay.conflist /etc/cni/net.d/; where the runtime looks elsewhere, margayctl --config PATH",
    CONFIG_UNUSABLE "config-unusable" Error:
        "Every ADD of this network fails, or the runtime does not see the network at all."
        => "correct the file that is named (docs/configuration.md has every key), then margayctl doctor",
    CONFIG_VERSION "config-version" Error:
        "margay refuses every verb with code 1."
        => "set cniVersion in the file to 0.3.1, 0.4.0, 1.0.0 or 1.1.0",
    CONFIG_NOT_FIRST "config-not-first" Warning:
        "A runtime that takes the first network by name attaches pods to the other one."
        => "rename one of the files, so that margay's sorts first, or name the network in the runtime's settings",
    AGENT_CONFIG_UNUSABLE "agent-config-unusable" Error:
        "margay-agent does not start with it; until it does, nothing that changes on other nodes reaches this one."
        => "correct the file (docs/agent.md has every key), then systemctl restart margay-agent",
    AGENT_DIFFERS "agent-differs" Error:
        "Agent and plugin speak of different nodes or datastores: other nodes do not find this one's pods."
        => "give both files the same nodename, datastore and directories, then systemctl restart margay-agent",
    AGENT_MAP_SIZES "agent-map-sizes" Warning:
        "After a boot the agent is mostly the first and makes the maps of its size, whatever the network's configuration says."
        => "give both files the same max_pods and max_flows; it counts after a reboot",
    PLUGIN_MISSING "plugin-missing" Error:
        "The runtime cannot execute the chain: every ADD fails."
        => "install the plugin (margay's install.sh; containernetworking-plugins for the reference plugins), or name its folder with --bin-dir",
    PLUGIN_OTHER_VERSION "plugin-other-version" Warning:
        "This margayctl may look for other things than that plugin makes."
        => "run install.sh of one release, which brings both",
    WITHOUT_ROOT "without-root" Note:
        "Records, programs, maps and pods' namespaces were not looked at: what is wrong with them is not in this list."
        => "sudo margayctl doctor",
    NOT_LOOKED_AT "not-looked-at" Warning:
        "Whatever is wrong there is not in this list."
        => "see to what the sentence names, then margayctl doctor",

    DATASTORE_ABSENT "datastore-absent" Note:
        "No pod was ever made here; the first one makes it."
        => "nothing, if that is so; else look whether state_dir is where it was",
    DATASTORE_UNUSABLE "datastore-unusable" Error:
        "No pod can be made, and a DEL fails once it has taken away what is on the node."
        => "ls -ld and df of the file that is named: it has to be root's, and its file system writable and with room",
    DATASTORE_DAMAGED "datastore-damaged" Error:
        "No pod can be made, and a DEL fails once it has taken away what is on the node; which addresses are out is not known."
        => "drain the node (kubectl drain), move the file that is named away, and make the pods anew",
    DATASTORE_OUT_OF_REACH "datastore-out-of-reach" Error:
        "ADDs fail with code 11 until etcd answers; DELs are put off."
        => "see to etcd and the way to it: etcdctl endpoint health",
    DATASTORE_SLOW "datastore-slow" Warning:
        "Every ADD and DEL takes as much longer, and runtimes give up on slow ones."
        => "see to the disk, or to etcd and the way to it: etcdctl check perf",
    RECORD_DAMAGED "record-damaged" Error:
        "Verbs that need the record fail; nothing is written over it."
        => "restore the key that is named, or delete it (sqlite3 margay.db \"delete from records where key = 'KEY'\", etcdctl del), make its pod anew, then margayctl ipam check",
    DELETIONS_PUT_OFF "deletions-put-off" Warning:
        "Addresses of pods that are gone are held until the datastore is told."; fix,
    BLOCK_MISPLACED "block-misplaced" Error:
        "Other nodes go by something else than the block says: packets to its pods may go astray."; fix,

    BPFFS_NOT_MOUNTED "bpffs-not-mounted" Warning:
        "The first ADD mounts it, in the runtime's mount namespace, where others may not see it and a restart of the runtime may lose it."
        => "systemctl enable --now margay-boot.service, or mount -t bpf bpf /sys/fs/bpf",
    BPFFS_UNUSABLE "bpffs-unusable" Error:
        "Programs cannot be pinned: every ADD with the eBPF dataplane fails."
        => "have bpffs_root on a BPF file system that is writable: mount -t bpf bpf /sys/fs/bpf",
    BPFFS_PRIVATE "bpffs-private" Error:
        "The runtime has them in a mount namespace of its own: no tool sees them, and a restart of the runtime leaves its pods to themselves."
        => "systemctl enable --now margay-boot.service, then restart the runtime and make the pods anew",
    KERNEL_REFUSES "kernel-refuses" Error:
        "Every ADD with the eBPF dataplane fails."
        => "zgrep -e BPF_SYSCALL -e NET_CLS_BPF /proc/config.gz: it takes Linux 5.10 with both; or \"dataplane\": \"linux\" in the network's configuration",
    PROGRAMS_MISSING "programs-missing" Error:
        "Nothing finds the programs of the pods that run: they know no pod that comes later, and no upgrade reaches them."; fix,
    PROGRAMS_OTHER_BUILD "programs-other-build" Warning:
        "Pods run the programs of another release than the one that is installed."
        => "margayctl datapath upgrade",
    PROGRAMS_UNUSED "programs-unused" Note:
        "They take memory, and nothing else is wrong with them."; fix,
    MAP_NEARLY_FULL "map-nearly-full" Warning:
        "When it is full, every ADD on this node fails."
        => "raise max_pods in the network's configuration and in the agent's, and reboot: it counts when the maps are made",
    FLOWS_NEARLY_FULL "flows-nearly-full" Note:
        "The flows that are used least are forgotten, and each takes the way through the stack once more."
        => "raise max_flows in the network's configuration and in the agent's, and reboot: it counts when the maps are made",

    ENDPOINT_PENDING "endpoint-pending" Warning:
        "Its ADD was cut short: it holds addresses and is no use. The runtime's DEL, or another ADD, takes it away."
        => "have the runtime remove the sandbox: crictl rmp -f ID, or podman rm -f NAME",
    ENDPOINT_SANDBOX_GONE "endpoint-sandbox-gone" Warning:
        "Its addresses are held for nobody, and the pool has as many fewer."; fix,
    ENDPOINT_POD_INTERFACE "endpoint-pod-interface" Error:
        "The pod cannot speak, or not with all of the packets that it should."
        => "undo it inside the pod (nsenter --net=NETNS ip link), or have the pod made anew: kubectl delete pod NAME",
    ENDPOINT_POD_ADDRESS "endpoint-pod-address" Error:
        "The pod cannot speak by that address."
        => "have the pod made anew: kubectl delete pod NAME",
    ENDPOINT_POD_ROUTE "endpoint-pod-route" Error:
        "The pod does not find its way out."
        => "have the pod made anew: kubectl delete pod NAME",
    ENDPOINT_POD_SYSCTL "endpoint-pod-sysctl" Warning:
        "The pod does not forward what it should."
        => "set the sysctl that is named inside the pod (nsenter --net=NETNS sysctl -w), or have the pod made anew",
    ENDPOINT_HOST_VETH "endpoint-host-veth" Error:
        "The pod is cut off, or packets of some size are lost."
        => "undo it with ip link set, or have the pod made anew: kubectl delete pod NAME",
    ENDPOINT_HOST_ROUTE "endpoint-host-route" Error:
        "Nothing that comes by the host's stack reaches the pod: no Service, no other node, no host."; fix,
    ENDPOINT_NEIGHBOUR "endpoint-neighbour" Error:
        "The host asks for the pod by ARP, which strict settings may leave unanswered."; fix,
    ENDPOINT_SYSCTL "endpoint-sysctl" Error:
        "The host does not forward for the pod, or answers it wrongly."
        => "sysctl -w NAME=VALUE, as they are named; then look who changed it: grep -r NAME /etc/sysctl.d",
    ENDPOINT_BANDWIDTH "endpoint-bandwidth" Warning:
        "The pod is faster than it may be, or what it sends is dropped."
        => "have the pod made anew: kubectl delete pod NAME",
    ENDPOINT_PROGRAM "endpoint-program" Error:
        "Nobody answers the pod's ARP, and its packets are not looked at."; fix,
    ENDPOINT_OTHER_PROGRAM "endpoint-other-program" Error:
        "It may look addresses up in maps that nobody writes any more: it does not know pods that came later."; fix,
    ENDPOINT_OLD_BUILD "endpoint-old-build" Warning:
        "The pod has the programs of before an upgrade."
        => "margayctl datapath upgrade",
    ENDPOINT_MAP_ENTRY "endpoint-map-entry" Error:
        "All that the pod sends is dropped as spoofed."; fix,
    ENDPOINT_ADDRESS_NOT_HELD "endpoint-address-not-held" Error:
        "Another pod may get the same address, and then neither is reached reliably."
        => "have the pod made anew: kubectl delete pod NAME",
    NAT_RULES "nat-rules" Error:
        "What the network's pods send outside leaves with their own addresses, to which no answer comes."; fix,
    FILTER_IN_FRONT "filter-in-front" Warning:
        "A packet that it lets pass or drops for good never comes to margay's program: a spoofed one passes, or ARP goes unanswered."
        => "have its owner put it behind priority 100 (tc filter show dev … ingress; bpftool net)",

    LEFTOVER_LINK "leftover-link" Warning:
        "A sandbox lives on that no record knows, or a DEL did not come to its end."
        => "have the runtime remove the sandbox; if it knows none, ip link delete NAME",
    LEFTOVER_IFB "leftover-ifb" Warning:
        "It takes a little memory, and is of no use to anybody."; fix,
    LEFTOVER_ADDRESS "leftover-address" Warning:
        "The pool has an address less, which is held for nobody."; fix,
    LEFTOVER_MAP_ENTRY "leftover-map-entry" Warning:
        "Packets for the address are sent to an interface that is gone, or is another pod's."; fix,
    LEFTOVER_ROUTE "leftover-route" Warning:
        "Packets for the address go where no pod has it."
        => "ip route delete ADDRESS proto 77",

    FORWARDING_OFF "forwarding-off" Error:
        "The host forwards nothing: pods reach neither Services nor anything outside, nor other nodes."; fix,
    RP_FILTER_STRICT "rp-filter-strict" Warning:
        "Where pools have different vxlan_modes, answers come by another way than the question went, and are dropped."
        => "sysctl -w net.ipv4.conf.all.rp_filter=2, and the same for the interface",
    NO_DEFAULT_ROUTE "no-default-route" Error:
        "Of pods with \"dataplane\": \"linux\" the host answers ARP only for what it has a route to: their gateway stays unknown."
        => "ip route add default via ROUTER",
    MTU_TOO_LARGE "mtu-too-large" Warning:
        "Large packets of the pod are cut up or lost on their way outside: small requests work, downloads hang."
        => "set mtu in the network's configuration to what goes outside, or leave it out, and have the pod made anew: kubectl delete pod NAME",
    CONNTRACK_NEARLY_FULL "conntrack-nearly-full" Warning:
        "When it is full, the kernel drops new connections of the whole host, Services first."
        => "sysctl -w net.netfilter.nf_conntrack_max=NUMBER, twice of what it is, and the same in /etc/sysctl.d",

    FORWARD_DROPS "forward-drops" Warning:
        "What pods send by way of the host's stack is dropped: to Services, other nodes and outside, and the first packet of a UDP flow. TCP and ping between pods of this node work all the same."
        => "iptables -I FORWARD -i mgy+ -j ACCEPT, and the same with -o, with ip6tables for IPv6, and where the host's firewall keeps its rules",
    POOL_EXHAUSTED "pool-exhausted" Error:
        "The next ADD that needs it fails with code 101: no new pod of this network starts."
        => "margayctl ipam check says what is held for nobody; else add a pool to ipam.pools of the network's configuration",
    POOL_NEARLY_EXHAUSTED "pool-nearly-exhausted" Warning:
        "When it is full and the network has no other, ADDs fail with code 101: no new pod starts."
        => "margayctl ipam show says who has the addresses; add a pool to ipam.pools of the network's configuration",
    POOL_OVERLAPS_ROUTE "pool-overlaps-route" Warning:
        "Pods do not reach what is behind that route, or the host does not reach those pods."
        => "give the network another pool, and close this one: margayctl pool disable CIDR; or take the route away: ip route delete PREFIX",

    POOL_UNKNOWN "pool-unknown" Error:
        "Every ADD of this network fails with code 7: margay does not guess which pool was meant."
        => "margayctl pool list, and correct the file; or margayctl pool create CIDR --name NAME",
    POOLS_DISABLED "pools-disabled" Error:
        "Every ADD of this network fails with code 7, until one of the pools that it chooses gives addresses."
        => "margayctl pool list, and take disabled out of the network configuration, on whatever node, that disables the pool; or choose another one in the file",
    AGENT_SILENT "agent-silent" Error:
        "Routes to what other nodes get from here on are not made: their new pods are not reached from this node."
        => "systemctl status margay-agent; journalctl -u margay-agent; systemctl enable --now margay-agent",
    AGENT_NOT_READY "agent-not-ready" Warning:
        "What it names is not done: routes to other nodes' pods may be missing."
        => "journalctl -u margay-agent",
    HEARTBEAT_STALE "heartbeat-stale" Warning:
        "Other nodes take this one for silent, and node delete would take its addresses away."
        => "systemctl restart margay-agent; journalctl -u margay-agent",
    REMOTE_ROUTE_MISSING "remote-route-missing" Error:
        "Pods of that node are not reached from this one."
        => "journalctl -u margay-agent; margayctl doctor there, for the node's address",
    REMOTE_ENTRY_WRONG "remote-entry-wrong" Error:
        "Packets for those pods are sent to a node that does not have them, past the route that knows better."
        => "systemctl restart margay-agent, which writes remote_v4 and remote_v6 anew",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_one_of_its_own_in_kebab_case() {
        let is_kebab = |id: &str| id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        for kind in ALL {
            assert!(is_kebab(kind.id) && kind.meaning.ends_with('.'), "{kind:?}");
        }
        let names: BTreeSet<&str> = ALL.iter().map(|kind| kind.id).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
