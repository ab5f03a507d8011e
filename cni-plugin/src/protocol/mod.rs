//! The CNI protocol: environment and stdin in, one JSON document out.
//!
//! The types are those of `rscni-types`. Reading is done here, since what a plugin is given must
//! reach a delegated plugin byte for byte, an unreadable `prevResult` must not keep a DEL from
//! cleaning up, and an error must carry the `cniVersion` that the configuration asked for.
//!
//! Invariant: whatever comes in, exactly one JSON document goes out, and never a panic.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use margay_datastore::is_cni_name;
use margay_failpoints as failpoints;
use rscni_types::error::Error as CniError;
use rscni_types::legacy;
use rscni_types::types::{
    CNI_ARGS, CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_PATH, CNIResult,
    CNIResultWithVersion, Cmd, ErrorResult, InterfaceName,
};
use rscni_types::version::{PluginInfo, SpecVersion};
use serde_json::{Map, Value};

use crate::args::CniArgs;
use crate::boot_clock;
use crate::error::Error;

/// The versions of the CNI specification that margay speaks.
pub const VERSIONS: [SpecVersion; 4] = [
    SpecVersion::new(0, 3, 1),
    SpecVersion::new(0, 4, 0),
    SpecVersion::new(1, 0, 0),
    SpecVersion::new(1, 1, 0),
];

/// Longest network configuration that is read, in bytes.
const LONGEST_CONFIG_BYTES: u64 = 16 << 20;

/// A CNI plugin: one method per verb.
pub trait Plugin {
    /// Attaches a container.
    fn add(&self, call: &Call, target: &Target) -> Result<CNIResult, Error>;
    /// Takes away whatever ADD made; content if there is nothing.
    fn del(&self, call: &Call, target: &Target) -> Result<(), Error>;
    /// Verifies that everything is as ADD left it.
    fn check(&self, call: &Call, target: &Target) -> Result<(), Error>;
    /// Removes what belongs to no attachment in the configuration's list.
    fn gc(&self, call: &Call) -> Result<(), Error>;
    /// Whether an ADD could succeed.
    fn status(&self, call: &Call) -> Result<(), Error>;
}

/// What every verb is given.
#[derive(Debug, Clone)]
pub struct Call {
    /// The version that the configuration declares, one of [`VERSIONS`].
    pub version: SpecVersion,
    /// The network configuration, decoded and otherwise unchecked.
    pub config: Map<String, Value>,
    /// The same as it came on stdin, for delegated plugins.
    pub stdin: Vec<u8>,
    /// `CNI_PATH`: where delegated plugins are.
    pub path: Vec<PathBuf>,
    /// When it was taken up, in microseconds on the kernel's boot clock.
    pub began_at_boot_us: u64,
}

/// What ADD, DEL and CHECK are given besides.
#[derive(Debug, Clone)]
pub struct Target {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`; always there but on DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`; empty on DEL if it does not parse, since cleaning up needs none of it.
    pub args: CniArgs,
}

/// A call that is not one of CNI's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Variables that the verb needs are not set.
    #[error("required env variables [{}] missing", .names.join(","))]
    Missing {
        /// Their names.
        names: Vec<&'static str>,
    },
    /// A variable has an unusable value.
    #[error("{name}={value:?}: {reason}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: OsString,
        /// What it should be.
        reason: &'static str,
    },
    /// Stdin cannot be read.
    #[error("cannot read the network configuration from stdin")]
    Read(#[source] std::io::Error),
    /// Stdin is endless.
    #[error("the network configuration is longer than {LONGEST_CONFIG_BYTES} bytes")]
    TooLong,
    /// Stdin is not JSON.
    #[error("the network configuration is not JSON")]
    Decode(#[source] serde_json::Error),
    /// Stdin is JSON, but not an object.
    #[error("the network configuration is not a JSON object")]
    NotAnObject,
    /// `cniVersion` is no version.
    #[error("cniVersion = {value} is not a version such as \"1.1.0\"")]
    MalformedVersion {
        /// The value as JSON.
        value: String,
    },
    /// A version that margay does not speak.
    #[error("cniVersion is \"{version}\", margay supports {}", VERSIONS.map(|version| version.to_string()).join(", "))]
    Version {
        /// As declared; 0.1.0 if it is not.
        version: SpecVersion,
    },
    /// The verb came with a later version.
    #[error("cniVersion \"{version}\" does not have {command}")]
    VersionTooOld {
        /// As declared.
        version: SpecVersion,
        /// `CNI_COMMAND`.
        command: &'static str,
    },
}

/// Serves the one call that this process was started for.
pub fn run(plugin: &dyn Plugin, name: &str) -> ExitCode {
    let environment = Environment::of_process();
    if environment.get(CNI_COMMAND).is_none() {
        let versions = VERSIONS.map(|version| version.to_string()).join(", ");
        eprintln!("CNI plugin {name} v{}", env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {versions}");
        return ExitCode::SUCCESS;
    }
    let mut declared = None;
    let answer = serve(plugin, &environment, configuration_input(), &mut declared);
    let (document, code) = match &answer {
        Ok(document) => (document.clone(), ExitCode::SUCCESS),
        Err(error) => (error_json(declared, error), ExitCode::FAILURE),
    };
    let mut stdout = std::io::stdout().lock();
    let written = failpoints::before(failpoints::Kind::Answer, name)
        .and_then(|()| stdout.write_all(document.as_bytes()))
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Stdin, where a runtime writes the configuration. Somebody who tries the plugin by hand on a
/// terminal is not kept waiting.
fn configuration_input() -> Box<dyn Read> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() { Box::new(std::io::empty()) } else { Box::new(stdin) }
}

/// The document for stdout. `declared` is the configuration's version, as soon as it is known.
fn serve(
    plugin: &dyn Plugin,
    environment: &Environment,
    stdin: impl Read,
    declared: &mut Option<SpecVersion>,
) -> Result<String, Error> {
    let (command, target) = match environment.request() {
        Ok((Cmd::Version, _)) => return Ok(version_json(version_alone(stdin))),
        Ok(request) => request,
        Err(error) => {
            *declared = version_alone(stdin);
            return Err(error);
        }
    };
    let call = call(environment, command, stdin, declared)?;
    match (command, target) {
        (Cmd::Add, Some(target)) => Ok(result_json(call.version, plugin.add(&call, &target)?)),
        (Cmd::Del, Some(target)) => plugin.del(&call, &target).map(|()| String::new()),
        (Cmd::Check, Some(target)) => plugin.check(&call, &target).map(|()| String::new()),
        (Cmd::Gc, _) => plugin.gc(&call).map(|()| String::new()),
        (_, _) => plugin.status(&call).map(|()| String::new()),
    }
}

fn call(
    environment: &Environment,
    command: Cmd,
    stdin: impl Read,
    declared: &mut Option<SpecVersion>,
) -> Result<Call, ProtocolError> {
    // Before the configuration is there: what it says is older.
    let began_at_boot_us = boot_clock::now_us();
    let (bytes, config) = read(stdin)?;
    let version = declared_version(&config)?;
    *declared = Some(version);
    if version.allows(command).is_err() {
        return Err(ProtocolError::VersionTooOld { version, command: command.into() });
    }
    if !VERSIONS.contains(&version) {
        return Err(ProtocolError::Version { version });
    }
    let path = environment.get(CNI_PATH).map(|path| std::env::split_paths(path).collect());
    let path = path.unwrap_or_default();
    Ok(Call { version, config, stdin: bytes, path, began_at_boot_us })
}

/// What stdin holds, as it is and decoded.
fn read(stdin: impl Read) -> Result<(Vec<u8>, Map<String, Value>), ProtocolError> {
    let mut bytes = Vec::new();
    let mut stdin = stdin.take(LONGEST_CONFIG_BYTES + 1);
    stdin.read_to_end(&mut bytes).map_err(ProtocolError::Read)?;
    if bytes.len() as u64 > LONGEST_CONFIG_BYTES {
        return Err(ProtocolError::TooLong);
    }
    match serde_json::from_slice(&bytes).map_err(ProtocolError::Decode)? {
        Value::Object(config) => Ok((bytes, config)),
        _ => Err(ProtocolError::NotAnObject),
    }
}

/// The version that stdin declares, for an answer that needs nothing else of it.
fn version_alone(stdin: impl Read) -> Option<SpecVersion> {
    let (_, config) = read(stdin).ok()?;
    declared_version(&config).ok()
}

/// Absent, `null` and empty mean 0.1.0, the only version older than the key.
fn declared_version(config: &Map<String, Value>) -> Result<SpecVersion, ProtocolError> {
    match config.get("cniVersion").unwrap_or(&Value::Null) {
        Value::Null => Ok(SpecVersion::new(0, 1, 0)),
        Value::String(text) if text.is_empty() => Ok(SpecVersion::new(0, 1, 0)),
        Value::String(text) if text.parse::<SpecVersion>().is_ok() => {
            Ok(text.parse().unwrap_or_default())
        }
        value => Err(ProtocolError::MalformedVersion { value: value.to_string() }),
    }
}

/// The `CNI_*` variables; an empty one is an absent one.
struct Environment(HashMap<&'static str, OsString>);

impl Environment {
    fn of_process() -> Self {
        let names = [CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS, CNI_PATH];
        Self(names.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect())
    }

    fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, ProtocolError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.to_str() {
            Some(text) => Ok(Some(text)),
            None => Err(unusable(name, value, "must be UTF-8")),
        }
    }

    /// The verb, and the attachment that it is about.
    fn request(&self) -> Result<(Cmd, Option<Target>), Error> {
        let command = self.command()?;
        let target = match command {
            Cmd::Add | Cmd::Del | Cmd::Check => Some(self.target(command)?),
            Cmd::Gc | Cmd::Status | Cmd::Version => None,
        };
        Ok((command, target))
    }

    fn command(&self) -> Result<Cmd, ProtocolError> {
        let missing = || ProtocolError::Missing { names: vec![CNI_COMMAND] };
        let text = self.text(CNI_COMMAND)?.ok_or_else(missing)?;
        text.parse().map_err(|_| {
            unusable(CNI_COMMAND, text, "must be ADD, DEL, CHECK, GC, STATUS or VERSION")
        })
    }

    fn target(&self, command: Cmd) -> Result<Target, Error> {
        let needed: &[&'static str] = match command {
            Cmd::Del => &[CNI_CONTAINERID, CNI_IFNAME],
            _ => &[CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME],
        };
        let missing = needed.iter().copied().filter(|name| self.get(name).is_none());
        let names: Vec<_> = missing.collect();
        if !names.is_empty() {
            return Err(ProtocolError::Missing { names }.into());
        }
        let container_id = self.text(CNI_CONTAINERID)?.unwrap_or_default().to_owned();
        if !is_cni_name(&container_id) {
            let reason = "must start with a letter or digit, then letters, digits, _, . and -";
            return Err(unusable(CNI_CONTAINERID, container_id, reason).into());
        }
        let ifname = self.text(CNI_IFNAME)?.unwrap_or_default().to_owned();
        if InterfaceName::try_from(ifname.clone()).is_err() || ifname.contains(char::is_control) {
            let reason = "must be 1 to 15 bytes without space, control characters, / and :, and \
                          not . or ..";
            return Err(unusable(CNI_IFNAME, ifname, reason).into());
        }
        let args = match CniArgs::parse(self.text(CNI_ARGS)?.unwrap_or_default()) {
            Err(_) if command == Cmd::Del => CniArgs::default(),
            parsed => parsed?,
        };
        Ok(Target { container_id, ifname, netns: self.get(CNI_NETNS).map(PathBuf::from), args })
    }
}

fn unusable(name: &'static str, value: impl Into<OsString>, reason: &'static str) -> ProtocolError {
    ProtocolError::Environment { name, value: value.into(), reason }
}

/// The answer to VERSION repeats the version on stdin, as the specification has it; the newest where
/// there is none that margay speaks.
fn version_json(asked: Option<SpecVersion>) -> String {
    let version = asked.filter(|version| VERSIONS.contains(version)).unwrap_or_default();
    let info = PluginInfo::new(version, VERSIONS.to_vec());
    serde_json::json!(info).to_string()
}

/// The result in the layout of the version that was asked for.
fn result_json(version: SpecVersion, result: CNIResult) -> String {
    let document = if version.is_legacy() {
        serde_json::to_value(legacy::CNIResult::new(version, result))
    } else {
        serde_json::to_value(CNIResultWithVersion::new(version, result))
    };
    document.unwrap_or_default().to_string()
}

/// The specification's error document.
fn error_json(declared: Option<SpecVersion>, error: &Error) -> String {
    let version = declared.filter(|version| VERSIONS.contains(version)).unwrap_or_default();
    serde_json::json!(ErrorResult::new(version, &CniError::from(error))).to_string()
}
