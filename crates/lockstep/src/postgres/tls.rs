//! TLS for Lockstep's own connections, with libpq's keywords for what is verified.
//!
//! libpq's defaults are kept (fe-secure-openssl.c): `prefer` takes TLS where the server offers it, and below
//! `verify-ca` only `require` with `sslrootcert` verifies the certificate. What could go wrong: believing that
//! `require` proves who is at the other end; it only says that nobody else listens.

mod version1;

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::Conninfo;
use version1::Version1;

/// What is checked in the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// Makes a connector according to the keywords of the connection string that begin with `ssl`; the error is a
/// sentence. [`Conninfo::for_lockstep`] refuses those that aren't kept here.
///
/// # Errors
/// An unknown mode or version, a file that can't be read, or no host whose name could be verified.
pub fn connector(conninfo: &Conninfo) -> Result<MakeRustlsConnect, String> {
    let get = |name: &str| conninfo.get(name).filter(|value| !value.is_empty());
    let root = get("sslrootcert");
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
    if verify == Verify::AuthorityAndName && get("host").is_none() {
        return Err(
            "sslmode=verify-full needs the host's name: write host= beside hostaddr=".into()
        );
    }
    let verifier = Arc::new(Verifier { provider: provider.clone(), authority });
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(conninfo)?)
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (get("sslcert"), get("sslkey")) {
        (Some(certificate), Some(key)) if get("sslcertmode") != Some("disable") => {
            let own = own_certificate(certificate, key, &provider)?;
            config.with_client_cert_resolver(Arc::new(own))
        }
        _ => config.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// The versions of TLS that the connection may have.
fn versions(conninfo: &Conninfo) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    const NAMES: [&str; 4] = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
    let limit = |keyword: &str, default: usize| match conninfo.get(keyword) {
        None | Some("") => Ok(default),
        Some(value) => NAMES
            .iter()
            .position(|name| name.eq_ignore_ascii_case(value))
            .ok_or_else(|| format!("{keyword} \"{value}\" isn't known")),
    };
    let allowed = limit("ssl_min_protocol_version", 0)?..=limit("ssl_max_protocol_version", 3)?;
    let ours = [(2, &TLS12), (3, &TLS13)].into_iter();
    let ours: Vec<_> =
        ours.filter(|(at, _)| allowed.contains(at)).map(|(_, version)| version).collect();
    match ours.is_empty() {
        true => Err("ssl_min_protocol_version and ssl_max_protocol_version allow neither TLSv1.2 nor TLSv1.3, which are those that Lockstep has".into()),
        false => Ok(ours),
    }
}

/// Returns the certificate that is shown to the server; its key has to be the one that is there.
fn own_certificate(
    path: &str,
    key: &str,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, String> {
    let wrong = |e: Error| format!("sslcert \"{path}\": {e}");
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| format!("sslkey \"{key}\" can't be read: {e}"))?;
    let chain = certificates(path)?;
    let own = match chain.first().and_then(Version1::of) {
        Some(certificate) => {
            let key = provider.key_provider.load_private_key(secret).map_err(wrong)?;
            if key.public_key() != Some(certificate.public_key().map_err(wrong)?) {
                return Err(wrong(InconsistentKeys::KeyMismatch.into()));
            }
            CertifiedKey::new(chain, key)
        }
        None => CertifiedKey::from_der(chain, secret, provider).map_err(wrong)?,
    };
    Ok(own.into())
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
        let is_named = authority.named.iter().any(|named| named.as_ref() == end_entity.as_ref());
        if let Some(certificate) = Version1::of(end_entity) {
            let algorithms = &self.provider.signature_verification_algorithms;
            match is_named {
                true => certificate.verify_dates(now)?,
                false => certificate.verify_issuer(&authority.named, algorithms, now)?,
            }
            if authority.check_name {
                certificate.verify_name(server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        if is_named {
            version1::verify_dates(end_entity, now)?;
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
        let algorithms = &self.provider.signature_verification_algorithms;
        match Version1::of(cert) {
            Some(certificate) => certificate.verify_tls12(message, dss, algorithms),
            None => verify_tls12_signature(message, cert, dss, algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match Version1::of(cert) {
            Some(certificate) => certificate.verify_tls13(message, dss, algorithms),
            None => verify_tls13_signature(message, cert, dss, algorithms),
        }
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
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/certificates/authority.crt");
        connector(&format!("hostaddr=::1 sslmode=verify-ca sslrootcert='{root}'"));
        connector(&format!("host=a hostaddr=::1 sslmode=verify-full sslrootcert='{root}'"));
        let no_name = refused(&format!("hostaddr=::1 sslmode=verify-full sslrootcert='{root}'"));
        assert!(no_name.contains("host="), "{no_name}");
    }

    #[test]
    fn a_certificate_that_is_named_itself_has_to_be_valid_now() {
        // Version 3, ten years from then on.
        const MADE: u64 = 1_795_859_223;
        const EXPIRES: u64 = 2_111_219_223;
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/certificates/authority.crt");
        let provider = Arc::new(ring::default_provider());
        let authority = Authority::new(root, Verify::Authority, provider.clone()).unwrap();
        let verifier = Verifier { provider, authority: Some(authority) };
        let named = certificates(root).unwrap();
        let server = ServerName::try_from("localhost").unwrap();
        let verified = |at: u64| {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
            verifier.verify_server_cert(&named[0], &[], &server, &[], now).map(drop)
        };
        assert_eq!((verified(MADE), verified(EXPIRES)), (Ok(()), Ok(())));
        let refused = |why| Err(Error::InvalidCertificate(why));
        assert_eq!(verified(MADE - 1), refused(CertificateError::NotValidYet));
        assert_eq!(verified(EXPIRES + 1), refused(CertificateError::Expired));
    }

    #[test]
    fn versions_are_those_between_the_limits() {
        let versions = |text: &str| versions(&Conninfo::parse(text).unwrap());
        assert_eq!(versions("ssl_min_protocol_version=''"), Ok(vec![&TLS12, &TLS13]));
        assert_eq!(versions("ssl_min_protocol_version=tlsv1"), Ok(vec![&TLS12, &TLS13]));
        assert_eq!(versions("ssl_min_protocol_version=TLSv1.3"), Ok(vec![&TLS13]));
        assert_eq!(versions("ssl_max_protocol_version=TLSv1.2"), Ok(vec![&TLS12]));
        assert!(versions("ssl_max_protocol_version=TLSv1.1").is_err());
        let crossed = "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2";
        assert!(versions(crossed).is_err());
        assert!(versions("ssl_min_protocol_version=SSLv3").unwrap_err().contains("SSLv3"));
    }
}
