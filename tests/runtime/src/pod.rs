//! A pod as kubelet has it made: a sandbox, and a container in it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use margay::netns::Netns;
use margay_datastore::Attachment;
use margay_tests::traffic::Place;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Status;

use crate::containerd::Containerd;
use crate::cri::{
    ContainerConfig, ContainerId, ContainerMetadata, CreateContainerRequest, Empty,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxPodSandboxConfig, PodSandboxConfig,
    PodSandboxId, PodSandboxMetadata, PodSandboxStatusRequest, PodSandboxStatusResponse,
    PortMapping, READY, RunPodSandboxRequest,
};
use crate::image;
use crate::machine::wait_until;

/// What runs in every image of the tests.
const BUSYBOX: &str = "/bin/busybox";

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    attempt: u32,
    port_mappings: Vec<PortMapping>,
    annotations: HashMap<String, String>,
}

impl PodSpec {
    /// A pod of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            attempt: 0,
            port_mappings: Vec::new(),
            annotations: HashMap::new(),
        }
    }

    /// The how-manieth sandbox of the pod it is: kubelet counts, and so may make one before it has
    /// removed the one before.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// A host port that leads to a port of the pod.
    #[must_use]
    pub fn host_port(mut self, protocol: i32, host_port: u16, container_port: u16) -> Self {
        let (host_port, container_port) = (host_port.into(), container_port.into());
        self.port_mappings.push(PortMapping { protocol, container_port, host_port });
        self
    }

    /// An annotation, as kubelet hands on those of the pod.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// A pod whose sandbox is there.
#[derive(Debug)]
pub struct Pod<'containerd> {
    containerd: &'containerd Containerd<'containerd>,
    config: PodSandboxConfig,
    sandbox_id: String,
    ips: Vec<IpAddr>,
    /// Path of its namespace, which nothing here keeps alive.
    netns: PathBuf,
}

impl Containerd<'_> {
    /// Has a sandbox made.
    ///
    /// # Errors
    /// When containerd refuses.
    ///
    /// # Panics
    /// When it has no addresses.
    pub fn run(&self, spec: &PodSpec) -> Result<Pod<'_>, Status> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: spec.name.clone(),
                uid: format!("uid-of-{}", spec.name),
                namespace: "default".to_owned(),
                attempt: spec.attempt,
            }),
            hostname: spec.name.clone(),
            port_mappings: spec.port_mappings.clone(),
            annotations: spec.annotations.clone(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.cgroup_parent() }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: PodSandboxId = self.cri().runtime("RunPodSandbox", request)?;
        let sandbox_id = answer.pod_sandbox_id;
        let (ips, netns) = (Vec::new(), PathBuf::new());
        let mut pod = Pod { containerd: self, config, sandbox_id, ips, netns };
        pod.ips = pod.status_ips();
        pod.netns = pod.netns_path();
        Ok(pod)
    }
}

impl Pod<'_> {
    /// Its address of a family, as containerd gave it when the sandbox was made.
    ///
    /// # Panics
    /// When it has none of the family.
    #[must_use]
    pub fn ip(&self, ipv4: bool) -> IpAddr {
        let of_family = self.ips.iter().find(|ip| ip.is_ipv4() == ipv4);
        *of_family.unwrap_or_else(|| panic!("no such address in {:?}", self.ips))
    }

    /// All of its addresses.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its attachment to the network.
    ///
    /// # Panics
    /// When the sandbox's ID is not one that CNI allows.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment::new("podnet", &self.sandbox_id, "eth0").expect("attachment")
    }

    /// The addresses that PodSandboxStatus shows.
    ///
    /// # Panics
    /// When it shows none.
    #[must_use]
    pub fn status_ips(&self) -> Vec<IpAddr> {
        let network = self.status().status.and_then(|status| status.network).expect("network");
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        [network.ip].into_iter().chain(more).map(|ip| ip.parse().expect("an address")).collect()
    }

    /// Whether PodSandboxStatus says that it is ready.
    ///
    /// # Panics
    /// When containerd does not know it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status().status.expect("status").state == READY
    }

    /// Starts a container in it that runs an applet of busybox.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_container(&self, command: &[&str]) -> Container<'_> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".to_owned() }),
                image: Some(ImageSpec { image: image::NAME.to_owned() }),
                command: applet(command),
            }),
            sandbox_config: Some(self.config.clone()),
        };
        let container: ContainerId = self.call("CreateContainer", request).expect("create");
        let _: Empty = self.call("StartContainer", container.clone()).expect("start");
        Container { pod: self, id: container.container_id }
    }

    /// Stops it, as kubelet does with a pod that has to go.
    ///
    /// # Errors
    /// When containerd cannot.
    pub fn stop(&self) -> Result<(), Status> {
        let _: Empty = self.call("StopPodSandbox", self.id())?;
        Ok(())
    }

    /// Removes it. containerd stops it first if it runs.
    ///
    /// # Errors
    /// When containerd cannot.
    pub fn remove(&self) -> Result<(), Status> {
        let _: Empty = self.call("RemovePodSandbox", self.id())?;
        Ok(())
    }

    /// Kills the process of the sandbox, as running out of memory does. The sandbox is no longer
    /// ready then, and its namespace stays until it is stopped.
    ///
    /// # Panics
    /// When containerd does not notice.
    pub fn kill(&self) {
        let pid = self.info()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw).expect("process of the sandbox");
        kill_process(pid, Signal::KILL).expect("kill a sandbox");
        wait_until("the sandbox is no longer ready", || (!self.is_ready()).then_some(()));
    }

    fn id(&self) -> PodSandboxId {
        PodSandboxId { pod_sandbox_id: self.sandbox_id.clone() }
    }

    fn status(&self) -> PodSandboxStatusResponse {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: self.sandbox_id.clone(), verbose: true };
        self.call("PodSandboxStatus", request).expect("status of a sandbox")
    }

    /// What containerd gives away of a sandbox beyond the interface: process and configuration.
    fn info(&self) -> Value {
        let status = self.status();
        serde_json::from_str(&status.info["info"]).expect("JSON")
    }

    fn netns_path(&self) -> PathBuf {
        let info = self.info();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("list");
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network");
        network.and_then(|network| network["path"].as_str()).expect("a path").into()
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.containerd.cri().runtime(method, request)
    }
}

impl Place for Pod<'_> {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = Netns::open(&self.netns).expect("open a namespace");
        netns.run(work).expect("enter a namespace")
    }
}

/// A container that runs.
#[derive(Debug)]
pub struct Container<'pod> {
    pod: &'pod Pod<'pod>,
    id: String,
}

impl Container<'_> {
    /// Executes an applet of busybox in it and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn exec(&self, command: &[&str]) -> String {
        let answer = self.try_exec(command);
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The same, again and again until it succeeds.
    ///
    /// # Panics
    /// When it does not.
    pub fn exec_until(&self, command: &[&str]) -> String {
        wait_until(&format!("{command:?} succeeds"), || self.try_exec(command).ok())
    }

    /// Executes an applet that may fail; then with what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0.
    ///
    /// # Panics
    /// When it cannot be executed.
    pub fn try_exec(&self, command: &[&str]) -> Result<String, String> {
        let request =
            ExecSyncRequest { container_id: self.id.clone(), cmd: applet(command), timeout: 30 };
        let answer: ExecSyncResponse = self.pod.call("ExecSync", request).expect("exec");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match answer.exit_code {
            0 => Ok(text(&answer.stdout)),
            code => Err(format!("{code}: {}{}", text(&answer.stdout), text(&answer.stderr))),
        }
    }
}

fn applet(command: &[&str]) -> Vec<String> {
    std::iter::once(BUSYBOX).chain(command.iter().copied()).map(str::to_owned).collect()
}
