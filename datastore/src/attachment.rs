//! The attachment: one interface of one container on one network, the only name margay needs to
//! find again what an ADD made.
//!
//! An [`Attachment`] always has all three parts and each is safe in a key, a file name and a log
//! line. The rules are those of the CNI specification for the names and the kernel's
//! (`dev_valid_name`) for the interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kernel's `IFNAMSIZ` less the terminating zero.
const IFNAME_MAX_BYTES: usize = 15;

/// Longest text of an attachment. It must fit into a link's alias behind a prefix of seven bytes; an
/// alias is shorter than the kernel's `IFALIASZ` of 256, the terminating zero counted if it is sent.
const TEXT_MAX_BYTES: usize = 247;

/// One interface of one container on one network.
///
/// Written `network/container-id/ifname`, in keys, in records and by [`fmt::Display`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Attachment {
    network: String,
    container_id: String,
    ifname: String,
}

impl Attachment {
    /// Validates the three parts; the error says which one is wrong and how.
    pub fn new(
        network: impl Into<String>,
        container_id: impl Into<String>,
        ifname: impl Into<String>,
    ) -> Result<Self, AttachmentError> {
        let (network, container_id, ifname) = (network.into(), container_id.into(), ifname.into());
        if !is_cni_name(&network) {
            return Err(AttachmentError::Network { network });
        }
        if !is_cni_name(&container_id) {
            return Err(AttachmentError::ContainerId { container_id });
        }
        if let Some(defect) = interface_name_defect(&ifname) {
            return Err(AttachmentError::Ifname { ifname, defect });
        }
        let attachment = Self { network, container_id, ifname };
        match attachment.to_string() {
            text if text.len() > TEXT_MAX_BYTES => Err(AttachmentError::TooLong { text }),
            _ => Ok(attachment),
        }
    }

    /// The network's name (`name` in the network configuration).
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The container's ID (`CNI_CONTAINERID`).
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name inside the container (`CNI_IFNAME`).
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// Why three strings do not name an attachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// The network name breaks the CNI rule for names.
    #[error(
        "network name {network:?} must start with a letter or digit, followed by letters, digits, '_', '.' or '-'"
    )]
    Network {
        /// The name as given.
        network: String,
    },
    /// The container ID breaks the CNI rule for container IDs.
    #[error(
        "container ID {container_id:?} must start with a letter or digit, followed by letters, digits, '_', '.' or '-'"
    )]
    ContainerId {
        /// The ID as given.
        container_id: String,
    },
    /// The kernel would refuse the interface name.
    #[error("interface name {ifname:?} {defect}")]
    Ifname {
        /// The name as given.
        ifname: String,
        /// What is wrong with it.
        defect: &'static str,
    },
    /// The three parts together are too long.
    #[error(
        "network name, container ID and interface name ({text:.60}…) are longer than 247 bytes, which is all that a link's alias can hold of them"
    )]
    TooLong {
        /// The three parts as given.
        text: String,
    },
    /// A string that is not `network/container-id/ifname`.
    #[error("{text:?} is not of the form network/container-id/ifname")]
    Form {
        /// The string as given.
        text: String,
    },
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

impl FromStr for Attachment {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(network), Some(container_id), Some(ifname)) => {
                Self::new(network, container_id, ifname)
            }
            _ => Err(AttachmentError::Form { text: text.to_owned() }),
        }
    }
}

impl From<Attachment> for String {
    fn from(attachment: Attachment) -> Self {
        attachment.to_string()
    }
}

impl TryFrom<String> for Attachment {
    type Error = AttachmentError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The specification's rule for network names and container IDs: a letter or digit, then letters,
/// digits, underscores, dots and hyphens.
pub fn is_cni_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `dev_valid_name` in `net/core/dev.c`, stricter only about control characters, which the kernel
/// accepts and no log does.
fn interface_name_defect(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > IFNAME_MAX_BYTES {
        Some("is longer than 15 bytes")
    } else if name == "." || name == ".." {
        Some("is a directory's name")
    } else if name.contains(['/', ':']) {
        Some("contains '/' or ':'")
    } else if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        Some("contains whitespace or a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_is_read_back_from_its_own_text() {
        let attachment = Attachment::new("net-1", "0aF.b_c", "eth0").unwrap();

        assert_eq!(attachment.to_string(), "net-1/0aF.b_c/eth0");
        assert_eq!(attachment.to_string().parse::<Attachment>().unwrap(), attachment);
        let json = serde_json::to_string(&attachment).unwrap();
        assert_eq!(json, "\"net-1/0aF.b_c/eth0\"");
        assert_eq!(serde_json::from_str::<Attachment>(&json).unwrap(), attachment);
    }

    #[test]
    fn names_that_could_leave_their_key_or_directory_are_refused() {
        for bad in ["", ".hidden", "-x", "_x", "a/b", "a b", "a\n", "ä", "a\0", ".."] {
            assert!(matches!(
                Attachment::new(bad, "c", "eth0"),
                Err(AttachmentError::Network { .. })
            ));
            assert!(matches!(
                Attachment::new("n", bad, "eth0"),
                Err(AttachmentError::ContainerId { .. })
            ));
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["e", "eth0", "a-b.c_d", "123456789012345", "...", "é"] {
            assert!(Attachment::new("n", "c", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "a\t", "a\u{7f}"] {
            assert!(
                matches!(Attachment::new("n", "c", bad), Err(AttachmentError::Ifname { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn parts_that_no_alias_can_hold_are_refused() {
        let longest = "n".repeat(TEXT_MAX_BYTES - "/c/eth0".len());
        assert!(Attachment::new(longest.as_str(), "c", "eth0").is_ok());
        assert!(matches!(
            Attachment::new(longest + "n", "c", "eth0"),
            Err(AttachmentError::TooLong { .. })
        ));
    }

    #[test]
    fn a_text_with_too_few_parts_is_refused() {
        assert!(matches!("a/b".parse::<Attachment>(), Err(AttachmentError::Form { .. })));
        assert!(matches!("a/b/c/d".parse::<Attachment>(), Err(AttachmentError::Ifname { .. })));
    }
}
