mod etcd;
mod noise;
mod pools;

use margay_datastore::{Encapsulation, EndpointPort, Protocol};
use serde_json::{Map, Value, json};

use super::*;
use crate::args::CniArgs;

/// A configuration that works and says little.
fn plain() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "margay",
        "nodename": "node-a",
        "ipam": {
            "type": "margay-ipam",
            "pools": [{ "cidr": "10.244.0.0/16" }, { "cidr": "fd00:10:244::/64" }],
        },
    })
}

/// The plain configuration with one value changed; a path such as `/ipam/pools/0/cidr`.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = plain();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap()[key] = value;
    document
}

fn map(document: &Value) -> &Map<String, Value> {
    document.as_object().unwrap()
}

fn parse(document: &Value) -> Result<NetConf, ConfigError> {
    NetConf::from_map(map(document))
}

fn requested(document: &Value) -> Result<Requested, ConfigError> {
    Requested::from_map(map(document))
}

#[track_caller]
fn refused(document: &Value) -> String {
    parse(document).unwrap_err().to_string()
}

#[track_caller]
fn pools(document: &Value) -> PoolSet {
    match parse(document).unwrap().ipam {
        IpamConf::Builtin(pools) => pools,
        IpamConf::Delegated(plugin) => panic!("delegated to {plugin}"),
    }
}

#[test]
fn a_configuration_that_says_little_gets_the_defaults() {
    let netconf = parse(&plain()).unwrap();

    assert_eq!(netconf.dataplane, Dataplane::Ebpf);
    assert_eq!(netconf.attach, Attach::Clsact);
    assert_eq!(netconf.mtu, None);
    assert_eq!(netconf.paths.database(), PathBuf::from("/var/lib/margay/margay.db"));
    assert_eq!(netconf.paths.bpffs_root, PathBuf::from("/sys/fs/bpf/margay"));
    assert_eq!(netconf.max_pods, 65_536);
    assert!(netconf.default_route_for("eth0") && !netconf.default_route_for("net1"));
    assert_eq!(requested(&plain()).unwrap(), Requested::default());
    assert_eq!(netconf.unused_keys(), [] as [&str; 0]);
}

#[test]
fn a_calico_conflist_with_another_type_works_and_its_idle_keys_are_listed() {
    let document = json!({
        "cniVersion": "0.3.1",
        "name": "k8s-pod-network",
        "type": "margay",
        "log_level": "info",
        "log_file_path": "/var/log/calico/cni/cni.log",
        "datastore_type": "kubernetes",
        "nodename": "node-a",
        "nodename_file_optional": false,
        "mtu": 1440,
        "num_queues": 0,
        "log_file_max_size": 100,
        "ipam": {
            "type": "calico-ipam",
            "assign_ipv4": "true",
            "assign_ipv6": "false",
            "ipv4_pools": ["192.168.0.0/16"],
        },
        "container_settings": { "allow_ip_forwarding": true },
        "feature_control": { "floating_ips": false },
        "policy": { "type": "k8s" },
        "kubernetes": { "kubeconfig": "/etc/cni/net.d/calico-kubeconfig" },
    });

    let netconf = parse(&document).unwrap();

    assert_eq!(netconf.mtu, Some(1440));
    assert!(netconf.ip_forwarding);
    let mut unused = netconf.unused_keys().to_vec();
    unused.sort();
    assert_eq!(
        unused,
        ["datastore_type", "feature_control", "kubernetes", "log_file_max_size", "policy.type"]
    );
    let pools = pools(&document);
    assert!(pools.assign_ipv4 && !pools.assign_ipv6);
    assert_eq!(pools.usable[0].cidr.to_string(), "192.168.0.0/16");
}

#[test]
fn an_unknown_key_is_named_with_its_path_and_the_nearest_known_one() {
    let claims = [
        ("/dataplan", "dataplan is not a key margay knows, did you mean dataplane?"),
        ("/MTU", "MTU is not a key margay knows, did you mean mtu?"),
        (
            "/ipam/ipv4_pool",
            "ipam.ipv4_pool is not a key margay knows, did you mean ipam.ipv4_pools?",
        ),
        (
            "/ipam/pools/0/natOutgoing",
            "ipam.pools[0].natOutgoing is not a key margay knows, did you mean ipam.pools[].nat_outgoing?",
        ),
        (
            "/ipam/pools/1/blocksize",
            "ipam.pools[1].blocksize is not a key margay knows, did you mean ipam.pools[].block_size?",
        ),
        ("/assign_ipv4", "assign_ipv4 is not a key margay knows, did you mean ipam.assign_ipv4?"),
        ("/dns.domain", "dns.domain is not a key margay knows, did you mean dns.domain?"),
        ("/flux_capacitor", "flux_capacitor is not a key margay knows"),
    ];
    for (pointer, message) in claims {
        assert_eq!(refused(&with(pointer, json!(1))), message);
    }
    let long = refused(&with(&format!("/{}", "x".repeat(1 << 20)), json!(1)));
    assert!(long.len() < 1_000, "a message of {} bytes", long.len());
}

#[test]
fn a_wrong_value_is_refused_with_field_and_value() {
    let claims = [
        ("/name", json!(7), r#"name = 7: must be a string"#),
        ("/name", json!("../x"), r#"name = "../x": must start with a letter or digit"#),
        ("/mtu", json!("1500"), r#"mtu = "1500": must be a whole number"#),
        ("/mtu", json!(-1), "mtu = -1: must be a whole number"),
        ("/mtu", json!(67), "mtu = 67: must be a whole number from 1280 to 65535"),
        ("/mtu", json!(u64::MAX), "mtu = 18446744073709551615: must be a whole number from 0"),
        ("/mtu", json!(1e300), "mtu = 1e+300: must be a whole number"),
        ("/dataplane", json!("xdp"), r#"dataplane = "xdp": must be ebpf, linux or auto"#),
        ("/attach", json!("netkit"), r#"attach = "netkit": must be clsact or tcx"#),
        ("/state_dir", json!("var"), r#"state_dir = "var": must be an absolute path"#),
        ("/state_dir", json!("/a\0b"), "must be an absolute path"),
        ("/run_dir", json!("/a\nb"), "must be an absolute path without control characters"),
        ("/log_file_path", json!("/\u{1b}[2J"), r#"log_file_path = "/\u001b[2J""#),
        ("/max_pods", json!(0), "max_pods = 0: must be a whole number from 1 to 16777216"),
        ("/log_level", json!("loud"), r#"log_level = "loud": must be trace, debug"#),
        ("/nodename", json!("a/b"), r#"nodename = "a/b": must be a host name"#),
        ("/nodename", json!("n".repeat(254)), "must be a host name of 253 bytes at most"),
        ("/dns", json!({"search": "x"}), r#"dns.search = "x": must be a list"#),
        ("/default_route", json!("yes"), r#"default_route = "yes": must be true or false"#),
        ("/ipam", json!([]), "ipam = []: must be an object"),
        ("/ipam/type", json!("../sh"), r#"ipam.type = "../sh": must be the name of a plugin"#),
        ("/ipam/type", json!("host\nlocal"), "must be the name of a plugin"),
        (
            "/ipam/pools",
            json!(["10.0.0.0/8"]),
            r#"ipam.pools[0] = "10.0.0.0/8": must be an object"#,
        ),
    ];
    for (pointer, value, message) in claims {
        let document = with(pointer, value);
        let error = parse(&document).unwrap_err();
        assert!(error.to_string().contains(message), "{error}, expected {message}");
        assert!(!matches!(error, ConfigError::Unsupported { .. }), "{error} is of code 2");
    }
}

#[test]
fn a_pod_that_asks_for_nonsense_is_refused_by_add_alone() {
    let claims = [
        ("/runtimeConfig", json!({"mac": "01:00:5e:00:00:01"}), "runtimeConfig.mac"),
        ("/runtimeConfig", json!({"mac": "00:00:00:00:00:00"}), "must be a unicast MAC"),
        ("/runtimeConfig", json!({"ips": ["10.244.0.5", "x"]}), r#"runtimeConfig.ips[1] = "x""#),
        ("/runtimeConfig", json!({"ips": ["224.0.0.1"]}), "must be a unicast address"),
        (
            "/runtimeConfig",
            json!({"ips": ["10.0.0.5", "10.0.0.6"]}),
            "second address of its family",
        ),
        (
            "/args",
            json!({"cni": {"labels": [{"value": "x"}]}}),
            "args.cni.labels[0].key is missing",
        ),
        (
            "/runtimeConfig",
            json!({"portMappings": [{"hostPort": 80}]}),
            "runtimeConfig.portMappings[0].containerPort is missing",
        ),
        (
            "/runtimeConfig",
            json!({"portMappings": [{"hostPort": 70000, "containerPort": 80}]}),
            "portMappings[0].hostPort = 70000",
        ),
        (
            "/runtimeConfig",
            json!({"portMappings": [{"containerPort": 80, "protocol": "icmp"}]}),
            "must be tcp, udp or sctp",
        ),
    ];
    for (pointer, value, message) in claims {
        let document = with(pointer, value);
        let error = requested(&document).unwrap_err();
        assert!(error.to_string().contains(message), "{error}, expected {message}");
        assert!(parse(&document).is_ok(), "{document}");
    }
}

#[test]
fn what_matters_and_is_not_supported_is_an_error_of_its_own() {
    let claims = [
        ("/etcd_discovery_srv", json!("example.com"), "etcd_discovery_srv"),
        ("/policy", json!({ "type": "strict" }), "policy.type"),
        ("/delegate", json!({ "isDefaultGateway": true }), "delegate"),
        ("/ipam", json!({ "type": "host-local", "subnet": "usePodCidr" }), "ipam.subnet"),
    ];
    for (pointer, value, field) in claims {
        let error = parse(&with(pointer, value)).unwrap_err();
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{error}");
        assert!(error.to_string().starts_with(field), "{error}");
    }
}

#[test]
fn empty_and_null_values_are_absent_ones() {
    let mut document = with("/etcd_endpoints", json!(""));
    document["policy"] = json!({});
    document["mtu"] = json!(0);
    document["dns"] = Value::Null;
    document["prevResult"] = Value::Null;
    document["log_file_path"] = json!("");

    let netconf = parse(&document).unwrap();

    assert_eq!((netconf.mtu, netconf.dns, netconf.log.file), (None, None, None));
    assert_eq!(parse(&document).unwrap().unused_keys(), [] as [&str; 0]);
}

#[test]
fn another_plugins_ipam_section_is_its_own_business() {
    let section =
        json!({ "type": "host-local", "ranges": [[{ "subnet": "10.0.0.0/24" }]], "x": 1 });

    let netconf = parse(&with("/ipam", section)).unwrap();

    assert_eq!(netconf.ipam, IpamConf::Delegated("host-local".into()));
}

#[test]
fn what_the_runtime_adds_is_never_an_unknown_key() {
    let mut document = plain();
    document["runtimeConfig"] =
        json!({ "portMappings": "nonsense", "cgroupPath": "/x", "aliases": [] });
    document["args"] = json!({ "org.apache.mesos": {}, "cni": { "whatever": 1 } });
    document["prevResult"] = json!("nonsense");
    document["capabilities"] = json!({ "ips": true });

    let netconf = parse(&document).unwrap();

    assert_eq!(netconf.unused_keys(), [] as [&str; 0]);
    assert!(prev_result(map(&document)).unwrap_err().to_string().contains("prevResult"));
}

#[test]
fn runtime_config_outranks_args_and_args_outrank_cni_args() {
    let cni_args = CniArgs::parse("IP=10.244.0.7;MAC=02:00:00:00:00:07").unwrap();
    let mut document = plain();
    let requested = |document: &Value| requested(document).unwrap().or_args(&cni_args);
    assert_eq!(requested(&document).ips, ["10.244.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(requested(&document).mac, Some([2, 0, 0, 0, 0, 7]));

    document["args"] = json!({ "cni": { "ips": ["10.244.0.6/24", "fd00::6"], "mac": "02:00:00:00:00:06",
        "labels": [{ "key": "app", "value": "web" }] } });
    assert_eq!(requested(&document).ips.len(), 2);
    assert_eq!(requested(&document).mac, Some([2, 0, 0, 0, 0, 6]));
    assert_eq!(requested(&document).labels["app"], "web");

    document["runtimeConfig"] = json!({ "ips": ["10.244.0.5/16"], "mac": "02-00-00-00-00-05" });
    assert_eq!(requested(&document).ips, ["10.244.0.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(requested(&document).mac, Some([2, 0, 0, 0, 0, 5]));
}

#[test]
fn host_ports_are_read_as_runtimes_write_them() {
    let mut document = plain();
    document["runtimeConfig"] = json!({ "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.1" },
        { "HostPort": 53, "ContainerPort": 53, "Protocol": "udp", "HostIP": "0.0.0.0" },
        { "hostPort": 0, "containerPort": 81, "protocol": "", "hostIP": "" },
    ] });

    let ports = requested(&document).unwrap().ports;

    let port = |protocol, port, host_port, host_ip: Option<&str>| EndpointPort {
        name: String::new(),
        protocol,
        port,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    assert_eq!(
        ports,
        [
            port(Protocol::Tcp, 80, Some(8080), Some("192.0.2.1")),
            port(Protocol::Udp, 53, Some(53), None),
            port(Protocol::Tcp, 81, None, None),
        ]
    );
}

#[test]
fn one_state_directory_serves_endpoints_and_addresses() {
    let inside = parse(&with("/ipam/state_dir", json!("/tmp/a"))).unwrap();
    assert_eq!(inside.paths.state_dir, PathBuf::from("/tmp/a"));

    let named = parse(&with("/ipam/nodename", json!("b"))).unwrap();
    assert_eq!(
        (named.nodename.as_str(), named.unused_keys()),
        ("node-a", &["ipam.nodename".to_owned()][..])
    );

    let mut two = with("/ipam/state_dir", json!("/tmp/a"));
    two["state_dir"] = json!("/tmp/b");
    assert!(refused(&two).contains("ipam.state_dir"));
    let mut two = with("/ipam/run_dir", json!("/tmp/a"));
    two["run_dir"] = json!("/tmp/b");
    assert!(refused(&two).contains("ipam.run_dir"));
}

#[test]
fn gc_without_a_list_is_an_error_and_with_null_means_none() {
    let document = |key: &str, value: Value| {
        let mut document = plain();
        document[key] = value;
        document
    };
    let attachments = |document: &Value| valid_attachments(map(document));
    assert!(matches!(attachments(&plain()), Err(ConfigError::Missing { .. })));
    let none = document("cni.dev/valid-attachments", Value::Null);
    assert_eq!(attachments(&none).unwrap(), []);
    let one = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(attachments(&document(key, one.clone())).unwrap().len(), 1);
    }
    let broken = document("cni.dev/valid-attachments", json!([{ "containerID": "c1" }]));
    let error = attachments(&broken).unwrap_err().to_string();
    assert!(error.starts_with("cni.dev/valid-attachments[0].ifname is missing"), "{error}");
}

#[test]
fn previous_results_of_every_layout_are_read() {
    for ip in [
        json!({ "version": "4", "address": "10.0.0.5/24", "interface": 1, "gateway": "10.0.0.1" }),
        json!({ "address": "10.0.0.5/32" }),
    ] {
        let mut document = plain();
        document["prevResult"] = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/x", "mac": "02:00:00:00:00:05" }],
            "ips": [ip], "routes": [{ "dst": "0.0.0.0/0" }], "dns": {},
        });
        assert_eq!(prev_result(map(&document)).unwrap().unwrap().ips.len(), 1);
    }
    assert_eq!(prev_result(map(&plain())).unwrap(), None);
}

#[test]
fn margay_ipam_leaves_the_other_plugins_keys_alone() {
    let document = json!({
        "cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipMasq": true, "bridge": 7,
        "ipam": { "type": "margay-ipam", "nodename": "a", "state_dir": "/tmp/x",
            "pools": [{ "cidr": "10.0.0.0/24" }] },
    });

    let netconf = IpamNetConf::from_map(map(&document)).unwrap();

    assert_eq!(netconf.database(), PathBuf::from("/tmp/x/margay.db"));
    assert_eq!(netconf.unused_keys(), [] as [&str; 0]);
}
