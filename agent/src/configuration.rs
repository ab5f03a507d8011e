//! The configuration file.

use std::path::{Path, PathBuf};
use std::{fs, io};

use margay::config::{AgentConf, ConfigError};
use serde_json::{Map, Value};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not a JSON object.
    #[error("{} is not a JSON object", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A key or a value is wrong.
    #[error("configuration")]
    Invalid(#[from] ConfigError),
}

/// Reads and validates the file; without one, the defaults.
///
/// # Errors
/// When it cannot be read, or something in it is wrong.
pub fn read(path: Option<&Path>) -> Result<AgentConf, ConfigurationError> {
    let document: Map<String, Value> = match path {
        None => Map::new(),
        Some(path) => {
            let failed = |source| ConfigurationError::Read { path: path.to_owned(), source };
            let text = fs::read_to_string(path).map_err(failed)?;
            let failed = |source| ConfigurationError::Json { path: path.to_owned(), source };
            serde_json::from_str(&text).map_err(failed)?
        }
    };
    Ok(AgentConf::from_map(&document)?)
}
