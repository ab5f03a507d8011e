//! Embeds the kernel half in this crate.
//!
//! Invariant: what is embedded was built from the sources beside it. A release build without such
//! an object fails; any other build embeds nothing and says so, so that clippy, rustdoc and unit
//! tests work on a machine that cannot build BPF. It must not build the object itself:
//! `cargo xtask build-ebpf` is the one builder.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use margay_fingerprint::{INPUTS, OBJECT, STAMP, sources};
use sha2::{Digest, Sha256};

/// Hex digits of the object's SHA-256 that name a build in the pin path.
const BUILD_ID_DIGITS: usize = 12;

fn main() {
    let workspace = workspace_root();
    watch(&workspace);

    let object = match fresh_object(&workspace) {
        Ok(object) => object,
        Err(reason) if env::var("PROFILE").as_deref() == Ok("release") => {
            panic!("{reason}: run `cargo xtask build-ebpf`, or `cargo xtask build` for all of it")
        }
        Err(reason) => {
            println!("cargo:warning={reason}: built without it; run `cargo xtask build-ebpf`");
            Vec::new()
        }
    };
    embed(&object);
}

fn workspace_root() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    manifest.parent().expect("this crate is a folder of the workspace").to_owned()
}

/// The object, or why there is none that may be embedded.
fn fresh_object(workspace: &Path) -> Result<Vec<u8>, String> {
    let read_stamp = fs::read_to_string(workspace.join(STAMP));
    let stamp = match read_stamp {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("the BPF object {OBJECT} is missing"));
        }
        other => other.map_err(|error| format!("read {STAMP}: {error}"))?,
    };
    let digest = sources(workspace).map_err(|error| format!("digest the BPF sources: {error}"))?;
    if stamp.trim() != digest {
        return Err(format!("the BPF object {OBJECT} is older than its sources"));
    }
    fs::read(workspace.join(OBJECT)).map_err(|error| format!("read {OBJECT}: {error}"))
}

/// Writes `object.rs`, which `src/object.rs` includes.
fn embed(object: &[u8]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let copy = out.join("margay.o");
    fs::write(&copy, object).expect("write to OUT_DIR");

    let mut build_id: String = Sha256::digest(object).iter().map(|b| format!("{b:02x}")).collect();
    build_id.truncate(BUILD_ID_DIGITS);
    let rust = format!(
        "const BUILD_ID: &str = {build_id:?};\n\
         static OBJECT: &[u8] = aya::include_bytes_aligned!({:?});\n",
        copy.display().to_string(),
    );
    fs::write(out.join("object.rs"), rust).expect("write to OUT_DIR");
}

/// Cargo runs a script again on every build as long as a watched file is missing, and compiles all
/// that depends on it; so without an object the folder it will appear in is watched.
fn watch(workspace: &Path) {
    let stamp = workspace.join(STAMP);
    let object = workspace.join(OBJECT);
    if stamp.exists() && object.exists() {
        println!("cargo:rerun-if-changed={}", stamp.display());
        println!("cargo:rerun-if-changed={}", object.display());
    } else if let Some(folder) = object.parent() {
        fs::create_dir_all(folder).expect("create the folder of the BPF object");
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    for input in INPUTS.iter().map(|input| workspace.join(input)).filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", input.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
}
