//! The node that the command runs on, as its configuration describes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use margay::config::{
    AgentConf, ConfigError, Dataplane, Datastore, IpamNetConf, NetConf, Paths, PoolSet,
};
use margay::hold::Site;
use margay::ipam;
use margay::log::LogConf;
use margay::netlink::Netlink;
use margay::upkeep::Upkeep;
use margay_datapath::Datapath;
use margay_datastore::{Ipam, Store};
use serde_json::{Map, Value};

use crate::arguments::Shared;
use crate::failure::Failure;

/// What the plugins are called in a configuration.
const PLUGIN: &str = "margay";
const IPAM_PLUGIN: &str = "margay-ipam";
/// What the runtime takes for a configuration (libcni, `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// This node. Everything is opened when it is asked for, so that a command fails for what it needs
/// alone.
#[derive(Debug)]
pub(crate) struct Node {
    /// Networks of margay's, in the order in which the runtime finds them.
    pub(crate) networks: Vec<Network>,
    /// Files that the runtime would look at, in its order.
    pub(crate) files: Vec<PathBuf>,
    /// Files that may be a configuration and cannot be read or used, and why.
    pub(crate) unusable: Vec<Failure>,
    /// The agent's configuration, if there is one.
    pub(crate) agent: Option<AgentConf>,
    /// Where configurations were looked for.
    pub(crate) config: PathBuf,
}

/// One network that margay has a part in.
#[derive(Debug)]
pub(crate) struct Network {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its name.
    pub(crate) name: String,
    /// Version of the CNI specification that it says it is of.
    pub(crate) version: Option<String>,
    /// Types of the plugins in the chain, in order.
    pub(crate) chain: Vec<String>,
    /// What margay is told.
    pub(crate) part: Part,
    /// Why the pools that it chooses in the datastore cannot be had.
    pub(crate) unsettled: Option<ConfigError>,
}

impl Network {
    /// What the network plugin is told, if that is margay.
    pub(crate) fn whole(&self) -> Option<&NetConf> {
        match &self.part {
            Part::Whole(conf) => Some(conf),
            Part::Addresses(_) => None,
        }
    }

    /// The pools, where margay-ipam gives the addresses.
    pub(crate) fn pools(&self) -> Option<&PoolSet> {
        match &self.part {
            Part::Whole(conf) => conf.ipam.pools(),
            Part::Addresses(conf) => Some(&conf.pools),
        }
    }

    /// Whether pools that it chooses in the datastore are not among them, since they could not be had: what follows from
    /// all of its pools is not known then.
    pub(crate) fn lacks_pools(&self) -> bool {
        self.pools().is_some_and(PoolSet::is_open)
    }

    fn pools_mut(&mut self) -> Option<&mut PoolSet> {
        match &mut self.part {
            Part::Whole(conf) => conf.ipam.pools_mut(),
            Part::Addresses(conf) => Some(&mut conf.pools),
        }
    }
}

/// Which of margay's plugins a network has.
#[derive(Debug)]
pub(crate) enum Part {
    /// The network plugin.
    Whole(Box<NetConf>),
    /// The IPAM plugin, under somebody else's network plugin.
    Addresses(Box<IpamNetConf>),
}

/// What of the configuration concerns the node and not a network.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name of the node in the datastore.
    pub(crate) nodename: String,
    /// Where state lives.
    pub(crate) paths: Paths,
    /// Where records are.
    pub(crate) datastore: Datastore,
    /// Where logs go.
    pub(crate) log: LogConf,
}

impl Node {
    /// Reads the configurations; what cannot be used of them is kept for who asks.
    #[must_use]
    pub(crate) fn find(shared: &Shared) -> Self {
        let mut node = Self {
            networks: Vec::new(),
            files: Vec::new(),
            unusable: Vec::new(),
            agent: None,
            config: shared.config.clone(),
        };
        match candidates(&shared.config) {
            Ok(files) => {
                files.iter().for_each(|file| node.take_up(file));
                node.files = files;
            }
            Err(failure) => node.unusable.push(failure),
        }
        match agent(&shared.agent_config) {
            Ok(agent) => node.agent = agent,
            Err(failure) => node.unusable.push(failure),
        }
        node
    }

    /// The same with the pools that it chooses in the datastore, which is asked for them: for commands that look at pools.
    #[must_use]
    pub(crate) fn find_with_pools(shared: &Shared) -> Self {
        let mut node = Self::find(shared);
        node.settle_pools();
        node
    }

    /// Pools that configurations choose in the datastore are part of what they say. One that cannot be opened, as by
    /// somebody who may not, leaves them without, and is for the command that needs it to say.
    fn settle_pools(&mut self) {
        if !self.networks.iter().any(Network::lacks_pools) {
            return;
        }
        let Some(records) = self.store().ok().and_then(|store| store.pools().ok()) else { return };
        for network in &mut self.networks {
            let Some(pools) = network.pools_mut() else { continue };
            network.unsettled = pools.settle(&records).err();
        }
    }

    fn take_up(&mut self, file: &Path) {
        match networks(file) {
            Ok(networks) => self.networks.extend(networks),
            Err(failure) => self.unusable.push(failure),
        }
    }

    /// What margay is told of each network that it makes the interfaces of.
    pub(crate) fn whole_networks(&self) -> impl Iterator<Item = &NetConf> {
        self.networks.iter().filter_map(Network::whole)
    }

    /// The same of the network of this name.
    pub(crate) fn whole_network(&self, name: &str) -> Option<&NetConf> {
        self.whole_networks().find(|conf| conf.name == name)
    }

    /// What concerns the node: of the first network that margay makes the interfaces of; else of the
    /// agent; else of the first that it gives the addresses of.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let whole = self.whole_networks().next().map(|conf| Settings {
            nodename: conf.nodename.clone(),
            paths: conf.paths.clone(),
            datastore: conf.datastore.clone(),
            log: conf.log.clone(),
        });
        let agent = || {
            self.agent.as_ref().map(|conf| Settings {
                nodename: conf.nodename.clone(),
                paths: conf.paths.clone(),
                datastore: conf.datastore.clone(),
                log: conf.log.clone(),
            })
        };
        let addresses = || {
            self.networks.iter().find_map(|network| match &network.part {
                Part::Whole(_) => None,
                Part::Addresses(conf) => Some(Settings {
                    nodename: conf.nodename.clone(),
                    paths: Paths {
                        state_dir: conf.state_dir.clone(),
                        run_dir: conf.run_dir.clone(),
                        ..Paths::default()
                    },
                    datastore: conf.datastore.clone(),
                    log: conf.log.clone(),
                }),
            })
        };
        let found = whole.or_else(agent).or_else(addresses);
        let mut settings =
            found.ok_or_else(|| Failure::NoConfiguration { path: self.config.clone() })?;
        // What a verb may take is nothing to a command that is watched.
        settings.datastore = settings.datastore.for_a_daemon();
        Ok(settings)
    }

    /// The datastore, if there is one.
    pub(crate) fn store(&self) -> Result<Store, Failure> {
        let settings = self.settings()?;
        let database = settings.paths.database();
        if matches!(settings.datastore, Datastore::Local) && is_absent(&database) {
            return Err(Failure::NoDatastore { path: database });
        }
        Ok(ipam::open_store(&settings.datastore, &database)?)
    }

    /// Address management on this node.
    pub(crate) fn allocator<'s>(&self, store: &'s Store) -> Result<Ipam<'s>, Failure> {
        let boot_id = ipam::boot_id()?;
        Ok(Ipam::new(store, &self.settings()?.nodename, &boot_id))
    }

    /// All that it takes to take something away.
    pub(crate) fn site(&self, store: Store) -> Result<Site, Failure> {
        let Settings { nodename, paths, .. } = self.settings()?;
        let (boot_id, netlink) = (ipam::boot_id()?, Netlink::open()?);
        Ok(Site { paths, nodename, boot_id, store, netlink })
    }

    /// The node's upkeep, which makes maps that are gone of the size that a network with programs asks for, as the next
    /// ADD would; else of the size that the agent is told.
    pub(crate) fn upkeep(&self, grace: Duration) -> Result<Upkeep, Failure> {
        let Settings { nodename, paths, .. } = self.settings()?;
        let upkeep = Upkeep::new(self.store()?, &nodename, paths, grace)?;
        let of_network = self.whole_networks().find(|conf| conf.dataplane != Dataplane::Linux);
        let of_network = of_network.map(|conf| (conf.max_pods, conf.max_flows));
        let of_agent = || self.agent.as_ref().map(|conf| (conf.max_pods, conf.max_flows));
        Ok(match of_network.or_else(of_agent) {
            Some((max_pods, max_flows)) => upkeep.sized(max_pods, max_flows),
            None => upkeep,
        })
    }

    /// What every build has pinned, the current one first; never empty.
    pub(crate) fn datapaths(&self) -> Result<Vec<Datapath>, Failure> {
        let root = self.settings()?.paths.bpffs_root;
        let builds = Datapath::open_builds(&root)?;
        if builds.is_empty() { Err(Failure::NoDatapath { root }) } else { Ok(builds) }
    }
}

fn is_absent(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The files that a runtime would look at, in its order.
fn candidates(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source: std::io::Error| Failure::Configuration {
        path: path.to_owned(),
        source: source.into(),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(vec![path.to_owned()]),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.retain(|file| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && !file.is_dir()
    });
    files.sort();
    Ok(files)
}

/// What of a file is margay's.
fn networks(file: &Path) -> Result<Vec<Network>, Failure> {
    let document = read(file)?;
    let name = document.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let version = document.get("cniVersion").and_then(Value::as_str).map(str::to_owned);
    let plugins: Vec<Map<String, Value>> = match document.get("plugins") {
        Some(Value::Array(plugins)) => {
            let plugins = plugins.iter().filter_map(Value::as_object);
            plugins.map(|plugin| in_list(plugin, &document)).collect()
        }
        _ => vec![document],
    };
    let kind = |plugin: &Map<String, Value>| {
        plugin.get("type").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let chain: Vec<String> = plugins.iter().map(kind).collect();
    let mut networks = Vec::new();
    for plugin in &plugins {
        if let Some(part) = part(file, plugin)? {
            let (file, name, chain) = (file.to_owned(), name.clone(), chain.clone());
            let version = version.clone();
            networks.push(Network { file, name, version, chain, part, unsettled: None });
        }
    }
    Ok(networks)
}

/// A plugin's configuration as the runtime hands it over: with the list's name and version.
fn in_list(plugin: &Map<String, Value>, list: &Map<String, Value>) -> Map<String, Value> {
    let mut plugin = plugin.clone();
    for key in ["name", "cniVersion"] {
        if let Some(value) = list.get(key) {
            plugin.insert(key.to_owned(), value.clone());
        }
    }
    plugin
}

fn part(file: &Path, plugin: &Map<String, Value>) -> Result<Option<Part>, Failure> {
    let failed = |source: ConfigError| Failure::Configuration {
        path: file.to_owned(),
        source: source.into(),
    };
    if plugin.get("type").and_then(Value::as_str) == Some(PLUGIN) {
        let conf = NetConf::from_map(plugin).map_err(failed)?;
        return Ok(Some(Part::Whole(Box::new(conf))));
    }
    let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    if ipam == Some(IPAM_PLUGIN) {
        let conf = IpamNetConf::from_map(plugin).map_err(failed)?;
        return Ok(Some(Part::Addresses(Box::new(conf))));
    }
    Ok(None)
}

/// The agent's configuration; none where there is no file, which is most nodes.
fn agent(file: &Path) -> Result<Option<AgentConf>, Failure> {
    if is_absent(file) {
        return Ok(None);
    }
    let conf = AgentConf::from_map(&read(file)?);
    conf.map(Some)
        .map_err(|source| Failure::Configuration { path: file.to_owned(), source: source.into() })
}

fn read(file: &Path) -> Result<Map<String, Value>, Failure> {
    let path = || file.to_owned();
    let failed =
        |source: std::io::Error| Failure::Configuration { path: path(), source: source.into() };
    let text = fs::read_to_string(file).map_err(failed)?;
    serde_json::from_str(&text)
        .map_err(|source| Failure::Configuration { path: path(), source: source.into() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_those_of_the_network_or_the_agent_without_a_verbs_patience() {
        let etcd = json!({"datastore_type": "etcdv3", "etcd_endpoints": "http://192.0.2.1:2379"});
        let with = |more: Value| {
            let mut conf = etcd.clone();
            conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            conf
        };
        let net = |more: Value| {
            let mut conf = with(more);
            conf["cniVersion"] = json!("1.1.0");
            conf["name"] = json!("podnet");
            conf
        };
        let pools = json!([{"cidr": "10.244.0.0/16"}]);
        let whole = net(json!({
            "type": "margay", "run_dir": "/run/x", "ipam": {"type": "margay-ipam", "pools": pools},
        }));
        let addresses = net(json!({
            "type": "ptp", "ipam": {"type": "margay-ipam", "pools": pools, "run_dir": "/run/x"},
        }));
        let agent = with(json!({"run_dir": "/run/x"}));

        for (what, network, agent) in [
            ("whole", Some(whole), None),
            ("agent", None, Some(agent)),
            ("addresses", Some(addresses), None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let shared = Shared {
                config: directory.path().join("net.d"),
                agent_config: directory.path().join("agent.json"),
                output: crate::output::Format::default(),
            };
            fs::create_dir(&shared.config).unwrap();
            if let Some(network) = network {
                fs::write(shared.config.join("10-x.conf"), network.to_string()).unwrap();
            }
            if let Some(agent) = agent {
                fs::write(&shared.agent_config, agent.to_string()).unwrap();
            }

            let node = Node::find(&shared);

            let settings =
                node.settings().unwrap_or_else(|_| panic!("{what}: {:?}", node.unusable));
            assert_eq!(settings.paths.run_dir, Path::new("/run/x"), "{what}");
            let Datastore::Etcd(conf) = settings.datastore else { panic!("{what} is local") };
            assert_eq!(conf.patience, None, "{what}");
        }
    }
}
