//! Certificates for a test: an authority, a server's and a client's.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::ClientCert;

/// Files of certificates and keys.
#[derive(Clone, Debug)]
pub struct Tls {
    directory: PathBuf,
}

impl Tls {
    /// Makes an authority, a certificate for a server at the addresses and one for a client.
    pub fn make(directory: &Path, servers: &[IpAddr]) -> Self {
        fs::create_dir_all(directory).unwrap();
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        let mut authority = params(&format!("authority of {}", directory.display()));
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        write("ca.pem", authority.self_signed(&authority_key).unwrap().pem());
        let issuer = Issuer::new(authority, authority_key);
        let mut server = params("a server");
        server.subject_alt_names = servers.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        for (name, params) in [("server", server), ("client", params("root"))] {
            let key = KeyPair::generate().unwrap();
            write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}-key.pem"), key.serialize_pem());
        }
        Self { directory: directory.to_owned() }
    }

    /// The authority's certificate.
    pub fn ca_cert_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The client's certificate and key.
    pub fn client_cert(&self) -> ClientCert {
        ClientCert {
            cert_file: self.directory.join("client.pem"),
            key_file: self.directory.join("client-key.pem"),
        }
    }

    pub(super) fn server_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let arguments = [
            ("--cert-file", file("server.pem")),
            ("--key-file", file("server-key.pem")),
            ("--trusted-ca-file", file("ca.pem")),
        ];
        let arguments = arguments.into_iter().flat_map(|(name, file)| [name.to_owned(), file]);
        arguments.chain(["--client-cert-auth".to_owned()]).collect()
    }
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
