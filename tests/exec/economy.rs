//! What an ADD and a DEL do not do: start a process, or load a program that is loaded already.

use std::process::{Command, Stdio};

use margay_datapath::Origin;
use margay_tests::node::plugin_directory;
use margay_tests::{Node, Pod};
use serde_json::Value;

#[test]
fn add_and_del_start_no_process_and_only_a_nodes_first_add_loads_programs() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (first, second) = (node.sandbox("first"), node.sandbox("second"));

    let first_add = traced(&first, "ADD", &network);
    let programs = node.datapath().program_ids();
    let second_add = traced(&second, "ADD", &network);
    let del = traced(&second, "DEL", &network);

    for (verb, trace) in [("first ADD", &first_add), ("second ADD", &second_add), ("DEL", &del)] {
        let executed: Vec<_> = trace.lines().filter(|line| line.contains("execve")).collect();
        assert_eq!(executed.len(), 1, "{verb}: {executed:#?}");
        assert!(!trace.contains("vfork("), "{verb}: {trace}");
    }
    assert!(loads(&first_add), "the first ADD loads:\n{first_add}");
    assert!(!loads(&second_add), "the second ADD must not load:\n{second_add}");
    assert!(!loads(&del), "a DEL must not load:\n{del}");
    assert!(second_add.contains("BPF_OBJ_GET"), "{second_add}");
    assert_eq!(node.datapath().program_ids(), programs);
    assert_eq!(node.datapath().origin(), Origin::Opened);
}

#[test]
fn an_add_starts_nft_only_where_nat_rules_are_missing() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    let (first, second, third) =
        (node.sandbox("first"), node.sandbox("second"), node.sandbox("third"));

    let first_add = traced(&first, "ADD", &network);
    let second_add = traced(&second, "ADD", &network);
    let del = traced(&second, "DEL", &network);
    node.run(&["nft", "flush", "ruleset"]);
    let repairing = traced(&third, "ADD", &network);

    for (verb, trace, processes) in [
        ("first ADD", &first_add, 2),
        ("second ADD", &second_add, 1),
        ("DEL", &del, 1),
        ("ADD after a flush", &repairing, 2),
    ] {
        // What was looked for in vain does not count.
        let executed: Vec<_> =
            trace.lines().filter(|line| line.contains("execve") && line.ends_with("= 0")).collect();
        assert_eq!(executed.len(), processes, "{verb}: {executed:#?}");
    }
}

fn loads(trace: &str) -> bool {
    trace.contains("BPF_PROG_LOAD") || trace.contains("BPF_MAP_CREATE")
}

/// Executes a verb under `strace` and returns the system calls that start processes or touch BPF.
fn traced(pod: &Pod<'_>, verb: &str, network: &Value) -> String {
    let trace = pod.node().path(&format!("trace-{verb}-{}", pod.container_id()));
    let plugins = plugin_directory();
    let mut child = Command::new("strace")
        .args(["-f", "-e", "trace=execve,execveat,vfork,bpf", "-o"])
        .arg(&trace)
        .arg(plugins.join("margay"))
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", pod.container_id())
        .env("CNI_NETNS", pod.netns_path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &plugins)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start strace");
    let mut stdin = child.stdin.take().expect("stdin");
    std::io::Write::write_all(&mut stdin, network.to_string().as_bytes()).expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("wait for strace");
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
    std::fs::read_to_string(trace).expect("read the trace")
}
