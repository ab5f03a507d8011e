use super::*;

#[test]
fn pools_get_the_default_block_sizes_and_both_families() {
    let pools = pools(&plain());

    let blocks: Vec<_> = pools.usable.iter().map(|pool| pool.block_size).collect();
    assert_eq!(blocks, [26, 122]);
    assert!(pools.assign_ipv4 && pools.assign_ipv6 && !pools.strict_affinity);
}

#[test]
fn a_calico_conflist_without_pools_means_calicos_default() {
    let pools = pools(&with("/ipam", json!({ "type": "calico-ipam" })));

    assert!(pools.is_calicos_default && pools.assign_ipv4 && !pools.assign_ipv6);
    assert_eq!(pools.all, pools.usable);
    assert_eq!(pools.all[0].cidr.to_string(), "192.168.0.0/16");
    assert_eq!((pools.all[0].block_size, pools.all[0].nat_outgoing), (26, true));
    for ipam in [
        json!({ "type": "margay-ipam" }),
        json!({ "type": "calico-ipam", "assign_ipv4": false }),
        json!({ "type": "calico-ipam", "assign_ipv6": true }),
    ] {
        refused(&with("/ipam", ipam));
    }
}

#[test]
fn pools_that_cannot_work_are_refused() {
    let claims = [
        (json!([]), "ipam.pools is missing: there is no enabled pool"),
        (json!([{ "cidr": "10.0.0.0/8", "disabled": true }]), "there is no enabled pool"),
        (json!([{}]), "ipam.pools[0].cidr is missing"),
        (json!([{ "cidr": "10.0.0.0" }]), "must be a prefix"),
        (json!([{ "cidr": "10.0.0.0/33" }]), "must be a prefix"),
        (json!([{ "cidr": "10.0.0.1/8" }]), "has host bits set, did you mean 10.0.0.0/8?"),
        (json!([{ "cidr": "fd00::1/64" }]), "has host bits set, did you mean fd00::/64?"),
        (json!([{ "cidr": "0.0.0.0/0" }]), "overlaps 0.0.0.0/8"),
        (json!([{ "cidr": "169.254.0.0/17" }]), "overlaps 169.254.0.0/16"),
        (json!([{ "cidr": "fe80::/64" }]), "overlaps fe80::/10"),
        (
            json!([{ "cidr": "10.0.0.0/8" }, { "cidr": "10.1.0.0/16" }]),
            "overlaps the pool 10.0.0.0/8",
        ),
        (
            json!([{ "cidr": "10.0.0.0/8", "block_size": 19 }]),
            "block_size = 19: must be a whole number from 20 to 32",
        ),
        (json!([{ "cidr": "10.0.0.0/8", "block_size": 33 }]), "from 20 to 32"),
        (json!([{ "cidr": "10.0.0.0/28", "block_size": 26 }]), "cannot be larger than its pool"),
        (json!([{ "cidr": "fd00::/64", "block_size": 64 }]), "from 116 to 128"),
        (
            json!([{ "cidr": "10.0.0.0/16", "name": "a" }, { "cidr": "10.1.0.0/16", "name": "a" }]),
            r#"a second pool is named "a""#,
        ),
        (
            (0..257)
                .map(|n| json!({ "cidr": format!("10.{}.{}.0/24", n / 256, n % 256) }))
                .collect(),
            "must be 256 pools at most",
        ),
    ];
    for (pools, message) in claims {
        let error = refused(&with("/ipam/pools", pools));
        assert!(error.contains(message), "{error}, expected {message}");
    }
}

#[test]
fn a_family_is_assigned_if_it_has_a_pool_unless_told_otherwise() {
    let v4_only = with("/ipam/pools", json!([{ "cidr": "10.0.0.0/24" }]));
    assert!(!pools(&v4_only).assign_ipv6);

    let off = pools(&with("/ipam/assign_ipv4", json!(false)));
    assert!(!off.assign_ipv4 && off.usable.iter().all(|pool| pool.cidr.is_ipv6()));

    let mut impossible = v4_only;
    impossible["ipam"]["assign_ipv6"] = json!("true");
    let error = refused(&impossible);
    assert!(error.contains(r#"ipam.assign_ipv6 = "true": there is no enabled pool"#), "{error}");

    let mut nothing = plain();
    nothing["ipam"]["assign_ipv4"] = json!(false);
    nothing["ipam"]["assign_ipv6"] = json!(false);
    assert!(refused(&nothing).contains("there is no enabled pool of a family that is assigned"));
}

#[test]
fn pools_are_chosen_by_name_or_prefix_in_the_order_given() {
    let mut document = with(
        "/ipam/pools",
        json!([
            { "cidr": "10.1.0.0/16", "name": "one" },
            { "cidr": "10.2.0.0/16", "name": "two" },
            { "cidr": "10.3.0.0/16", "disabled": true },
            { "cidr": "fd00::/64" },
        ]),
    );
    document["ipam"]["ipv4_pools"] = json!(["10.2.0.0/16", "one", "10.3.0.0/16"]);

    let chosen = pools(&document);

    let cidrs: Vec<_> = chosen.usable.iter().map(|pool| pool.cidr.to_string()).collect();
    assert_eq!(cidrs, ["10.2.0.0/16", "10.1.0.0/16", "fd00::/64"]);
    assert_eq!(chosen.all.len(), 4);
    for (choice, message) in [
        (json!(["one", "10.1.0.0/16"]), "is named twice"),
        (json!(["fd00::/64"]), "is of the other address family"),
    ] {
        document["ipam"]["ipv4_pools"] = choice;
        let error = refused(&document);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn pools_of_the_datastore_are_chosen_by_name_or_range_as_they_are_recorded() {
    let record = |cidr: &str, name: &str| margay_datastore::Pool {
        name: name.to_owned(),
        block_size: 28,
        nat_outgoing: true,
        ..margay_datastore::Pool::new(cidr.parse().unwrap())
    };
    let records = [
        record("10.8.0.0/16", "blue"),
        record("10.9.0.0/16", "red"),
        record("10.10.0.0/16", "red"),
        record("fd00:8::/64", "six"),
        record("127.0.0.0/16", "mine"),
        margay_datastore::Pool { disabled: true, ..record("10.11.0.0/16", "out") },
    ];
    let settled = |listed: Value, choice: Value| {
        let mut document = with("/ipam/pools", listed);
        document["ipam"]["ipv4_pools"] = choice;
        let mut pools = pools(&document);
        assert!(pools.is_open());
        pools.settle(&records).map_err(|error| error.to_string()).map(|()| pools)
    };
    let listed = json!([{ "cidr": "10.1.0.0/16", "name": "one" }, { "cidr": "fd00::/64" }]);

    let mixed = settled(listed.clone(), json!(["blue", "one", "10.11.0.0/16"])).unwrap();
    let by_range = settled(json!([]), json!(["10.8.0.0/16", "10.12.0.0/16"])).unwrap();

    let cidrs: Vec<_> = mixed.usable.iter().map(|pool| pool.cidr.to_string()).collect();
    assert_eq!(cidrs, ["10.8.0.0/16", "10.1.0.0/16", "fd00::/64"]);
    assert!(!mixed.is_open() && mixed.assign_ipv6);
    assert_eq!((mixed.usable[0].block_size, mixed.usable[0].nat_outgoing), (28, true));
    let sizes: Vec<_> = by_range.usable.iter().map(|pool| pool.block_size).collect();
    assert_eq!(sizes, [28, 26], "what the datastore does not have is a pool with the defaults");
    for (choice, message) in [
        (json!(["three"]), r#"ipam.ipv4_pools[0] = "three": is neither the name nor the cidr"#),
        (json!(["10.99.0.0/16"]), "nor of a pool in the datastore"),
        (json!(["red"]), "is the name of several pools: 10.9.0.0/16, 10.10.0.0/16"),
        (json!(["six"]), "fd00:8::/64 is of the other address family"),
        (json!(["blue", "10.8.0.0/16"]), "overlaps the pool 10.8.0.0/16"),
        (json!(["mine"]), "overlaps 127.0.0.0/8 (loopback)"),
        (json!(["out"]), "every pool that it names is disabled"),
    ] {
        let error = settled(listed.clone(), choice).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn who_only_looks_takes_the_pools_that_are_there() {
    let record = |cidr: &str, name: &str| margay_datastore::Pool {
        name: name.to_owned(),
        ..margay_datastore::Pool::new(cidr.parse().unwrap())
    };
    let disabled = margay_datastore::Pool { disabled: true, ..record("10.11.0.0/16", "out") };
    let records = [record("10.8.0.0/16", "blue"), record("10.9.0.0/16", "blue"), disabled];
    for (choice, found) in [("none", ""), ("blue", ""), ("out", "10.11.0.0/16")] {
        let mut document = with("/ipam/pools", json!([{ "cidr": "fd00::/64" }]));
        document["ipam"]["ipv4_pools"] = json!([choice]);
        let mut pools = pools(&document);

        pools.settle_as_found(&records);

        let all: Vec<_> = pools.all.iter().map(|pool| pool.cidr.to_string()).collect();
        assert_eq!(all.join(" "), format!("fd00::/64 {found}").trim());
        assert_eq!(pools.usable.len(), 1, "{choice}");
    }
}

#[test]
fn the_gateway_of_a_pool_is_its_first_address() {
    let claims = [
        ("10.244.0.0/16", Some("10.244.0.1")),
        ("10.244.0.0/30", Some("10.244.0.1")),
        ("10.244.0.0/31", None),
        ("fd00::/64", Some("fd00::1")),
        ("fd00::/127", None),
    ];
    for (cidr, gateway) in claims {
        let pools = pools(&with("/ipam/pools", json!([{ "cidr": cidr }])));
        assert_eq!(pools.usable[0].gateway().map(|ip| ip.to_string()).as_deref(), gateway);
    }
}

#[test]
fn a_pools_vxlan_mode_has_calicos_words() {
    for (word, encapsulation) in [
        ("Never", Encapsulation::None),
        ("Always", Encapsulation::Vxlan),
        ("CrossSubnet", Encapsulation::VxlanCrossSubnet),
    ] {
        let document = with("/ipam/pools/0/vxlan_mode", json!(word));
        let pools = pools(&document);
        assert_eq!(pools.all[0].encapsulation, encapsulation);
        assert_eq!(pools.uses_vxlan(), encapsulation != Encapsulation::None);
        assert_eq!(margay_datastore::Pool::from(&pools.all[0]).encapsulation, encapsulation);
    }
    let document = with("/ipam/pools/0/vxlan_mode", json!("always"));
    let error = NetConf::from_map(document.as_object().unwrap()).unwrap_err().to_string();
    assert!(error.contains("Always, CrossSubnet or Never"), "{error}");
}

#[test]
fn masquerading_is_margays_and_not_margay_ipams() {
    let document = with("/ipam/pools/0/nat_outgoing", json!("true"));

    assert!(pools(&document).all[0].nat_outgoing);
    assert_eq!(parse(&document).unwrap().unused_keys(), [] as [&str; 0]);
    let alone = IpamNetConf::from_map(map(&document)).unwrap();
    assert_eq!(alone.unused_keys(), ["ipam.pools[].nat_outgoing"]);
}
