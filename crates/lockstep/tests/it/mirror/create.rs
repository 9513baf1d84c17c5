//! Mirrors that are made, followed, backed up, and restored as new primaries; what is refused; who can connect to
//! them.

use super::{
    PATIENCE, SCALE, assert_gone, backup, catch_up, create, create_words, dataset, directory, dump,
    of_cluster, restore, server_of, status, wait_for_state, words,
};
use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, give_to_postgres, must, run, wait_until};
use crate::support::faults::kill_at;
use crate::support::layout::empty_pools;
use crate::support::ledger::{Expected, Ledger};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Steps, exit};
use crate::support::pools::{path_with_turns, patiently, zfs};
use crate::support::standby::{Alone, set};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The user `nobody` of every Linux.
const NOBODY: u32 = 65534;

#[test]
fn followed_backed_up_and_restored_as_a_new_primary() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    let ledger = Ledger::create(&alone.primary, "ts1", "ts2");
    let writers = ledger.start(&alone.primary);
    let load = Load::start(&alone.primary, &["ts1", "ts2"], &Plan::to_be_followed(3));
    let made = create(&alone, "main");
    assert_eq!(made["slot"], "lockstep_mirror_main", "{made}");
    create(&alone, "other");
    let lockstep = alone.fixture.lockstep();
    let listed = lockstep.json(&["mirror", "list"]);
    assert_eq!(listed["mirrors"].as_array().map(Vec::len), Some(2), "{listed}");
    let elsewhere = format!("{}/main-ts2", alone.fixture.pools[1].name);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "recordsize", &elsewhere]).trim(), "8K");

    // A set under load.
    let loaded = backup(&lockstep, "main");
    assert_eq!(loaded.strategy, "label");
    assert_eq!(loaded.volumes.len(), 4, "{}", loaded.json);
    let (to, restored) = restore(&alone, "main", &loaded);
    let expected = Expected { by_lsn: loaded.floor_lsn, ..Expected::default() };
    let checker = Checker::new(SCALE).with_ledger(&ledger, expected);
    checker.check_and_stop(&restored).assert_right("a mirror's set under load");
    alone.fixture.discard_restored(&to, &loaded.id);

    // And one from the same moment as the primary's own dump.
    load.stop();
    writers.stop();
    for name in ["main", "other"] {
        // Autovacuum continues for a while after the load.
        let since = Instant::now();
        let seen = loop {
            let (seen, code) = status(&alone, name);
            assert_eq!(
                (&seen["state"]["state"], code),
                (&"follows".into(), Some(exit::DONE)),
                "{seen}"
            );
            if seen["lag_bytes"] == 0 || since.elapsed() > PATIENCE {
                break seen;
            }
            thread::sleep(Duration::from_millis(300));
        };
        assert_eq!((&seen["lag_bytes"], &seen["lag_seconds"]), (&0.into(), &0.0.into()), "{seen}");
    }
    let theirs = dump(&alone.primary);
    let still = backup(&lockstep, "main");
    let (to, restored) = restore(&alone, "main", &still);
    assert!(dump(&restored) == theirs, "the restored cluster isn't the primary");
    let setting = |name: &str| restored.value("postgres", &format!("SHOW {name}"));
    assert_eq!(setting("cluster_name"), "", "the mirror's own settings aren't in its sets");
    assert_eq!(setting("primary_conninfo"), "");
    assert_eq!(setting("shared_buffers"), "32MB", "it has the primary's settings");
    restored.stop(Stop::Immediate);
    alone.fixture.discard_restored(&to, &still.id);

    // Stopped, started, and removed only if that is confirmed.
    let pid_file = directory(&alone, "main").join("data/postmaster.pid");
    let running = fs::read_to_string(&pid_file).expect("it runs");
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let is_stopped = || {
        let (seen, code) = status(&alone, "main");
        let found = (&seen["state"]["state"], code);
        assert_eq!(found, (&"stopped".into(), Some(exit::PROBLEMS)), "{seen}");
    };
    is_stopped();
    // As after a crash of the machine: its number is another process's by now.
    let (_, rest) = running.split_once('\n').expect("it has several lines");
    fs::write(&pid_file, format!("{}\n{rest}", std::process::id())).expect("it can be written");
    is_stopped();
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let again = lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    assert!(again.stdout.contains("is running already"), "{}", again.describe());
    wait_for_state(&alone, "main", "follows");
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main"]);
    assert!(refused.stderr.contains("has 2 backup sets"), "{}", refused.describe());
    zfs(&["snapshot", &format!("{}/data@mine", dataset(&alone, "main"))]);
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main", "--with-sets"]);
    assert!(refused.stderr.contains("data@mine\" belongs to no set"), "{}", refused.describe());
    wait_for_state(&alone, "main", "follows");
    zfs(&["destroy", &format!("{}/data@mine", dataset(&alone, "main"))]);
    // Something of it can't be destroyed: nothing is.
    let (held, below) = (
        format!("{}/wal@lockstep-{}", dataset(&alone, "main"), still.id),
        format!("{}/notes", dataset(&alone, "main")),
    );
    zfs(&["hold", "mine", &held]);
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main", "--with-sets"]);
    let said = format!("somebody else holds \"{held}\"");
    assert!(refused.stderr.contains(&said), "{}", refused.describe());
    zfs(&["release", "mine", &held]);
    zfs(&["create", "-o", "mountpoint=none", &below]);
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main", "--with-sets"]);
    let said = format!("\"{below}\" is below");
    assert!(refused.stderr.contains(&said), "{}", refused.describe());
    zfs(&["destroy", &below]);
    wait_for_state(&alone, "main", "follows");
    let listed = lockstep.json(&of_cluster("main", &["list"]));
    assert_eq!(listed["sets"].as_array().map(Vec::len), Some(2), "{listed}");
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "other"]);
    assert_gone(&alone, "main", "both destroyed");
}

/// If a folder's name is too long for a socket, the socket is in /tmp, which everybody can reach. Only os_user and
/// root may connect there, because the mirror asks for no password.
#[test]
fn nobody_else_gets_to_a_socket_in_tmp() {
    let alone = Alone::new(empty_pools());
    let folder = alone.fixture.mnt().join("x".repeat(90));
    let mut asked = create_words(&alone, "main");
    let at = asked.iter().position(|word| word == "--directory").expect("it is said");
    asked[at + 1] = folder.display().to_string();
    alone.fixture.lockstep().json(&words(&asked));
    let data = folder.join("data");
    let mirror = Cluster::running_in(&data, &alone.primary.bin, &folder.join("log/server.log"));
    assert_eq!(mirror.socket, Path::new("/tmp"));
    let socket = format!("/tmp/.s.PGSQL.{}", mirror.port);
    let mode = fs::metadata(&socket).expect("the server runs").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{socket}");
    let mut psql = command(mirror.bin.join("psql"), ["-wXAtc", "SELECT current_user"]);
    psql.uid(NOBODY).gid(NOBODY).current_dir("/").env("PGHOST", "/tmp");
    psql.env("PGPORT", mirror.port.to_string()).env("PGUSER", "postgres");
    let outcome = run(psql.env("PGDATABASE", "postgres"));
    assert!(!outcome.ok(), "anybody is a superuser: {}", outcome.describe());
    assert!(outcome.stderr.contains("Permission denied"), "{}", outcome.describe());
    // os_user, and Lockstep as root.
    assert_eq!(must(&mut mirror.tool("psql", ["-XAtc", "SELECT current_user"])).trim(), "postgres");
    wait_for_state(&alone, "main", "follows");
    assert_eq!(backup(&alone.fixture.lockstep(), "main").strategy, "label");
}

/// `zpool import -R` puts a folder before each mount point, including those that Lockstep sets. And such a pool of a host
/// that keeps copies may be read-only by default.
#[test]
fn in_pools_below_a_folder() {
    let alone = Alone::new(empty_pools());
    let root = alone.fixture.root().to_str().expect("the harness' own paths are UTF-8");
    let images = alone.fixture.root().join("images");
    let images = images.to_str().expect("the harness' own paths are UTF-8");
    for pool in &alone.fixture.pools {
        let name = pool.name.as_str();
        patiently("zpool", &["export", name], || ()).expect("it can be exported");
        let import = ["import", "-R", root, "-d", images, name];
        must(command("zpool", import).env("PATH", path_with_turns()));
        zfs(&["set", "readonly=on", name]);
    }
    create(&alone, "main");
    catch_up(&alone, "main");
    wait_for_state(&alone, "main", "follows");
    let lockstep = alone.fixture.lockstep();
    let set = backup(&lockstep, "main");
    assert_eq!(set.volumes.len(), 4, "its own datasets: {}", set.json);
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    assert_gone(&alone, "main", "destroyed");

    // Nothing of the pools can be mounted elsewhere.
    let outside = alone.fixture.root().with_extension("outside");
    let mut asked = create_words(&alone, "main");
    let at = asked.iter().position(|word| word == "--directory").expect("it is said");
    asked[at + 1] = outside.display().to_string();
    let refused = lockstep.expect(exit::USAGE, &words(&asked));
    assert!(refused.stderr.contains("imported with altroot"), "{}", refused.describe());
    assert!(!outside.exists());
    assert_gone(&alone, "main", "refused");
}

/// A mirror is a second cluster: commands that don't name one are told so, and its sets go where they should.
#[test]
fn beside_a_cluster_that_was_alone() {
    let alone = Alone::new(empty_pools());
    let config = alone.fixture.config();
    let state = fs::read_to_string(&config).expect("it was written");
    let url = alone.fixture.root().join("repository");
    let rest = format!(
        "\n[clusters.own]\ndata_directory = \"/nosuch\"\n\n[repositories.offsite]\nurl = \"file://{}\"\n",
        url.display()
    );
    fs::write(&config, format!("{state}{rest}")).expect("it can be written");
    let lockstep = alone.fixture.lockstep();
    let mut asked = create_words(&alone, "main");
    asked.extend(["--repository".into(), "nosuch".into()]);
    let unknown = lockstep.expect(exit::USAGE, &words(&asked));
    assert!(unknown.stderr.contains("no repository \"nosuch\""), "{}", unknown.describe());
    asked.pop();
    asked.push("offsite".into());
    let made = lockstep.expect(exit::DONE, &words(&asked));
    assert!(made.stderr.contains("--cluster own"), "{}", made.describe());
    let file = alone.fixture.root().join("lockstep.d/main.toml");
    let file = fs::read_to_string(file).expect("it is registered");
    assert!(file.contains("repositories = [\"offsite\"]"), "{file}");
    lockstep.expect(exit::DONE, &of_cluster("main", &["repo", "init"]));
    let set = backup(&lockstep, "main");
    assert_eq!(set.json["repositories"][0]["complete"], true, "{}", set.json);
    let which = lockstep.expect(exit::USAGE, &["list"]);
    assert!(which.stderr.contains("default_cluster"), "{}", which.describe());
    fs::write(&config, format!("default_cluster = \"main\"\n{state}{rest}"))
        .expect("it can be written");
    assert_eq!(lockstep.sets(), [set.id]);
}

/// Debian keeps the configuration in /etc, where no base backup includes it.
#[test]
fn primary_with_its_configuration_elsewhere() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    alone.primary.stop(Stop::Fast);
    let etc = alone.fixture.root().join("etc");
    fs::create_dir(&etc).expect("a folder can be made");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(alone.primary.data.join(name), etc.join(name)).expect("it can be moved");
    }
    let conf = etc.join("postgresql.conf");
    let mut text = fs::read_to_string(&conf).expect("it has a text");
    text.push_str(&format!(
        "data_directory = '{}'\nmaintenance_work_mem = '33MB'\n",
        alone.primary.data.display()
    ));
    fs::write(&conf, text).expect("it can be written");
    for path in [etc.clone(), conf, etc.join("pg_hba.conf"), etc.join("pg_ident.conf")] {
        give_to_postgres(&path);
    }
    let by_etc = Cluster { data: etc, ..alone.primary.clone() };
    by_etc.start();
    create(&alone, "main");
    catch_up(&alone, "main");
    let setting = "SHOW maintenance_work_mem";
    assert_eq!(server_of(&alone, "main").value("postgres", setting), "33MB");
    let set = backup(&alone.fixture.lockstep(), "main");
    let (_, restored) = restore(&alone, "main", &set);
    // It accepted connections. The original's pg_hba.conf is unknown, so only the owner may connect.
    let conf = fs::read_to_string(restored.data.join("postgresql.conf")).unwrap_or_default();
    assert!(conf.contains("maintenance_work_mem = '33MB'"), "what is restored has it too: {conf}");
    assert!(!conf.contains("data_directory"), "{conf}");
    let to = alone.fixture.target("again");
    let target = to.to_str().expect("the harness' own paths are UTF-8");
    let arguments = ["restore", &set.id, "--to", target];
    let again = alone.fixture.lockstep().expect(exit::DONE, &of_cluster("main", &arguments));
    assert!(again.stderr.contains("no rules of its primary's pg_hba.conf"), "{}", again.describe());
    by_etc.stop(Stop::Immediate);
}

/// A mirror's own server lets in whoever may open its socket; what is restored from its sets goes by the primary's rules.
#[test]
fn a_set_has_the_rules_of_the_primary() {
    let alone = Alone::new(empty_pools());
    let hba = alone.primary.data.join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("it has a text") + "# the primary's own\n";
    fs::write(&hba, &rules).expect("the test may");
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let set = backup(&alone.fixture.lockstep(), "main");
    let (_, restored) = restore(&alone, "main", &set);
    let found = fs::read_to_string(restored.data.join("pg_hba.conf")).unwrap_or_default();
    assert_eq!(found, rules);
}

const SECRET: &str = r"ge'h\eim :7";

/// A primary reachable only over TCP and TLS, with a password: that is in no log, on no command line, and nobody else
/// can read it.
#[test]
fn password_and_tls() {
    let alone = Alone::new(empty_pools());
    let data = &alone.primary.data;
    let (certificate, key) = (data.join("server.crt"), data.join("server.key"));
    let path = |path: &Path| path.to_str().expect("the harness' own paths are UTF-8").to_owned();
    must(command("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]).args(
        [
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            &path(&key),
            "-out",
            &path(&certificate),
        ],
    ));
    for file in [&certificate, &key] {
        give_to_postgres(file);
        must(command("chmod", ["600", &path(file)]).current_dir("/"));
    }
    // The client side reads it as another user.
    let authority = alone.fixture.root().join("authority.crt");
    fs::copy(&certificate, &authority).expect("a certificate can be copied");
    must(&mut command("chmod", ["644", &path(&authority)]));
    let hba = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n";
    fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf can be written");
    set(
        &alone.primary,
        "listen_addresses = '127.0.0.1'\nssl = on\npassword_encryption = 'scram-sha-256'\n",
    );
    alone.primary.stop(Stop::Fast);
    alone.primary.start();
    let quoted = SECRET.replace('\'', "''");
    alone.primary.execute(&[
        &format!("CREATE ROLE mirror LOGIN REPLICATION PASSWORD '{quoted}'"),
        "GRANT pg_read_all_settings TO mirror",
    ]);
    let password = alone.fixture.root().join("password");
    fs::write(&password, format!("{SECRET}\n")).expect("a file can be written");

    let mut arguments = create_words(&alone, "main");
    let conninfo = |host: &str, more: &str| {
        format!("host={host} hostaddr=127.0.0.1 port={} user=mirror {more}", alone.primary.port)
    };
    let verified =
        conninfo("localhost", &format!("sslmode=verify-full sslrootcert={}", path(&authority)));
    arguments[4] = verified.clone();
    let lockstep = alone.fixture.lockstep();
    let refused = lockstep.expect(exit::FAILED, &words(&arguments));
    assert!(refused.stderr.contains("password"), "{}", refused.describe());
    arguments.extend(["--password-file".to_owned(), path(&password), "--verbose".to_owned()]);
    arguments[4] = format!("{verified} password=x");
    let refused = lockstep.expect(exit::USAGE, &words(&arguments));
    assert!(refused.stderr.contains("--password-file"), "{}", refused.describe());
    // A certificate for another name is refused where names are checked, and only there.
    let another = |mode: &str| {
        conninfo("another", &format!("sslmode={mode} sslrootcert={}", path(&authority)))
    };
    let dry = |from: String| {
        let mut words: Vec<String> = arguments.clone();
        words[4] = from;
        words.push("--dry-run".to_owned());
        lockstep.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(dry(another("verify-full")).code, Some(exit::FAILED));
    assert_eq!(dry(another("verify-ca")).code, Some(exit::DONE));
    assert_eq!(dry(conninfo("localhost", "sslmode=disable")).code, Some(exit::FAILED));
    assert_eq!(dry(conninfo("localhost", "")).code, Some(exit::DONE));

    arguments[4] = verified;
    let done = AtomicBool::new(false);
    let (made, seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| command_lines_until(&done));
        let made = lockstep.run(&words(&arguments));
        done.store(true, Ordering::Relaxed);
        (made, watch.join().expect("the watcher doesn't panic"))
    });
    assert_eq!(made.code, Some(exit::DONE), "{}", made.describe());
    assert!(seen.contains("pg_basebackup"), "nobody watched");
    let secret_parts = [SECRET, r"ge'h\\eim", r"ge'h\eim \:7", "eim :7"];
    for (what, text) in
        [("a command line", &seen), ("stderr", &made.stderr), ("stdout", &made.stdout)]
    {
        for part in secret_parts {
            assert!(!text.contains(part), "the password is on {what}");
        }
    }
    wait_for_state(&alone, "main", "follows");
    // The file that libpq reads is readable by nobody else.
    let passfile = directory(&alone, "main").join("passfile");
    let mode = fs::metadata(&passfile)
        .map(|found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()));
    assert_eq!(mode.map(|mode| mode & 0o777).ok(), Some(0o600));
    for file in ["main/log/server.log", "main/log/fill.log", "main/data/postgresql.auto.conf"] {
        let text = fs::read_to_string(alone.fixture.mnt().join(file)).unwrap_or_default();
        assert!(!text.contains("eim"), "the password is in {file}");
    }
    let set = backup(&lockstep, "main");
    assert_eq!(set.strategy, "label");
    // The password is changed while the mirror's server runs.
    fs::write(&password, "another\n").expect("a file can be written");
    alone.primary.execute(&[
        "ALTER ROLE mirror PASSWORD 'another'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
    ]);
    let seen = wait_for_state(&alone, "main", "not-streaming");
    assert!(seen["hint"].as_str().is_some_and(|hint| hint.contains("mirror start main")), "{seen}");
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    wait_for_state(&alone, "main", "follows");
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    assert_gone(&alone, "main", "destroyed");
}

/// Certificates made as PostgreSQL's manual makes them, which have no extensions and so are of X.509 version 1: the
/// server's and the one that Lockstep shows it.
#[test]
fn certificates_of_version_1() {
    let alone = Alone::new(empty_pools());
    let folder = alone.fixture.root().join("tls");
    fs::create_dir(&folder).expect("a folder can be made");
    let openssl = |line: &str| {
        must(command("openssl", line.split(' ').map(str::to_owned)).current_dir(&folder))
    };
    for name in ["root", "other"] {
        openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=root -keyout {name}.key -out {name}.crt"
        ));
    }
    for (name, subject) in [("server", "localhost"), ("client", "mirror")] {
        openssl(&format!(
            "req -new -newkey rsa:2048 -nodes -subj /CN={subject} -keyout {name}.key -out {name}.csr"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -days 2 -CA root.crt -CAkey root.key -CAcreateserial -out {name}.crt"
        ));
        let text = openssl(&format!("x509 -in {name}.crt -noout -text"));
        assert!(text.contains("Version: 1 "), "this OpenSSL makes others: {text}");
    }
    let data = &alone.primary.data;
    for name in ["server.crt", "server.key", "root.crt"] {
        let copy = data.join(name);
        fs::copy(folder.join(name), &copy).expect("it can be copied");
        give_to_postgres(&copy);
        must(command("chmod", ["600", copy.to_str().expect("it is UTF-8")]).current_dir("/"));
    }
    let hba = "local all all trust\nhostssl all mirror 127.0.0.1/32 cert\nhostssl all plain 127.0.0.1/32 trust\n";
    fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf can be written");
    set(&alone.primary, "listen_addresses = '127.0.0.1'\nssl = on\nssl_ca_file = 'root.crt'\n");
    alone.primary.stop(Stop::Fast);
    alone.primary.start();
    for role in ["mirror", "plain"] {
        alone.primary.execute(&[
            &format!("CREATE ROLE {role} LOGIN REPLICATION"),
            &format!("GRANT pg_read_all_settings TO {role}"),
        ]);
    }

    let lockstep = alone.fixture.lockstep();
    let port = alone.primary.port;
    let dry = |more: &str| {
        let mut arguments = create_words(&alone, "main");
        let tls = folder.display().to_string();
        arguments[4] = format!("port={port} {}", more.replace('@', &format!("{tls}/")));
        arguments.push("--dry-run".to_owned());
        lockstep.run(&words(&arguments))
    };
    let client =
        "host=localhost hostaddr=127.0.0.1 user=mirror sslcert=@client.crt sslkey=@client.key";
    for good in [
        "host=localhost hostaddr=127.0.0.1 user=plain".to_owned(),
        "hostaddr=127.0.0.1 user=plain sslmode=verify-ca sslrootcert=@root.crt".to_owned(),
        format!("{client} sslmode=verify-full sslrootcert=@root.crt"),
        format!("{client} sslmode=verify-full sslrootcert=@server.crt"),
        format!(
            "{client} sslmode=verify-full sslrootcert=@root.crt ssl_max_protocol_version=TLSv1.2"
        ),
        format!("{client} sslmode=require ssl_min_protocol_version=TLSv1.3"),
    ] {
        let outcome = dry(&good);
        assert_eq!(outcome.code, Some(exit::DONE), "{good}: {}", outcome.describe());
    }
    for (bad, code, why) in [
        (
            format!("{client} sslmode=verify-ca sslrootcert=@other.crt"),
            exit::FAILED,
            "BadSignature",
        ),
        (
            format!("{client} sslmode=verify-ca sslrootcert=@client.crt"),
            exit::FAILED,
            "UnknownIssuer",
        ),
        (
            client.replace("=localhost", "=another") + " sslmode=verify-full sslrootcert=@root.crt",
            exit::FAILED,
            "NotValidForName",
        ),
        (client.replace("client.key", "server.key"), exit::FAILED, "KeyMismatch"),
        (format!("{client} sslcertmode=disable"), exit::FAILED, "certificate"),
        (format!("{client} require_auth=none"), exit::USAGE, "require_auth=none"),
        (
            format!("{client} sslmode=verify-ca sslrootcert=@root.crt sslcrl=@crl"),
            exit::USAGE,
            "sslcrl",
        ),
        ("service=db1".to_owned(), exit::USAGE, "service=db1"),
    ] {
        let outcome = dry(&bad);
        assert_eq!(outcome.code, Some(code), "{bad}: {}", outcome.describe());
        assert!(outcome.stderr.contains(why), "{bad}: {}", outcome.describe());
        assert!(outcome.stderr.contains("hint: "), "{bad}: {}", outcome.describe());
    }
}

/// What the primary's own file says about recovery has no effect on a primary, and must have none on its mirror.
#[test]
fn primary_with_settings_of_a_standby() {
    let alone = Alone::new(empty_pools());
    let touched = Path::new("/tmp").join(format!("lockstep-cleaned-{}", std::process::id()));
    let lines = format!(
        "archive_cleanup_command = 'touch {}'\nrecovery_min_apply_delay = '1h'\n\
         recovery_target_time = '2026-01-01 00:00:00+00'\nrecovery_target_action = 'promote'\n\
         restore_command = 'no-such-program %f %p'\nhot_standby_feedback = on\n",
        touched.display()
    );
    set(&alone.primary, &lines);
    alone.primary.execute(&["SELECT pg_reload_conf()"]);
    create(&alone, "main");
    alone.primary.execute(&["CREATE TABLE after AS SELECT 7 AS n", "CHECKPOINT"]);
    catch_up(&alone, "main");
    let mirror = server_of(&alone, "main");
    mirror.execute(&["CHECKPOINT"]);
    assert_eq!(mirror.value("postgres", "SELECT n FROM after"), "7");
    assert_eq!(mirror.value("postgres", "SELECT pg_is_in_recovery()::text"), "true");
    assert_eq!(mirror.value("postgres", "SHOW archive_cleanup_command"), "");
    assert!(!touched.exists(), "the mirror ran the primary's archive_cleanup_command");
    assert_eq!(mirror.value("postgres", "SHOW restore_command"), "");
    assert_eq!(mirror.value("postgres", "SHOW hot_standby_feedback"), "off");
    let held = "SELECT coalesce(xmin::text, 'nothing') FROM pg_replication_slots";
    assert_eq!(alone.primary.value("postgres", held), "nothing", "VACUUM is held back");
    wait_for_state(&alone, "main", "follows");
}

/// A setting that the server wouldn't take, or by which Lockstep wouldn't find it, is refused before anything is made.
#[test]
fn settings_are_checked_first() {
    let alone = Alone::new(empty_pools());
    let lockstep = alone.fixture.lockstep();
    for (setting, why) in [
        ("nope=1", "unrecognized configuration parameter \"nope\""),
        ("shared_buffers=lots", "invalid value for parameter \"shared_buffers\": \"lots\""),
        ("Port=25999", "--port"),
        ("unix_socket_directories=/nowhere", "Lockstep sets it itself"),
    ] {
        let mut arguments = create_words(&alone, "main");
        arguments.extend(["--setting", setting, "--dry-run"].map(str::to_owned));
        let refused = lockstep.expect(exit::USAGE, &words(&arguments));
        assert!(refused.stderr.contains(why), "{setting}: {}", refused.describe());
    }
    let mut arguments = create_words(&alone, "main");
    arguments.extend(
        ["--setting", "work_mem=7MB", "--setting", "a.b=1", "--dry-run"].map(str::to_owned),
    );
    lockstep.expect(exit::DONE, &words(&arguments));
}

/// A mirror is no standby that commits may wait for, or count on.
#[test]
fn primary_that_waits_for_every_standby() {
    let alone = Alone::new(empty_pools());
    let lockstep = alone.fixture.lockstep();
    let arguments = create_words(&alone, "main");
    set(&alone.primary, "synchronous_standby_names = 'ANY 1 (*)'\n");
    alone.primary.execute(&["SELECT pg_reload_conf()"]);
    let said = "synchronous_standby_names is \"ANY 1 (*)\"";
    // The server reads its file a moment later.
    let mut dry = arguments.clone();
    dry.push("--dry-run".to_owned());
    wait_until("the primary waits", PATIENCE, || lockstep.run(&words(&dry)).stderr.contains(said));
    let refused = lockstep.expect(exit::REFUSED, &words(&arguments));
    assert!(refused.stderr.contains(said), "{}", refused.describe());
    assert!(refused.stderr.contains("hint: name the standbys"), "{}", refused.describe());
    assert_gone(&alone, "main", "refused");
}

/// As a mirror of this name makes its slot on another host.
const MAKE_SLOT: &str = "SELECT pg_create_physical_replication_slot('lockstep_mirror_main', true)";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('lockstep_mirror_main')";

/// Two hosts make a mirror of the same name at once: the slower one leaves the faster one's slot alone.
#[test]
fn a_slot_that_another_host_makes_meanwhile() {
    let alone = Alone::new(empty_pools());
    let steps = Steps::new(alone.fixture.root().join("held"));
    steps.hold("mirror.datasets");
    let arguments = create_words(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let mut running = lockstep.clone().with_steps(&steps).spawn(&words(&arguments));
    steps.wait_reached("mirror.datasets", &mut running);
    alone.primary.execute(&[MAKE_SLOT]);
    steps.release("mirror.datasets");
    let outcome = running.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
    assert!(outcome.stderr.contains("the primary has a slot"), "{}", outcome.describe());
    // It is dropped here by its name; only then nothing of the mirror is left.
    alone.primary.execute(&[DROP_SLOT]);
    assert_gone(&alone, "main", "refused");
}

/// The host is given up before it has made its slot, and another one's mirror gets one of that name: that isn't dropped
/// with what is left here.
#[test]
fn a_slot_that_another_host_makes_once_this_one_was_killed() {
    let alone = Alone::new(empty_pools());
    kill_at(&alone.fixture, "mirror.datasets", &words(&create_words(&alone, "main")));
    let lockstep = alone.fixture.lockstep();
    alone.primary.execute(&[MAKE_SLOT]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
    // This fails if there is none.
    alone.primary.execute(&[DROP_SLOT]);
    assert_gone(&alone, "main", "killed before its slot was made");
}

/// Collects the command lines of all of this machine's processes, again and again.
fn command_lines_until(done: &AtomicBool) -> String {
    let mut seen = String::new();
    while !done.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !line.is_empty() && !seen.contains(&line) {
                seen.push_str(&line);
                seen.push('\n');
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// Hardened hosts give root this umask, and os_user has to come to the mirror's folders.
#[test]
fn made_with_a_narrow_umask() {
    let alone = Alone::new(empty_pools());
    let folder = alone.fixture.root().join("deep/er/main");
    let mut asked = create_words(&alone, "main");
    asked[8] = folder.display().to_string();
    let mut program = command("sh", ["-c", "umask 077; exec \"$0\" \"$@\""]);
    program.arg(env!("CARGO_BIN_EXE_lockstep")).arg("--config").arg(alone.fixture.config());
    program.current_dir("/").env("PATH", path_with_turns());
    let made = run(program.args(words(&asked)));
    assert_eq!(made.code, Some(exit::DONE), "{}", made.describe());
    for above in folder.ancestors().skip(1).take(2) {
        let mode = fs::metadata(above).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{above:?}");
    }
    wait_for_state(&alone, "main", "follows");
    alone.fixture.lockstep().expect(exit::DONE, &["mirror", "destroy", "main"]);
    assert!(!alone.fixture.root().join("deep").exists(), "what it made above is gone, too");
}

/// What can't be made there is found out before anything is, and what turns out later leaves nothing behind.
#[test]
fn a_file_system_that_is_mounted_read_only() {
    let alone = Alone::new(empty_pools());
    let lockstep = alone.fixture.lockstep();
    let mount = alone.fixture.root().join("ro");
    let at = mount.display().to_string();
    fs::create_dir(&mount).expect("a folder can be made");
    must(&mut command("mount", ["-t", "tmpfs", "-o", "mode=755", "small", &at]));
    let remount = |how: &str| must(&mut command("mount", ["-o", &format!("remount,{how}"), &at]));
    let mut asked = create_words(&alone, "main");
    asked[8] = mount.join("main").display().to_string();
    let dry: Vec<_> = asked.iter().cloned().chain(["--dry-run".to_owned()]).collect();
    lockstep.expect(exit::DONE, &words(&dry));
    remount("ro");
    for arguments in [&dry, &asked] {
        let failed = lockstep.expect(exit::FAILED, &words(arguments));
        assert!(failed.stderr.contains("Read-only file system"), "{}", failed.describe());
        assert_gone(&alone, "main", "refused");
    }
    remount("rw");
    let steps = Steps::new(alone.fixture.root().join("steps"));
    steps.hold("mirror.recorded");
    let mut running = lockstep.clone().with_steps(&steps).spawn(&words(&asked));
    steps.wait_reached("mirror.recorded", &mut running);
    remount("ro");
    steps.release("mirror.recorded");
    let failed = running.wait(LIMIT);
    assert_eq!(failed.code, Some(exit::FAILED), "{}", failed.describe());
    assert_gone(&alone, "main", "it became read-only meanwhile");
    must(&mut command("umount", [&at]));
}

#[test]
fn refusals() {
    let alone = Alone::new(empty_pools());
    alone.primary.execute(&["CREATE ROLE plain LOGIN"]);
    let lockstep = alone.fixture.lockstep();
    let with = |place: usize, word: &str| {
        let mut all = create_words(&alone, "main");
        all[place] = word.to_owned();
        all
    };
    let pool = &alone.fixture.pools[0].name;
    zfs(&["create", "-o", "mountpoint=none", &format!("{pool}/there")]);
    fs::create_dir(directory(&alone, "full")).expect("a folder can be made");
    fs::write(directory(&alone, "full").join("x"), "x").expect("a file can be written");
    let full = directory(&alone, "full").display().to_string();
    let socket = alone.primary.socket.display();
    let plain = format!("host={socket} port={} user=plain", alone.primary.port);
    let cases = [
        (with(4, "host=/nowhere user=x"), exit::FAILED, "primary"),
        (with(4, &plain), exit::REFUSED, "may not replicate"),
        (with(4, "postgresql://a@b/c"), exit::USAGE, "keywords"),
        (with(4, &plain.replace("port=", "prot=")), exit::USAGE, "keyword \"prot\""),
        (with(4, "port=5432 user=x"), exit::USAGE, "no host"),
        (
            with(4, "host=a,b target_session_attrs=standby"),
            exit::USAGE,
            "target_session_attrs=standby",
        ),
        (with(6, &format!("{pool}/there")), exit::REFUSED, "exists"),
        (with(6, &format!("{pool}/no/such")), exit::REFUSED, "no parent"),
        (with(8, &full), exit::REFUSED, "isn't empty"),
        (with(10, &format!("ts9={pool}/x")), exit::USAGE, "no tablespace \"ts9\""),
        (with(2, "a/b"), exit::USAGE, "a/b"),
    ];
    for (arguments, code, said) in &cases {
        let refused = lockstep.expect(*code, &words(arguments));
        assert!(refused.stderr.contains(said), "{said:?}: {}", refused.describe());
        assert!(refused.stderr.contains("hint: "), "{}", refused.describe());
    }
    for name in ["status", "start", "stop", "destroy", "recreate"] {
        let refused = lockstep.expect(exit::USAGE, &["mirror", name, "nobody"]);
        assert!(refused.stderr.contains("no mirror \"nobody\""), "{}", refused.describe());
    }
    zfs(&["destroy", &format!("{pool}/there")]);
    fs::remove_dir_all(directory(&alone, "full")).expect("a folder can be removed");
    assert_gone(&alone, "main", "refused");
    create(&alone, "main");
    let again = lockstep.expect(exit::REFUSED, &words(&create_words(&alone, "main")));
    assert!(again.stderr.contains("already"), "{}", again.describe());
}
