//! Another plugin as the IPAM, run by the CNI rules: found in `CNI_PATH`, given the attachment in the
//! environment and the same bytes on stdin, and believed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use margay_datastore::Attachment;
use margay_failpoints as failpoints;
use rscni_types::types::{CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME, Cmd};
use serde_json::{Value, json};

use super::{IpamError, IpamResult};
use crate::config::VALID_ATTACHMENTS_KEYS;
use crate::protocol::Call;

/// Most of a plugin's output that an error shows, in characters.
const SHOWN_CHARS: usize = 500;

/// An IPAM plugin that is a process of its own.
pub struct Delegated<'a> {
    /// `ipam.type`.
    pub(super) plugin: &'a str,
    pub(super) call: &'a Call,
}

impl Delegated<'_> {
    pub(super) fn add(&self, attachment: &Attachment) -> Result<IpamResult, IpamError> {
        read(&self.run(Cmd::Add, Some(attachment))?)
            .map_err(|reason| IpamError::Result { plugin: self.plugin.to_owned(), reason })
    }

    pub(super) fn del(&self, attachment: &Attachment) -> Result<(), IpamError> {
        self.run(Cmd::Del, Some(attachment)).map(drop)
    }

    pub(super) fn check(&self, attachment: &Attachment) -> Result<(), IpamError> {
        self.run(Cmd::Check, Some(attachment)).map(drop)
    }

    pub(super) fn gc(&self, valid: &[Attachment]) -> Result<(), IpamError> {
        self.run_with(&self.configuration(valid), Cmd::Gc, None).map(drop)
    }

    /// The configuration with the valid attachments on its lists that the runtime does not name;
    /// byte for byte where it names them all.
    fn configuration(&self, valid: &[Attachment]) -> Vec<u8> {
        let mut config = self.call.config.clone();
        let mut is_changed = false;
        for list in VALID_ATTACHMENTS_KEYS {
            let Some(list) = config.get_mut(list) else { continue };
            let mut entries = list.as_array().cloned().unwrap_or_default();
            for attachment in valid {
                let (container_id, ifname) = (attachment.container_id(), attachment.ifname());
                let is_it = |entry: &Value| {
                    entry["containerID"] == container_id && entry["ifname"] == ifname
                };
                if !entries.iter().any(is_it) {
                    entries.push(json!({ "containerID": container_id, "ifname": ifname }));
                    is_changed = true;
                }
            }
            *list = entries.into();
        }
        if is_changed { Value::from(config).to_string().into() } else { self.call.stdin.clone() }
    }

    pub(super) fn status(&self) -> Result<(), IpamError> {
        self.run(Cmd::Status, None).map(drop)
    }

    /// Runs the plugin. The attachment is named by the environment: on a GC, that of the call itself
    /// names none.
    fn run(&self, verb: Cmd, attachment: Option<&Attachment>) -> Result<Vec<u8>, IpamError> {
        self.run_with(&self.call.stdin, verb, attachment)
    }

    fn run_with(
        &self,
        configuration: &[u8],
        verb: Cmd,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<u8>, IpamError> {
        let executable = self.find()?;
        let output = self
            .exchange(&executable, configuration, verb, attachment)
            .map_err(|source| IpamError::Run { path: executable, source })?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failure(&output)) }
    }

    fn find(&self) -> Result<PathBuf, IpamError> {
        let directories = self.call.path.iter().filter(|path| !path.as_os_str().is_empty());
        directories
            .map(|directory| directory.join(self.plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| IpamError::NotFound {
                plugin: self.plugin.to_owned(),
                path: std::env::join_paths(&self.call.path)
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            })
    }

    /// Stdin is written by a thread of its own: a plugin may write before it has read everything.
    fn exchange(
        &self,
        executable: &PathBuf,
        configuration: &[u8],
        verb: Cmd,
        attachment: Option<&Attachment>,
    ) -> std::io::Result<Output> {
        failpoints::before(failpoints::Kind::Plugin, format_args!("{} {verb:?}", self.plugin))?;
        let named = attachment.map(|attachment| {
            [(CNI_CONTAINERID, attachment.container_id()), (CNI_IFNAME, attachment.ifname())]
        });
        let mut child = Command::new(executable)
            .env(CNI_COMMAND, <&str>::from(verb))
            .envs(named.into_iter().flatten())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A plugin that does not read its configuration will say what is wrong itself.
                stdin.map(|mut stdin| stdin.write_all(configuration))
            });
            child.wait_with_output()
        })
        .inspect(hand_on_stderr)
    }

    fn failure(&self, output: &Output) -> IpamError {
        let plugin = self.plugin.to_owned();
        let document = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        let code = document.get("code").and_then(Value::as_u64);
        if let Some(code) = code.and_then(|code| u32::try_from(code).ok()) {
            let text = |key| document.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
            return IpamError::Reported {
                plugin,
                code,
                msg: text("msg"),
                details: text("details"),
            };
        }
        let written = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let output_text: String =
            String::from_utf8_lossy(written).trim().chars().take(SHOWN_CHARS).collect();
        IpamError::Failed { plugin, status: output.status, output: output_text }
    }
}

/// What a plugin says on stderr goes to the runtime's log with what margay says. Nothing hangs on it.
fn hand_on_stderr(output: &Output) {
    _ = std::io::stderr().write_all(&output.stderr);
}

/// Reads what a plugin wrote to stdout; the error says what is wrong with it.
fn read(stdout: &[u8]) -> Result<IpamResult, String> {
    match serde_json::from_slice(stdout) {
        Ok(Value::Object(document)) => {
            IpamResult::from_map(&document).map_err(|error| error.to_string())
        }
        Ok(_) => Err("not a JSON object".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use rscni_types::error::Error as CniError;
    use serde_json::json;

    use super::*;
    use crate::error::Error;

    /// A call whose plugins are ordinary programs: `cat` answers with its configuration.
    fn call(stdin: Value) -> Call {
        Call {
            version: "1.0.0".parse().unwrap(),
            config: serde_json::Map::new(),
            stdin: stdin.to_string().into_bytes(),
            path: ["", "/nowhere", "/bin"].map(PathBuf::from).into(),
            began_at_boot_us: 0,
        }
    }

    fn attachment() -> Attachment {
        Attachment::new("pods", "c1", "eth0").unwrap()
    }

    fn failed(stdout: &str, stderr: &str) -> IpamError {
        let call = call(Value::Null);
        let status = ExitStatus::from_raw(1 << 8);
        let output = Output { status, stdout: stdout.into(), stderr: stderr.into() };
        Delegated { plugin: "host-local", call: &call }.failure(&output)
    }

    #[test]
    fn a_plugin_gets_the_configuration_byte_for_byte_however_long() {
        let noise = "x".repeat(1 << 20);
        let call = call(json!({ "ips": [{ "address": "10.0.0.5/24" }], "noise": noise }));
        let delegated = Delegated { plugin: "cat", call: &call };

        assert_eq!(delegated.run(Cmd::Add, None).unwrap(), call.stdin);
        assert_eq!(delegated.add(&attachment()).unwrap().ips.len(), 1);
    }

    #[test]
    fn a_plugin_that_is_nowhere_is_named_with_the_path() {
        let call = call(Value::Null);

        let error = Delegated { plugin: "no-such", call: &call }.del(&attachment()).unwrap_err();

        assert_eq!(
            error.to_string(),
            r#"IPAM plugin "no-such" is not in CNI_PATH=":/nowhere:/bin""#
        );
    }

    #[test]
    fn a_reported_error_keeps_its_code() {
        let document =
            json!({ "cniVersion": "1.0.0", "code": 11, "msg": "busy", "details": "later" });

        let error = Error::from(failed(&document.to_string(), ""));

        let expected = CniError::Custom(11, "IPAM plugin host-local: busy".into(), "later".into());
        assert_eq!(CniError::from(&error), expected);
        assert_eq!(error.to_string(), "IPAM plugin host-local: busy; later");
    }

    #[test]
    fn a_plugin_that_fails_without_a_document_is_quoted() {
        let error = failed("", "panic: oh no\n").to_string();
        assert_eq!(error, "IPAM plugin host-local failed (exit status: 1): panic: oh no");

        let call = call(Value::Null);
        let error = Delegated { plugin: "false", call: &call }.status().unwrap_err();
        assert!(matches!(error, IpamError::Failed { .. }), "{error}");
    }

    #[test]
    fn a_result_that_cannot_be_read_names_plugin_and_field() {
        let call = call(json!({ "ips": [{ "address": 7 }] }));

        let outcome = Delegated { plugin: "cat", call: &call }.add(&attachment());

        let error = outcome.unwrap_err().to_string();
        assert_eq!(error, "IPAM plugin cat: result: ips[0].address = 7: must be a string");
    }

    #[test]
    fn no_truncation_of_a_result_makes_it_panic() {
        let whole = json!({
            "cniVersion": "0.4.0",
            "ips": [{ "version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400 }],
            "dns": { "nameservers": ["10.1.0.1"], "search": ["é"] },
        })
        .to_string();
        assert!(read(whole.as_bytes()).is_ok());
        for end in 0..whole.len() {
            assert!(read(&whole.as_bytes()[..end]).is_err(), "accepted when cut at {end}");
        }
    }
}
