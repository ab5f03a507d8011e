//! `margayctl uninstall`, on a node whose files are below a directory.

use std::fs;
use std::path::{Path, PathBuf};

use margay_tests::Node;
use margay_tests::ctl::Ctl;

#[test]
fn what_was_installed_goes_when_no_pod_is_left() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let root = install(&node);
    let uninstall = ["uninstall", "--root", root.to_str().unwrap(), "--prefix", "/usr"];
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    let refused = ctl.run(&uninstall);

    assert_eq!(refused.code, 1, "{refused:?}");
    let veth = result["interfaces"][0]["name"].as_str().unwrap();
    assert!(refused.stderr.contains("1 pods run on this node"), "{refused:?}");
    assert!(refused.stderr.contains(veth) && refused.stderr.contains("--force"), "{refused:?}");
    assert!(root.join("opt/cni/bin/margay").exists());

    pod.del(&network);
    let done = ctl.text(&uninstall);
    assert!(done.contains("removed"), "{done}");
    for gone in ["opt/cni/bin/margay", "etc/cni/net.d/10-margay.conflist", "usr/lib/margay"] {
        assert!(!root.join(gone).exists(), "{gone} is left");
    }
    let again = ctl.run(&uninstall);
    assert!(again.stderr.contains("nothing was installed with this prefix"), "{again:?}");
}

/// What install.sh would have put there, as far as it matters.
fn install(node: &Node) -> PathBuf {
    let root = node.path("root");
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let own = root.join("usr/lib/margay");
    for folder in [&own, &root.join("opt/cni/bin"), &root.join("etc/cni/net.d")] {
        fs::create_dir_all(folder).unwrap();
    }
    for script in ["uninstall.sh", "paths.sh"] {
        fs::copy(dist.join(script), own.join(script)).unwrap();
    }
    fs::write(root.join("opt/cni/bin/margay"), "").unwrap();
    for place in [root.join("etc/cni/net.d"), own] {
        fs::write(place.join("10-margay.conflist"), "{}").unwrap();
    }
    root
}
