use super::*;

#[test]
fn etcd_is_configured_by_calicos_names() {
    let mut document = with("/datastore_type", json!("etcdv3"));
    document["etcd_endpoints"] = json!("https://10.0.0.1:2379, https://10.0.0.2:2379");
    document["etcd_key_file"] = json!("/key");
    document["etcd_cert_file"] = json!("/cert");
    document["etcd_ca_cert_file"] = json!("/ca");
    document["etcd_username"] = json!("margay");
    document["etcd_password_file"] = json!("/password");
    document["etcd_request_timeout_ms"] = json!(1000);

    let Datastore::Etcd(conf) = parse(&document).unwrap().datastore else { panic!("not etcd") };

    assert_eq!(conf.endpoints, ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]);
    assert_eq!(conf.prefix, "/margay/v1/");
    assert_eq!(conf.ca_cert_file.as_deref(), Some(std::path::Path::new("/ca")));
    assert_eq!(conf.client_cert.unwrap().key_file, std::path::Path::new("/key"));
    let password = margay_datastore::Password::File("/password".into());
    assert_eq!(conf.credentials.unwrap().password, password);
    assert_eq!(conf.request_timeout, std::time::Duration::from_secs(1));
    assert_eq!(conf.patience, Some(std::time::Duration::from_secs(15)));
}

#[test]
fn endpoints_alone_say_etcd_as_they_did_in_old_configurations() {
    let etcd = |document: &Value| match parse(document).unwrap().datastore {
        Datastore::Etcd(conf) => conf.endpoints,
        Datastore::Local => panic!("not etcd"),
    };
    let mut by_authority = with("/etcd_authority", json!("10.0.0.1:2379"));

    assert_eq!(
        etcd(&with("/etcd_endpoints", json!("http://10.0.0.1:2379"))),
        ["http://10.0.0.1:2379"]
    );
    assert_eq!(etcd(&by_authority), ["http://10.0.0.1:2379"]);
    by_authority["etcd_endpoints"] = json!("http://10.0.0.2:2379");
    assert_eq!(etcd(&by_authority), ["http://10.0.0.2:2379"]);
}

#[test]
fn what_cannot_be_said_about_etcd_is_an_error_that_shows_no_password() {
    let endpoint = "http://10.0.0.1:2379";
    let claims = [
        (json!({ "datastore_type": "etcdv3" }), "etcd_endpoints is missing"),
        (json!({ "datastore_type": "local", "etcd_endpoints": endpoint }), "datastore_type"),
        (json!({ "datastore_type": "kubernetes", "etcd_endpoints": endpoint }), "datastore_type"),
        (json!({ "datastore_type": "consul" }), "must be local, etcdv3 or kubernetes"),
        (json!({ "etcd_endpoints": "https://10.0.0.1:2379" }), "etcd_endpoints"),
        (json!({ "etcd_endpoints": "http://u:secret@10.0.0.1:2379" }), "keys of their own"),
        (json!({ "etcd_endpoints": endpoint, "etcd_password": ["secret"] }), "etcd_password = …"),
        (json!({ "etcd_endpoints": endpoint, "etcd_password": "secret" }), "etcd_username"),
        (json!({ "etcd_endpoints": endpoint, "etcd_username": "u" }), "etcd_password is missing"),
        (json!({ "etcd_endpoints": endpoint, "etcd_key_file": "/key" }), "etcd_cert_file"),
        (json!({ "etcd_endpoints": endpoint, "etcd_ca_cert_file": "ca" }), "absolute"),
        (json!({ "etcd_endpoints": endpoint, "etcd_prefix": "margay" }), "etcd_prefix"),
        (json!({ "etcd_endpoints": endpoint, "etcd_verb_timeout_ms": 1 }), "etcd_verb_timeout_ms"),
    ];
    for (keys, expected) in claims {
        let mut document = with("/mtu", json!(0));
        for (key, value) in keys.as_object().unwrap() {
            document[key] = value.clone();
        }
        let error = parse(&document).unwrap_err().to_string();
        assert!(error.contains(expected), "{keys}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
