use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_document_makes_it_panic(noise in any_json(), replaced in any_json(), key in any::<prop::sample::Index>()) {
        let mut document = plain();
        if let Value::Object(noise) = noise {
            map_mut(&mut document).extend(noise);
        }
        let count = map(&document).len();
        let victim = map(&document).keys().nth(key.index(count)).unwrap().clone();
        document[&victim] = replaced;

        let _ = parse(&document);
        let _ = requested(&document);
        let _ = IpamNetConf::from_map(map(&document));
        let _ = valid_attachments(map(&document));
        let _ = prev_result(map(&document));
        let _ = crate::ipam::IpamResult::from_map(map(&document));
    }

    #[test]
    fn no_pools_make_it_panic(list in any_json(), chosen in any_json()) {
        let mut document = with("/ipam/pools", list);
        document["ipam"]["ipv4_pools"] = chosen;
        let _ = parse(&document);
    }
}

/// Any JSON value, with the keys that margay looks at among its keys.
fn any_json() -> impl Strategy<Value = Value> {
    let names: Vec<&str> = keys::NETCONF_KEYS
        .iter()
        .chain(keys::IPAM_KEYS)
        .map(|key| key.path.rsplit('.').next().unwrap())
        .chain(["ips", "mac", "cni", "labels", "key", "containerID", "ip4", "routes", "dst"])
        .collect();
    let texts = prop::sample::select(vec![
        "",
        "true",
        "margay-ipam",
        "10.0.0.0/8",
        "10.0.0.1",
        "fd00::/64",
        "::/0",
        "é\u{0}",
        "k8s",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        let name = prop_oneof![prop::sample::select(names.clone()).prop_map(str::to_owned), ".*"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(name, inner, 0..6)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn map_mut(document: &mut Value) -> &mut Map<String, Value> {
    document.as_object_mut().unwrap()
}
