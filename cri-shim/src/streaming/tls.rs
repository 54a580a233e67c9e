//! The server's certificate, for nodes whose kubelet is not beside it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Reads certificate and key; `None` when neither is set.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<Option<TlsAcceptor>> {
    let given = [certificate, key].map(|path| !path.as_os_str().is_empty());
    if given == [false, false] {
        return Ok(None);
    }
    ensure!(given == [true, true], "streaming.tls_cert and streaming.tls_key go together: set both or none");
    let at = |what: &str, path: &Path| format!("streaming.{what} {}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .with_context(|| at("tls_cert", certificate))?;
    ensure!(!chain.is_empty(), "{}: no certificate in it", at("tls_cert", certificate));
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| at("tls_key", key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("streaming.tls_cert with streaming.tls_key")?;
    // An upgrade needs HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
