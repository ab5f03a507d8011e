//! Loading and opening.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use std::{env, fs, thread};

use aya::maps::MapData;
use aya::programs::ProgramInfo;
use aya_obj::Object;
use margay_abi::{PodInfo, map_name};

use super::node::{Node, on_a_node};
use crate::object::Build;
use crate::{
    Datapath, DatapathError, LoadError, LoadOptions, MapError, Origin, Program, ensure_bpffs, probe,
};

const POD: PodInfo =
    PodInfo { ifindex: 7, mtu: 1500, flags: 0, pod_mac: [2; 6], host_mac: [0xee; 6] };

#[test]
fn nothing_is_open_below_an_empty_root() {
    on_a_node(|node| assert!(node.open().is_none()));
}

#[test]
fn the_second_caller_opens_what_the_first_loaded() {
    on_a_node(|node| {
        let first = node.open_or_load();
        let second = node.open_or_load();

        assert_eq!(first.origin(), Origin::Loaded);
        assert_eq!(second.origin(), Origin::Opened);
        assert_eq!(first.program_ids(), second.program_ids());
    });
}

#[test]
fn of_eight_racing_callers_one_loads() {
    on_a_node(|node| {
        let all: Vec<Datapath> = thread::scope(|scope| {
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(|| node.open_or_load())).collect();
            callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
        });

        assert_eq!(all.iter().filter(|one| one.origin() == Origin::Loaded).count(), 1);
        assert!(all.iter().all(|one| one.program_ids() == all[0].program_ids()));
    });
}

#[test]
fn a_load_that_was_cut_short_is_completed() {
    on_a_node(|node| {
        drop(node.open_or_load());
        // As after a kill between the first pins: some maps, and programs not yet in their place.
        fs::remove_file(node.pins().join("maps/stats")).expect("unpin a map");
        let programs = node.pins().join("progs").join(node.build.id);
        let unfinished = node.pins().join(format!("progs/{}-unfinished", node.build.id));
        fs::rename(&programs, &unfinished).expect("take the programs away");
        fs::remove_file(unfinished.join("to_pod")).expect("unpin a program");
        assert!(node.open().is_none());

        let datapath = node.open_or_load();

        assert_eq!(datapath.origin(), Origin::Loaded);
        assert!(node.open().is_some());
        assert!(!unfinished.exists());
    });
}

#[test]
fn a_killed_loader_leaves_what_the_next_completes() {
    on_a_node(|node| {
        let started = Instant::now();
        assert!(start_loader(node).wait().expect("wait for the loader").success());
        let undisturbed = started.elapsed();
        assert_eq!(node.open_or_load().origin(), Origin::Opened);

        for delay in (0..KILLS).map(|kill| undisturbed * kill / KILLS) {
            fs::remove_dir_all(node.root()).expect("unpin everything");
            let mut loader = start_loader(node);
            thread::sleep(delay);
            loader.kill().expect("kill the loader");
            loader.wait().expect("wait for the loader");

            let datapath = node.open_or_load();
            datapath.pods().insert(IpAddr::from([10, 0, 0, 1]), &POD).expect("write a map");
        }
    });
}

/// Loaders that are killed, at moments spread evenly over the time that one takes.
const KILLS: u32 = 12;

fn start_loader(node: &Node) -> std::process::Child {
    Command::new(env::current_exe().expect("this test's executable"))
        .args(["tests::load::loads_in_a_process_of_its_own", "--exact", "--ignored", "-q"])
        .env("MARGAY_TEST_ROOT", node.root())
        .env("MARGAY_TEST_LOCK_DIR", &node.options.lock_dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start a loader")
}

#[test]
#[ignore = "the process that a_killed_loader_leaves_what_the_next_completes starts"]
fn loads_in_a_process_of_its_own() {
    let Some(root) = env::var_os("MARGAY_TEST_ROOT").map(PathBuf::from) else { return };
    let lock_dir = env::var_os("MARGAY_TEST_LOCK_DIR").expect("the lock folder");
    Datapath::open_or_load(&root, &LoadOptions::new(lock_dir)).expect("open or load");
}

#[test]
fn the_programs_ask_for_no_type_of_the_kernel() {
    on_a_node(|node| {
        let object = Object::parse(node.build.object).expect("an object");

        assert!(!object.has_btf_relocations(), "they are not done: see `bound`");
    });
}

#[test]
fn loaded_programs_come_with_their_types() {
    on_a_node(|node| {
        drop(node.open_or_load());

        for program in Program::OF_POD {
            let pin = node.pins().join("progs").join(node.build.id).join(program.name());
            let info = ProgramInfo::from_pin(pin).expect("open a program");
            assert!(info.btf_id().is_some(), "{}", program.name());
            assert_eq!(info.name_as_str(), Some(program.name()));
        }
    });
}

#[test]
fn what_the_verifier_has_against_a_program_is_in_the_error() {
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    on_a_node(|node| {
        let mut object = node.build.object.to_vec();
        // Behind the programs come their types, in which the same bytes may be.
        let types = object.windows(4).position(|bytes| bytes == [0x9f, 0xeb, 1, 0]).expect("BTF");
        for instruction in object[..types].chunks_exact_mut(EXIT.len()) {
            if instruction == EXIT {
                instruction[0] = 0xff;
            }
        }
        let build = Build { id: "broken", object: object.leak() };

        let result = Datapath::open_or_load_build(&node.root(), &node.options, build);

        match result {
            Err(DatapathError::Load(LoadError::Program { source, .. })) => {
                assert!(source.to_string().contains("not an exit"), "{source}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!node.pins().join("progs/broken").exists());
    });
}

#[test]
fn another_build_keeps_the_maps_and_their_entries() {
    on_a_node(|node| {
        let address = IpAddr::from([10, 0, 0, 1]);
        let first = node.open_or_load();
        first.pods().insert(address, &POD).expect("insert");

        let next = node.open_or_load_next_build();

        assert_eq!(next.origin(), Origin::Loaded);
        assert_ne!(next.program_ids(), first.program_ids());
        assert_eq!(next.pods().get(address).expect("get"), Some(POD));
        assert_eq!(node.open().expect("the first build").program_ids(), first.program_ids());
    });
}

#[test]
fn a_pinned_map_keeps_the_size_it_was_created_with() {
    on_a_node(|node| {
        drop(node.open_or_load());
        let larger = LoadOptions { max_pods: 1000, ..node.options.clone() };

        Datapath::open_or_load_build(&node.root(), &larger, node.next_build()).expect("load");

        let map = MapData::from_pin(node.pins().join("maps/pods_v4")).expect("open a map");
        assert_eq!(map.info().expect("look at a map").max_entries(), node.options.max_pods);
    });
}

#[test]
fn a_pinned_map_of_another_layout_is_an_error_that_names_it() {
    on_a_node(|node| {
        drop(node.open_or_load());
        let maps = node.pins().join("maps");
        fs::rename(maps.join("pods_v6"), maps.join("pods_v4")).expect("put a map in its place");

        let result = Datapath::open_or_load_build(&node.root(), &node.options, node.next_build());

        match result {
            Err(DatapathError::Load(LoadError::Map(MapError::Layout {
                map: map_name::PODS_V4,
                property: "key size",
                found: 16,
                expected: 4,
            }))) => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn programs_of_maps_that_were_unpinned_are_loaded_again() {
    on_a_node(|node| {
        let first = node.open_or_load();
        fs::remove_dir_all(node.pins().join("maps")).expect("unpin the maps");
        drop(node.open_or_load_next_build());
        assert!(node.open().is_none(), "its programs use maps that nobody can reach");

        let again = node.open_or_load();

        assert_eq!(again.origin(), Origin::Loaded);
        assert_ne!(again.program_ids(), first.program_ids());
    });
}

#[test]
fn pins_of_another_abi_version_are_left_alone() {
    on_a_node(|node| {
        drop(node.open_or_load());
        fs::rename(node.pins(), node.root().join("0")).expect("age the pins");
        let before = node.tree(&node.root().join("0"));

        let datapath = node.open_or_load();

        assert_eq!(datapath.origin(), Origin::Loaded);
        assert_eq!(node.tree(&node.root().join("0")), before);
    });
}

#[test]
fn a_root_that_is_not_on_bpffs_is_an_error_that_names_it() {
    on_a_node(|node| {
        let root = node.options.lock_dir.join("margay");

        let error = Datapath::open_or_load(&root, &node.options).expect_err("load");

        assert!(error.to_string().contains(&root.display().to_string()), "{error}");
        assert!(probe(&root).is_err());
    });
}

#[test]
fn a_root_that_is_no_path_is_an_error() {
    on_a_node(|node| {
        let root = PathBuf::from("/sys/fs/bpf/mar\0gay");

        Datapath::open(&root).expect_err("open");
        Datapath::open_or_load(&root, &node.options).expect_err("load");
        probe(&root).expect_err("probe");
        ensure_bpffs(&root).expect_err("ensure a BPF file system");
        Datapath::remove_links(&root, "mgytest").expect_err("remove links");
    });
}

#[test]
fn eight_racing_callers_mount_the_file_system_once() {
    on_a_node(|_| {
        let root = PathBuf::from("/sys/fs/bpf/margay");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| ensure_bpffs(&root).expect("ensure a BPF file system"));
            }
        });

        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("read the mounts");
        assert_eq!(mounts.lines().filter(|line| line.contains(" /sys/fs/bpf ")).count(), 1);
    });
}

#[test]
fn a_node_that_can_do_it_passes_the_probe() {
    on_a_node(|node| probe(&node.root()).expect("probe"));
}
