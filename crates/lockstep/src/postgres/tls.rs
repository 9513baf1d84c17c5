//! TLS for Lockstep's own connections, with libpq's keywords for what is verified.
//!
//! libpq's defaults are kept (fe-secure-openssl.c): `prefer` takes TLS where the server offers it, and below
//! `verify-ca` only `require` with `sslrootcert` verifies the certificate. What could go wrong: believing that
//! `require` proves who is at the other end; it only says that nobody else listens.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::Conninfo;

/// What is checked in the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// Makes a connector according to `sslmode`, `sslrootcert`, `sslcert` and `sslkey` of the connection string; the
/// error is a sentence.
///
/// # Errors
/// An unknown mode, or a file that can't be read.
pub fn connector(conninfo: &Conninfo) -> Result<MakeRustlsConnect, String> {
    let root = conninfo.get("sslrootcert").filter(|path| !path.is_empty());
    let verify = match (conninfo.get("sslmode").unwrap_or("prefer"), root) {
        ("verify-full", _) => Verify::AuthorityAndName,
        ("verify-ca", _) | ("require", Some(_)) => Verify::Authority,
        ("disable" | "allow" | "prefer" | "require" | "", _) => Verify::Nothing,
        (other, _) => return Err(format!("sslmode \"{other}\" isn't known")),
    };
    let provider = Arc::new(ring::default_provider());
    let authority = match (verify, root) {
        (Verify::Nothing, _) => None,
        (_, None) => {
            return Err(
                "sslmode demands a verified certificate: name the authority with sslrootcert"
                    .into(),
            );
        }
        (_, Some(root)) => Some(Authority::new(root, verify, provider.clone())?),
    };
    let verifier = Arc::new(Verifier { provider: provider.clone(), authority });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let own = (conninfo.get("sslcert"), conninfo.get("sslkey"));
    let config = match own {
        (Some(certificate), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| format!("sslkey \"{key}\" can't be read: {e}"))?;
            config
                .with_client_auth_cert(certificates(certificate)?, secret)
                .map_err(|e| format!("sslcert \"{certificate}\": {e}"))?
        }
        _ => config.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |e| format!("\"{path}\" can't be read as certificates: {e}");
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(Path::new(path)).map_err(unreadable)?.collect();
    let found = found.map_err(unreadable)?;
    if found.is_empty() {
        return Err(format!("\"{path}\" holds no certificate"));
    }
    Ok(found)
}

/// Accepts what the authority vouches for or, without an authority, any certificate. The handshake's signatures are
/// checked either way.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    authority: Option<Authority>,
}

/// Vouches for certificates that it signed and for those listed with it (servers that signed their own). The host's
/// name is only checked for `verify-full`.
#[derive(Debug)]
struct Authority {
    inner: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl Authority {
    fn new(root: &str, verify: Verify, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let wrong = |e: &dyn std::fmt::Display| format!("sslrootcert \"{root}\": {e}");
        let named = certificates(root)?;
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            roots.add(certificate.clone()).map_err(|e| wrong(&e))?;
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| wrong(&e))?;
        Ok(Self { inner, named, check_name: verify == Verify::AuthorityAndName })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        if authority.named.iter().any(|named| named.as_ref() == end_entity.as_ref()) {
            if authority.check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let inner = &authority.inner;
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain and the dates are checked before the name.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !authority.check_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_libpq_s() {
        let connector = |text: &str| {
            connector(&Conninfo::parse(text).unwrap())
                .map(drop)
                .unwrap_or_else(|why| panic!("{why}"))
        };
        for mode in ["disable", "allow", "prefer", "require"] {
            connector(&format!("host=a sslmode={mode}"));
        }
        connector("host=a");
        let refused = |text: &str| super::connector(&Conninfo::parse(text).unwrap()).err().unwrap();
        assert!(refused("sslmode=verify-full").contains("sslrootcert"));
        assert!(refused("sslmode=verify-ca").contains("sslrootcert"));
        assert!(refused("sslmode=always").contains("always"));
        assert!(refused("sslmode=verify-full sslrootcert=/no/such").contains("/no/such"));
    }
}
