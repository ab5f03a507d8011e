//! The records of nodes that there are not, written by what writes those of nodes that there are.
//!
//! Every node writes into a store in memory, where only what it has to respect of the others is, and
//! what it wrote is copied to etcd. So etcd has every record as margay leaves it, and not the history of
//! some ten versions of each block, which nobody would wait for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use margay::ipam::boot_id;
use margay::naming;
use margay_agent::node::Registrar;
use margay_agent::underlay::Underlay;
use margay_datastore::testing::Memory;
use margay_datastore::{
    AssignRequest, Attachment, Backend, Bandwidth, Endpoint, EndpointState, Heartbeat, Ipam,
    PodRef, Pool, Store,
};
use margay_tests::cluster::Cluster;

/// What a node has to respect of others: the configuration's pools, and who has which block.
const SHARED: [&str; 2] = ["affinities/", "pools/"];

/// Writers at once. etcd syncs what comes together in one go.
const WRITERS: usize = 16;

type Key = String;
type Value = Vec<u8>;

/// Writes the records of these nodes, with so many pods each.
pub(super) fn fill(cluster: &Cluster, pools: &[Pool], nodes: Range<u16>, pods: u16) -> Result<()> {
    let mut shared = BTreeMap::new();
    for prefix in SHARED {
        let listed = cluster.store().backend().list(prefix, None)?;
        shared.extend(listed.into_iter().map(|versioned| (versioned.key, versioned.value)));
    }
    let (send, receive) = sync_channel(1_000);
    let receive = Mutex::new(receive);
    thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITERS).map(|_| scope.spawn(|| copy(&cluster.store(), &receive))).collect();
        let drafted = nodes.map(|index| draft(&mut shared, pools, index, pods, &send));
        let drafted: Result<()> = drafted.collect();
        drop(send);
        for writer in writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        drafted
    })
}

/// The name of a node that there is not.
pub(super) fn node_name(index: u16) -> String {
    format!("node-{index:04}.cluster.example")
}

/// Assigns addresses of both families to a pod, as an ADD does, and writes its endpoint.
pub(super) fn make_pod(store: &Store, pools: &[Pool], node: &str, pod: &str) -> Result<Endpoint> {
    let boot_id = boot_id()?;
    let request = assignment(pools, pod)?;
    let ips = Ipam::new(store, node, &boot_id).assign(&request)?;
    let endpoint = Endpoint {
        host_veth: naming::host_veth(&request.attachment),
        attachment: request.attachment,
        node: node.to_owned(),
        pod: request.pod,
        pod_mac: [0x02, 0, 0, 0xaa, 0xbb, 0xcc],
        host_mac: [0xee; 6],
        mtu: 1450,
        ips: ips.into_iter().map(Into::into).collect(),
        netns: request.netns.unwrap_or_default(),
        netns_inode: Some(4_026_532_000),
        boot_id,
        labels: BTreeMap::new(),
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        dataplane: "ebpf".to_owned(),
        attach: Some("clsact".to_owned()),
        answer_any_arp: false,
        created_at: 1_700_000_000,
        ready_at_boot_us: 1_000_000,
        state: EndpointState::Ready,
    };
    store.put_endpoint(&endpoint)?;
    Ok(endpoint)
}

/// What a pod asks for whose runtime names things as containerd and Kubernetes do.
pub(super) fn assignment(pools: &[Pool], pod: &str) -> Result<AssignRequest> {
    Ok(AssignRequest {
        attachment: Attachment::new("podnet", format!("{pod:0>64}"), "eth0")?,
        pod: Some(PodRef {
            namespace: "default".into(),
            name: format!("web-7d4b9c6f5-{pod}"),
            uid: Some("8f0a4d52-9c1b-4b0e-8f3c-0a1b2c3d4e5f".into()),
        }),
        netns: Some(format!("/var/run/netns/cni-8f0a4d52-9c1b-4b0e-8f3c-{pod:0>12}")),
        pools: pools.to_vec(),
        ipv4: true,
        ipv6: true,
        requested: Vec::new(),
        strict_affinity: false,
    })
}

/// A node's registration and its pods.
fn draft(
    shared: &mut BTreeMap<Key, Value>,
    pools: &[Pool],
    index: u16,
    pods: u16,
    send: &SyncSender<(Key, Value)>,
) -> Result<()> {
    let memory = Memory::new();
    for (key, value) in &*shared {
        memory.create(key, value)?;
    }
    let (store, node) = (Store::new(memory), node_name(index));
    // On another subnet than the nodes that there are.
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + u32::from(index));
    let addresses = vec![format!("{address}/16").parse()?, format!("fd98::{index:x}/64").parse()?];
    let underlay = Underlay { addresses, mtu: 1500 };
    Registrar::new(store.clone(), &node).register(&underlay, pools)?;
    store.put_heartbeat(&Heartbeat { node: node.clone(), at: 1_700_000_000 })?;
    for pod in 0..pods {
        make_pod(&store, pools, &node, &format!("{index}x{pod}"))?;
    }
    for written in store.backend().list("", None)? {
        if shared.contains_key(&written.key) {
            continue;
        }
        if SHARED.iter().any(|prefix| written.key.starts_with(prefix)) {
            shared.insert(written.key.clone(), written.value.clone());
        }
        send.send((written.key, written.value)).context("the writers have ended")?;
    }
    Ok(())
}

fn copy(store: &Store, records: &Mutex<Receiver<(Key, Value)>>) -> Result<()> {
    loop {
        let next = records.lock().map_err(|_| anyhow!("a writer panicked"))?.recv();
        let Ok((key, value)) = next else { return Ok(()) };
        store.backend().create(&key, &value)?;
    }
}
