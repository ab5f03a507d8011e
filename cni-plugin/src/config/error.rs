//! What can be wrong with a network configuration.

/// A network configuration that margay refuses. Every variant names the field by its full path,
/// as in `ipam.pools[1].cidr`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The value has the wrong type or is out of range.
    #[error("{field} = {value}: {reason}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// The value as JSON, shortened.
        value: String,
        /// What the field wants.
        reason: String,
    },
    /// A field that must be there is not.
    #[error("{field} is missing: {reason}")]
    Missing {
        /// Path of the field.
        field: String,
        /// What the field is for.
        reason: &'static str,
    },
    /// An endpoint of etcd cannot be one.
    #[error("etcd_endpoints: {reason}")]
    Endpoint {
        /// Which, and what is wrong with it.
        reason: String,
    },
    /// A key that margay does not know.
    #[error("{field} is not a key margay knows{}", .nearest.as_ref().map(|key| format!(", did you mean {key}?")).unwrap_or_default())]
    Unknown {
        /// Path of the key.
        field: String,
        /// Path of the known key that is spelled most like it, if one is near.
        nearest: Option<String>,
    },
    /// A key that margay knows, with a value whose meaning it cannot give and must not ignore.
    #[error("{field} = {value} is not supported: {reason}")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// The value as JSON, shortened.
        value: String,
        /// Why, and what to do about it.
        reason: &'static str,
    },
}
