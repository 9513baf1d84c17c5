//! Certificates of X.509 version 1, which `openssl x509 -req` makes without `-extfile`, as in PostgreSQL's manual
//! ("Creating Certificates"). libpq takes them, webpki takes none.
//!
//! They have no extensions: the host's name is the common name, and they can't sign others. What could go wrong: one is
//! believed that libpq wouldn't believe. So one is vouched for only by a certificate of `sslrootcert` that signed it
//! itself and may sign, and both have to be valid now; a chain over others is refused.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, ServerName, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::der::asn1::{AnyRef, BitString, ObjectIdentifier};
use x509_cert::der::{self, Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::{Certificate, der::oid::AssociatedOid};

/// id-at-commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// id-kp-serverAuth.
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");

/// A certificate of version 1.
#[derive(Debug)]
pub(super) struct Version1(Certificate);

impl Version1 {
    /// Returns the certificate; `None` for one of another version and for what isn't a certificate.
    pub(super) fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        is_version_1(&certificate.tbs_certificate).then_some(Self(certificate))
    }

    /// Its public key.
    ///
    /// # Errors
    /// When it has no DER form.
    pub(super) fn public_key(&self) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
        let key = &self.0.tbs_certificate.subject_public_key_info;
        Ok(key.to_der().map_err(bad_encoding)?.into())
    }

    /// Checks that one of `authorities` signed it, and that both are valid now.
    ///
    /// # Errors
    /// The reason why nobody vouches for it.
    pub(super) fn verify_issuer(
        &self,
        authorities: &[CertificateDer<'_>],
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Result<(), Error> {
        self.verify_dates(now)?;
        let mut why = CertificateError::UnknownIssuer;
        for authority in authorities.iter().filter_map(|der| Certificate::from_der(der).ok()) {
            let authority = &authority.tbs_certificate;
            if authority.subject != self.0.tbs_certificate.issuer || !may_sign(authority) {
                continue;
            }
            match self.is_signed_by(authority, algorithms).and_then(|()| valid_at(authority, now)) {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
        Err(why.into())
    }

    /// Checks that it is valid now.
    ///
    /// # Errors
    /// When it is expired or not valid yet.
    pub(super) fn verify_dates(&self, now: UnixTime) -> Result<(), Error> {
        valid_at(&self.0.tbs_certificate, now).map_err(Error::from)
    }

    /// What is verified is what was parsed, in DER. Two certificates with one name may differ in their keys.
    fn is_signed_by(
        &self,
        authority: &TbsCertificate,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateError> {
        let Certificate { tbs_certificate: tbs, signature_algorithm, signature } = &self.0;
        if tbs.signature != *signature_algorithm {
            return Err(CertificateError::BadEncoding);
        }
        let key = &authority.subject_public_key_info;
        let message = tbs.to_der().map_err(|_| CertificateError::BadEncoding)?;
        let mut known = algorithms.all.iter().filter(|known| {
            is(signature_algorithm, known.signature_alg_id())
                && is(&key.algorithm, known.public_key_alg_id())
        });
        match known.any(|known| verify(*known, &key.subject_public_key, &message, signature)) {
            true => Ok(()),
            false => Err(CertificateError::BadSignature),
        }
    }

    /// Checks the host's name as libpq does where a certificate has no names but the common one
    /// (pq_verify_peer_name_matches_certificate_name in fe-secure-common.c).
    ///
    /// # Errors
    /// When it is for another host.
    pub(super) fn verify_name(&self, server: &ServerName<'_>) -> Result<(), Error> {
        let host = server.to_str();
        let names = self.0.tbs_certificate.subject.0.iter().flat_map(|names| names.0.iter());
        let mut common = names.filter(|name| name.oid == COMMON_NAME);
        match common.next().is_some_and(|name| is_for(name.value.value(), host.as_bytes())) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    /// Checks the handshake's signature in TLS 1.2.
    ///
    /// # Errors
    /// When it isn't this certificate's.
    pub(super) fn verify_tls12(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = &self.0.tbs_certificate.subject_public_key_info;
        let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        let mut known = of_scheme
            .flat_map(|(_, known)| known.iter())
            .filter(|known| is(&key.algorithm, known.public_key_alg_id()));
        let signature = dss.signature();
        let Some(bits) = key.subject_public_key.as_bytes() else { return Err(bad_encoding(())) };
        match known.any(|known| known.verify_signature(bits, message, signature).is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    /// Checks the handshake's signature in TLS 1.3.
    ///
    /// # Errors
    /// When it isn't this certificate's.
    pub(super) fn verify_tls13(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &self.public_key()?, dss, algorithms)
    }
}

/// Checks that a certificate of any version is valid now.
///
/// # Errors
/// When it is expired or not valid yet, or isn't understood.
pub(super) fn verify_dates(der: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let certificate = Certificate::from_der(der).map_err(bad_encoding)?;
    valid_at(&certificate.tbs_certificate, now).map_err(Error::from)
}

fn bad_encoding<T>(_: T) -> Error {
    CertificateError::BadEncoding.into()
}

/// What only later versions have is absent.
fn is_version_1(tbs: &TbsCertificate) -> bool {
    tbs.version == Version::V1
        && tbs.extensions.is_none()
        && tbs.issuer_unique_id.is_none()
        && tbs.subject_unique_id.is_none()
}

/// Whether this certificate may sign others, as OpenSSL sees it (check_ca in v3_purp.c): one of version 1 that signed
/// itself, or one that says so. What isn't understood here may restrict it.
fn may_sign(tbs: &TbsCertificate) -> bool {
    if is_version_1(tbs) {
        return tbs.subject == tbs.issuer;
    }
    let extensions = tbs.extensions.as_deref().unwrap_or_default();
    let says_so = extensions.iter().any(|it| it.extn_id == BasicConstraints::OID);
    says_so && extensions.iter().all(allows_to_sign)
}

/// Whether an authority for servers may have this extension.
fn allows_to_sign(extension: &Extension) -> bool {
    fn holds<'a, T: Decode<'a>>(extension: &'a Extension, check: impl Fn(T) -> bool) -> bool {
        T::from_der(extension.extn_value.as_bytes()).is_ok_and(check)
    }
    match extension.extn_id {
        BasicConstraints::OID => holds(extension, |it: BasicConstraints| it.ca),
        KeyUsage::OID => holds(extension, |it: KeyUsage| it.key_cert_sign()),
        ExtendedKeyUsage::OID => {
            holds(extension, |it: ExtendedKeyUsage| it.0.contains(&SERVER_AUTH))
        }
        NAME_CONSTRAINTS => false,
        _ => !extension.critical,
    }
}

/// id-ce-nameConstraints.
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");

fn valid_at(tbs: &TbsCertificate, now: UnixTime) -> Result<(), CertificateError> {
    let now = now.as_secs();
    if now < tbs.validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet);
    }
    match now > tbs.validity.not_after.to_unix_duration().as_secs() {
        true => Err(CertificateError::Expired),
        false => Ok(()),
    }
}

/// Whether the certificate's algorithm is this one, with the same parameters.
fn is(algorithm: &AlgorithmIdentifierOwned, known: AlgorithmIdentifier) -> bool {
    // rustls leaves the outer tag out.
    let content =
        |der: &[u8]| -> der::Result<bool> { Ok(AnyRef::from_der(der)?.value() == known.as_ref()) };
    algorithm.to_der().and_then(|der| content(&der)).unwrap_or(false)
}

fn verify(
    algorithm: &dyn SignatureVerificationAlgorithm,
    key: &BitString,
    message: &[u8],
    signature: &BitString,
) -> bool {
    match (key.as_bytes(), signature.as_bytes()) {
        (Some(key), Some(signature)) => algorithm.verify_signature(key, message, signature).is_ok(),
        _ => false,
    }
}

/// Whether a certificate's name is the host's, or a wildcard for its first label (wildcard_certificate_match).
fn is_for(name: &[u8], host: &[u8]) -> bool {
    if name.contains(&0) {
        return false;
    }
    let first_dot = host.iter().position(|byte| *byte == b'.');
    let matches_wildcard = match (name.strip_prefix(b"*"), first_dot) {
        (Some(rest), Some(dot)) if rest.len() > 1 && rest[0] == b'.' && dot > 0 => {
            rest.eq_ignore_ascii_case(&host[dot..])
        }
        _ => false,
    };
    name.eq_ignore_ascii_case(host) || matches_wildcard
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn read(name: &str) -> CertificateDer<'static> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/certificates");
        CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap()
    }

    /// When the certificates began to be valid.
    const MADE: u64 = 1_795_859_223;
    const YEAR: u64 = 365 * 86_400;

    fn vouched(name: &str, authorities: &[&str], at: u64) -> Result<(), Error> {
        let authorities: Vec<_> = authorities.iter().map(|name| read(name)).collect();
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
        Version1::of(&read(name)).unwrap().verify_issuer(&authorities, &algorithms, now)
    }

    #[test]
    fn only_version_1_is_taken() {
        for name in ["server", "server-rsa", "authority-v1"] {
            assert!(Version1::of(&read(name)).is_some(), "{name}");
        }
        assert!(Version1::of(&read("authority")).is_none());
        let whole = read("server");
        for end in 0..whole.len() {
            assert!(Version1::of(&CertificateDer::from(&whole[..end])).is_none(), "{end} bytes");
        }
    }

    #[test]
    fn an_authority_vouches_for_what_it_signed() {
        for name in ["server", "server-rsa"] {
            for authority in ["authority", "authority-v1"] {
                assert_eq!(vouched(name, &[authority], MADE), Ok(()), "{name}, {authority}");
            }
        }
        // Whichever of that name it was.
        assert_eq!(vouched("server", &["same-name", "authority"], MADE), Ok(()));
        assert_eq!(vouched("server", &["authority", "same-name"], MADE), Ok(()));
    }

    #[test]
    fn nobody_else_vouches() {
        use CertificateError::{BadSignature, Expired, NotValidYet, UnknownIssuer};
        for (name, authority, at, why) in [
            ("server", "same-name", MADE, BadSignature),
            ("server", "not-an-authority", MADE, UnknownIssuer),
            ("server", "silent", MADE, UnknownIssuer),
            ("server", "for-clients", MADE, UnknownIssuer),
            ("server", "constrained", MADE, UnknownIssuer),
            ("server", "server-rsa", MADE, UnknownIssuer),
            ("below-server", "authority", MADE, UnknownIssuer),
            ("below-server", "server-rsa", MADE, UnknownIssuer),
            ("server", "authority", MADE - 1, NotValidYet),
            ("server", "authority", MADE + YEAR + 1, Expired),
        ] {
            let refused = vouched(name, &[authority], at);
            assert_eq!(refused, Err(Error::InvalidCertificate(why)), "{name}, {authority}, {at}");
        }
        assert_eq!(vouched("server", &["authority"], MADE + YEAR), Ok(()));
        assert!(vouched("server", &[], MADE).is_err());
    }

    #[test]
    fn a_certificate_that_was_changed_is_refused() {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(MADE));
        let (whole, authorities) = (read("server"), [read("authority")]);
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 1;
            let taken = Version1::of(&CertificateDer::from(changed));
            let is_vouched =
                taken.is_some_and(|it| it.verify_issuer(&authorities, &algorithms, now).is_ok());
            assert!(!is_vouched, "byte {at}");
        }
    }

    #[test]
    fn the_common_name_is_the_host_s() {
        let is_for = |name: &str, host: &'static str| {
            let server = ServerName::try_from(host).unwrap();
            Version1::of(&read(name)).unwrap().verify_name(&server).is_ok()
        };
        assert!(is_for("server-rsa", "localhost") && is_for("server-rsa", "LOCALHOST"));
        assert!(is_for("server", "db1.example.com") && is_for("server", "DB1.example.COM"));
        for other in ["example.com", "a.b.example.com", "db1.example.org", "localhost", "::1"] {
            assert!(!is_for("server", other), "{other}");
        }
        assert!(!is_for("server-rsa", "localhost.example.com"));
        // As wildcard_certificate_match has it.
        assert!(!super::is_for(b"*", b"a") && !super::is_for(b"*.", b"a."));
        assert!(!super::is_for(b"a\0.b", b"a\0.b"));
    }
}
