//! A libpq connection string, parsed as conninfo_parse (fe-connect.c) does, so that keywords can be added and removed
//! without guessing at quotes.
//!
//! A password or another secret in it is refused: it would appear on command lines, in logs and in the configuration.

use std::fmt;

/// Keywords and values, in the order they were written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conninfo(Vec<(String, String)>);

/// The keywords that libpq knows (PQconninfoOptions in fe-connect.c), from versions 13 to 18.
const KEYWORDS: [&str; 52] = [
    "service",
    "servicefile",
    "user",
    "password",
    "passfile",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "client_encoding",
    "options",
    "application_name",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslmode",
    "sslnegotiation",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslcertmode",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslkeylogfile",
    "requirepeer",
    "require_auth",
    "min_protocol_version",
    "max_protocol_version",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "replication",
    "target_session_attrs",
    "load_balance_hosts",
    "scram_client_key",
    "scram_server_key",
    "oauth_issuer",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_scope",
    "tty",
];

/// Secrets, and keywords that Lockstep sets itself.
const NOT_ALLOWED: [&str; 7] = [
    "password",
    "sslpassword",
    "scram_client_key",
    "scram_server_key",
    "oauth_client_secret",
    "replication",
    "fallback_application_name",
];

/// What would protect a connection and Lockstep's own connections don't do: the keyword, the values that demand it
/// (any, where there is none), and what to write instead.
const UNMET: [(&str, &[&str], &str); 9] = [
    (
        "require_auth",
        &[],
        "leave it out; with channel_binding=require too, the password is sent to no server that asks for it in clear",
    ),
    ("sslcrl", &[], "leave it out, if certificates that were revoked may be accepted"),
    ("sslcrldir", &[], "leave it out, if certificates that were revoked may be accepted"),
    ("sslcertmode", &["require"], "leave it out"),
    ("sslrootcert", &["system"], "name a file, such as /etc/ssl/certs/ca-certificates.crt"),
    ("gssencmode", &["require"], "leave it out; sslmode=require encrypts too"),
    ("requirepeer", &[], "leave it out"),
    ("min_protocol_version", &["3.2", "latest"], "leave it out"),
    ("service", &[], "write what the service file has, such as host=, port= and user="),
];

impl Conninfo {
    /// Parses the text; the error is a sentence that doesn't repeat a value.
    ///
    /// # Errors
    /// A URI, a secret, or anything that isn't `keyword=value`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("postgresql://") || text.starts_with("postgres://") {
            return Err("it is a URI; write it as keywords: host=… port=… user=…".into());
        }
        let mut pairs = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, after) = rest
                .split_once('=')
                .ok_or("it isn't of the form keyword=value: a \"=\" is missing")?;
            let name = name.trim_end();
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err("it isn't of the form keyword=value".into());
            }
            let (value, after) = value(after.trim_start())?;
            pairs.push((name.to_owned(), value));
            rest = after.trim_start();
        }
        let parsed = Self(pairs);
        for name in NOT_ALLOWED {
            if parsed.get(name).is_some() {
                return Err(format!("it has the keyword {name}, which isn't allowed there"));
            }
        }
        if parsed.get("dbname").is_some_and(|name| name.contains(['=', ':'])) {
            return Err("its dbname is a connection string itself".into());
        }
        Ok(parsed)
    }

    /// The first keyword that no version of libpq knows: libpq would refuse the whole string.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        let mut names = self.0.iter().map(|(name, _)| name.as_str());
        names.find(|name| !KEYWORDS.contains(name))
    }

    /// The same for text that libpq must accept.
    ///
    /// # Errors
    /// As [`Self::parse`], or a keyword that libpq doesn't know.
    pub fn parse_known(text: &str) -> Result<Self, String> {
        let parsed = Self::parse(text)?;
        match parsed.unknown() {
            None => Ok(parsed),
            Some(name) => Err(format!("it has the keyword \"{name}\", which libpq doesn't know")),
        }
    }

    /// The same for a server that a standby will follow: it must name a host.
    ///
    /// # Errors
    /// As [`Self::parse_known`], or no host.
    pub fn of_primary(text: &str) -> Result<Self, String> {
        let parsed = Self::parse_known(text)?;
        // With `host=$UNSET user=u`, libpq takes `user=u` for the host.
        let is_one =
            |value: &str| !value.is_empty() && (value.starts_with('/') || !value.contains('='));
        let names = |name: &&str| parsed.get(name).is_some_and(is_one);
        if !["host", "hostaddr", "service"].iter().any(names) {
            return Err("it names no host".into());
        }
        Ok(parsed)
    }

    /// The same for a connection that Lockstep itself makes to a primary.
    ///
    /// # Errors
    /// It demands a kind of server that Lockstep's own connections can't recognize, or a protection that they don't
    /// have.
    pub fn for_lockstep(self) -> Result<Self, String> {
        if let Some((keyword, value, instead)) = self.unmet() {
            return Err(format!(
                "it has {keyword}={value}, and Lockstep's own connections don't do that: {instead}"
            ));
        }
        match self.get("target_session_attrs") {
            None | Some("any" | "primary" | "read-write" | "read-only") => Ok(self),
            Some(other) => Err(format!(
                "it has target_session_attrs={other}, and Lockstep has to ask the primary: write target_session_attrs=primary, or leave it out"
            )),
        }
    }

    /// What it demands and Lockstep's own connections don't do: a keyword, its value, and what to write instead.
    fn unmet(&self) -> Option<(&str, &str, &str)> {
        UNMET.iter().find_map(|(keyword, demands, instead)| {
            let value = self.get(keyword).filter(|value| !value.is_empty())?;
            let is_demand = demands.is_empty() || demands.contains(&value);
            is_demand.then_some((*keyword, value, *instead))
        })
    }

    /// The last value of a keyword, which is the one that libpq uses.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns a copy with `name` set to `value`.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut new = self.without(name);
        new.0.push((name.to_owned(), value.to_owned()));
        new
    }

    /// Returns a copy with `name` set to `value`, unless it has a value.
    #[must_use]
    pub fn with_default(&self, name: &str, value: &str) -> Self {
        if self.get(name).is_some() { self.clone() } else { self.with(name, value) }
    }

    /// Returns a copy without a keyword.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(known, _)| known != name).cloned().collect())
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:,@+".contains(c);
            if !value.is_empty() && value.chars().all(plain) {
                write!(f, "{blank}{name}={value}")?;
            } else {
                let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
                write!(f, "{blank}{name}='{quoted}'")?;
            }
        }
        Ok(())
    }
}

/// Splits off a value, which ends at a blank or is in quotes; a backslash takes the next character literally.
fn value(text: &str) -> Result<(String, &str), String> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err("a quote in it isn't closed".into()) } else { Ok((value, "")) }
}

/// A line of a password file for any host, port, database and user (passwordFromFile in fe-connect.c takes a
/// backslash before `:` and `\`).
#[must_use]
pub fn passfile_line(password: &str) -> String {
    format!("*:*:*:*:{}\n", password.replace('\\', r"\\").replace(':', r"\:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_are_read_as_libpq_reads_them() {
        let text = r"host = '/tmp/a b'  port=5433 user=it\'s options='-c x=\'1\'' sslmode=";
        let parsed = Conninfo::parse(text).unwrap();
        assert_eq!(parsed.get("host"), Some("/tmp/a b"));
        assert_eq!(parsed.get("user"), Some("it's"));
        assert_eq!(parsed.get("options"), Some("-c x='1'"));
        assert_eq!(parsed.get("sslmode"), Some(""));
        // What is written is parsed as the same.
        assert_eq!(Conninfo::parse(&parsed.to_string()).unwrap(), parsed);
    }

    #[test]
    fn keywords_are_added_and_taken_out() {
        let parsed = Conninfo::parse("host=a host=b dbname=x").unwrap();
        assert_eq!(parsed.get("host"), Some("b"));
        let changed = parsed.without("dbname").with("passfile", "/a b/c").with("host", "d");
        assert_eq!(changed.to_string(), "passfile='/a b/c' host=d");
        assert_eq!(changed.with_default("host", "e"), changed);
    }

    #[test]
    fn a_keyword_that_libpq_does_not_know_is_found() {
        let unknown = |text: &str| Conninfo::parse(text).unwrap().unknown().map(str::to_owned);
        assert_eq!(unknown("host=a prot=5432").as_deref(), Some("prot"));
        assert_eq!(unknown("host=a sslmode=verify-full passfile=/x application_name=y"), None);
    }

    #[test]
    fn what_cannot_be_is_refused_without_its_value() {
        for bad in [
            "host=a password=geheim",
            "host=a sslpassword=geheim",
            "host=a oauth_client_secret=geheim",
            "postgresql://u:geheim@a/b",
            "geheim",
            "host='geheim",
            "=geheim",
            "dbname='host=b password=geheim'",
        ] {
            let why = Conninfo::parse(bad).unwrap_err();
            assert!(!why.contains("geheim"), "{why}");
        }
    }

    #[test]
    fn a_primary_has_a_host() {
        let why = |text: &str| Conninfo::of_primary(text).unwrap_err();
        for nothing in ["", "  ", "port=5432 user=u", "host= user=u", "host='' port=1"] {
            assert_eq!(why(nothing), "it names no host", "{nothing}");
        }
        assert_eq!(why("hosst=a"), "it has the keyword \"hosst\", which libpq doesn't know");
        for some in ["host=/run/pg", "hostaddr=::1", "service=db1"] {
            assert_eq!(Conninfo::of_primary(some).unwrap().to_string(), some);
        }
    }

    #[test]
    fn it_is_a_primary_that_lockstep_asks() {
        let asked = |text: &str| Conninfo::parse_known(text).and_then(Conninfo::for_lockstep);
        for some in ["host=a", "host=a,b target_session_attrs=primary"] {
            assert_eq!(asked(some).unwrap().to_string(), some);
        }
        for other in ["standby", "prefer-standby", "Any"] {
            let text = format!("host=a,b target_session_attrs={other}");
            let why = asked(&text).unwrap_err();
            assert!(why.contains(&format!("target_session_attrs={other}, and")), "{why}");
            // A standby of a standby connects with libpq, which knows them.
            assert!(Conninfo::of_primary(&text).is_ok());
        }
    }

    #[test]
    fn what_lockstep_cannot_keep_is_refused() {
        let asked = |more: &str| {
            Conninfo::of_primary(&format!("host=a {more}")).and_then(Conninfo::for_lockstep)
        };
        for some in [
            "sslmode=verify-full sslrootcert=/ca sslcrl=''",
            "sslcertmode=allow gssencmode=prefer min_protocol_version=3.0 passfile=/x",
            "ssl_min_protocol_version=TLSv1.3 channel_binding=require",
        ] {
            assert!(asked(some).is_ok(), "{some}");
        }
        for other in [
            "require_auth=scram-sha-256",
            "sslcrl=/crl",
            "sslcrldir=/crls",
            "sslcertmode=require",
            "sslrootcert=system",
            "gssencmode=require",
            "requirepeer=postgres",
            "min_protocol_version=3.2",
            "service=db1",
        ] {
            let why = asked(other).unwrap_err();
            assert!(why.contains(&format!("it has {other}, and")), "{why}");
            // A standby that Lockstep only restores connects with libpq, which does all that.
            assert!(Conninfo::of_primary(&format!("host=a {other}")).is_ok());
        }
    }

    #[test]
    fn a_password_is_escaped_for_its_file() {
        assert_eq!(passfile_line(r"a:b\c"), "*:*:*:*:a\\:b\\\\c\n");
    }
}
