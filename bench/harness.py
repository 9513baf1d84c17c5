"""What the benches share: throwaway ZFS pools, PostgreSQL clusters on them, and how things are measured.

A bench calls `with harness.bench(arguments) as bench:` and gets clusters from `bench.cluster(...)`. All of it lies
below one folder in /var/tmp and in a mount namespace of its own, with its own zfs-fuse where the kernel has no
OpenZFS. At the end, also after a failure or an interrupt, servers are stopped, pools destroyed, files removed; with
--keep the clusters stay in --work for the next bench, which saves the time it takes to make them.

Nothing here runs two `zfs` commands at once: zfs-fuse 0.7.0 hangs when two of them mount at the same time.
"""

import argparse, contextlib, ctypes, json, os, pathlib, pwd, random, resource, shutil, signal, socket, statistics
import subprocess, sys, tempfile, time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PG = pathlib.Path(os.environ.get("PG_BIN", "/usr/lib/postgresql/15/bin"))
POSTGRES = pwd.getpwnam("postgres")
TABLESPACES = ("accounts", "rest")
SCALE_PER_GB = 70  # pgbench's scale for 1 GB of tables and indexes


# ---------------------------------------------------------------- running programs

def run(*argv, user=None, check=True, env=None):
    """Runs a program, as postgres where `user` says so; returns its stdout, or raises with its stderr."""
    argv = [str(word) for word in argv]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env=env, stdin=subprocess.DEVNULL,
                          **({"user": POSTGRES.pw_uid, "group": POSTGRES.pw_gid, "extra_groups": []} if user else {}))
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}\nexit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def run_and_watch(*argv, user=None, env=None):
    """Like `run`, but also returns the peak of its resident memory, which is at least this process's own."""
    argv = [str(word) for word in argv]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd="/", env=env,
                                 **({"user": POSTGRES.pw_uid, "group": POSTGRES.pw_gid, "extra_groups": []} if user else {}))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        text, said = out.read().decode(), errors.read().decode(errors="replace")
    if child.returncode:
        raise RuntimeError(f"{' '.join(argv)}\nexit code {child.returncode}\n{text[-2000:]}{said[-2000:]}")
    return text, usage.ru_maxrss * 1024


class Measured:
    """A program's stdout, its seconds by the clock, the CPU seconds of it and all its descendants, and the most memory
    that any one of them had resident, in bytes."""

    def __init__(self, *argv, user=None, env=None):
        reap()
        cpu, began = children_cpu(), time.monotonic()
        self.stdout, self.peak = run_and_watch(*argv, user=user, env=env)
        self.wall = time.monotonic() - began
        time.sleep(0.1)
        reap()  # a helper that outlived its parent has become a child of this process
        self.cpu = children_cpu() - cpu


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reap():
    """Reaps orphans, which this process adopts (see `bench`), so that their CPU time counts."""
    for child in orphans():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


def orphans():
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := stat(entry.name)) and fields[0] == "Z" and int(fields[1]) == os.getpid():
            yield int(entry.name)


def stat(pid):
    """The fields of /proc/PID/stat after the program's name; None if the process is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def tree_cpu(*roots):
    """CPU seconds so far of running processes and their descendants, including those that have ended."""
    fields = {int(e.name): f for e in os.scandir("/proc") if e.name.isdigit() and (f := stat(e.name))}
    tree, ticks = set(roots) & set(fields), 0
    while more := {pid for pid, f in fields.items() if int(f[1]) in tree} - tree:
        tree |= more
    for pid in tree:
        ticks += sum(int(value) for value in fields[pid][11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def folder_bytes(path):
    """The total size of all files in a folder; files that vanish meanwhile don't count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the machine: namespace, ZFS, clean-up

def parser(description):
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=pathlib.Path, help="the folder of clusters and pools; a temporary one where left out")
    arguments.add_argument("--keep", action="store_true", help="leave the clusters in --work for the next bench")
    arguments.add_argument("--json", type=pathlib.Path, help="append every single measurement to this file, one JSON object a line")
    return arguments


@contextlib.contextmanager
def bench(options, *programs):
    """Sets up namespace, ZFS and work folder; yields a Bench and cleans up after it. `programs` must be installed."""
    if os.environ.get("LOCKSTEP_BENCH_INSIDE") is None:
        env = os.environ | {"LOCKSTEP_BENCH_INSIDE": "1"}
        os.execvpe("unshare", ["unshare", "--mount", "--propagation", "private", "--", sys.executable, *sys.argv], env)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    this = Bench(options, programs)
    try:
        this.start_zfs()
        yield this
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        this.clean_up()


class Bench:
    def __init__(self, options, programs):
        self.options = options
        self.work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="lockstep-bench.", dir="/var/tmp"))
        self.work.mkdir(exist_ok=True)
        self.work.chmod(0o755)
        self.clusters, self.daemon = [], None
        target = os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")
        self.lockstep = pathlib.Path(os.environ.get("LOCKSTEP", pathlib.Path(target) / "release/lockstep"))
        if not self.lockstep.exists():
            sys.exit(f"error: there is no {self.lockstep}\nhint: cargo build --release -p lockstep")
        for program in programs:
            if not shutil.which(program):
                sys.exit(f"error: {program} isn't installed\nhint: apt-get install {program}")

    def start_zfs(self):
        if os.path.exists("/dev/zfs"):
            return
        for folder in ("/run/zfs", "/run/lock/zfs", "/var/lib/zfs"):
            os.makedirs(folder, exist_ok=True)
            run("mount", "-t", "tmpfs", "own", folder)
        pid_file = self.work / "zfs-fuse.pid"
        pid_file.unlink(missing_ok=True)
        run("zfs-fuse", "-p", pid_file)
        for _ in range(100):
            if subprocess.run(["zpool", "list"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        self.daemon = int(pid_file.read_text())

    def cluster(self, name, gb, tablespaces=TABLESPACES, recordsize="8K"):
        cluster = Cluster(self, name, gb, tablespaces, recordsize)
        self.clusters.append(cluster)
        cluster.open()
        return cluster

    def record(self, **what):
        if self.options.json:
            with self.options.json.open("a") as file:
                file.write(json.dumps(what) + "\n")

    def clean_up(self):
        kept = self.options.keep and all(cluster.whole for cluster in self.clusters)
        say("cleaning up" if not kept else f"leaving the clusters in {self.work}")
        for cluster in self.clusters:
            with contextlib.suppress(Exception):
                cluster.close(keep=kept)
        for mount in reversed(pathlib.Path("/proc/self/mounts").read_text().splitlines()):
            if str(self.work) in mount:
                run("umount", "-l", mount.split()[1].replace("\\040", " "), check=False)
        if self.daemon:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon, signal.SIGTERM)
                for _ in range(50):
                    reap()
                    os.kill(self.daemon, 0)
                    time.sleep(0.1)
        if not kept:
            shutil.rmtree(self.work, ignore_errors=True)


# ---------------------------------------------------------------- a cluster

class Cluster:
    """A pgbench database of `gb` GB: data, wal and the first half of the tablespaces beyond two in one pool, the
    others in a second pool; with two tablespaces that is four datasets, two in each pool."""

    def __init__(self, bench, name, gb, tablespaces, recordsize):
        self.bench, self.name, self.gb, self.tablespaces, self.recordsize = bench, name, gb, tablespaces, recordsize
        self.root = bench.work / name
        self.scale = max(1, round(gb * SCALE_PER_GB))
        self.rows = self.scale * 100_000
        self.pools = [f"lsbench-{os.getpid() if not bench.options.keep else 'kept'}-{name}-{x}" for x in "ab"]
        self.data, self.sockets, self.state = self.root / "a/data", self.root / "run", self.root / "state"
        self.port = free_port()
        self.load, self.whole = None, False
        self.env = os.environ | {"PGHOST": str(self.sockets), "PGPORT": str(self.port), "PGUSER": "postgres",
                                 "PGDATABASE": "postgres", "LOCKSTEP_CONFIG": str(self.root / "lockstep.toml")}

    def open(self):
        if (self.root / "complete").exists():
            self.pools = (self.root / "complete").read_text().split()
            for pool in self.pools:
                run("zpool", "import", "-d", self.root / "images", pool)
            self.whole = True
            self.forget_sets()
        else:
            self.build()
        self.set_port()
        self.start()
        self.whole = True

    # ---- making it

    def build(self):
        """Makes it on the plain file system, which takes a third of the time, and copies it to the datasets."""
        say(f"{self.name}: making a cluster of {self.gb} GB (pgbench scale {self.scale})")
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / "images").mkdir(parents=True)
        plain = self.root / "plain"
        for folder in (self.sockets, plain, *(plain / t for t in self.tablespaces)):
            folder.mkdir()
            os.chown(folder, POSTGRES.pw_uid, POSTGRES.pw_gid)
        run(PG / "initdb", "-k", "-A", "trust", "-D", plain / "data", user=True)
        self.pg_ctl("start", plain / "data", f"-p {self.port} -k {self.sockets} -c listen_addresses= -c fsync=off "
                    "-c wal_level=minimal -c max_wal_senders=0 -c max_wal_size=4GB -c maintenance_work_mem=512MB")
        for t in self.tablespaces:
            self.sql(f"CREATE TABLESPACE {t} LOCATION '{plain / t}'")
        run(PG / "pgbench", "-q", "-i", "-s", self.scale, f"--tablespace={self.tablespaces[0]}",
            f"--index-tablespace={self.tablespaces[1]}", env=self.env)
        for table in ("history", "tellers"):
            self.sql(f"ALTER TABLE pgbench_{table} SET TABLESPACE pg_default")
        for t in self.tablespaces[2:]:
            self.sql(f"CREATE TABLE in_{t} TABLESPACE {t} AS SELECT n FROM generate_series(1, 10000) n")
        self.pg_ctl("stop", plain / "data")
        self.make_pools()
        say(f"{self.name}: copying it to its datasets")
        run("cp", "-a", f"{plain}/data/.", self.data)
        run("sh", "-c", 'mv "$1"/pg_wal/* "$2" && rmdir "$1/pg_wal" && ln -s "$2" "$1/pg_wal"', "sh", self.data, self.root / "a/wal")
        for t in self.tablespaces:
            run("cp", "-a", f"{plain / t}/.", self.place(t))
        for link in (self.data / "pg_tblspc").iterdir():
            to = self.place(os.path.basename(os.readlink(link)))
            link.unlink()
            link.symlink_to(to)
        shutil.rmtree(plain)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"include '{self.root}/bench.conf'\n")
        (self.root / "complete").write_text(" ".join(self.pools))

    def make_pools(self):
        for pool, x, size in zip(self.pools, "ab", (8, 6 + 2 * self.gb)):
            image = self.root / f"images/{x}.img"
            run("truncate", "-s", f"{int(size)}G", image)
            run("zpool", "create", "-m", self.root / x, pool, image)
            run("zfs", "set", f"recordsize={self.recordsize}", pool)
        for path in (self.data, self.root / "a/wal", *map(self.place, self.tablespaces)):
            run("zfs", "create", f"{self.pools['ab'.index(path.parent.name)]}/{path.name}")
            os.chown(path, POSTGRES.pw_uid, POSTGRES.pw_gid)
            path.chmod(0o700)

    def place(self, tablespace):
        index, others = self.tablespaces.index(tablespace), len(self.tablespaces) - 2
        return self.root / ("a" if index >= 2 and index < 2 + others // 2 else "b") / tablespace

    def set_port(self):
        (self.root / "bench.conf").write_text(
            f"port = {self.port}\nlisten_addresses = ''\nunix_socket_directories = '{self.sockets}'\n"
            "shared_buffers = 256MB\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\narchive_mode = on\n"
            "archive_command = '/bin/true'\nautovacuum = off\n")
        (self.root / "lockstep.toml").write_text(
            f'state_dir = "{self.state}"\n[clusters.{self.name}]\ndata_directory = "{self.data}"\n'
            f'host = "{self.sockets}"\nport = {self.port}\nbin_dir = "{PG}"\n')

    # ---- running it

    def pg_ctl(self, what, data, options=None, mode="fast"):
        words = ["-m", mode] if what == "stop" else ["-l", self.sockets / "server.log", "-o", options or ""]
        run(PG / "pg_ctl", "-s", "-t", "300", "-w", "-D", data, *words, what, user=True)

    def start(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.pg_ctl("start", self.data)
        self.postmaster = int((self.data / "postmaster.pid").read_text().split()[0])

    def sql(self, statement, port=None, host=None):
        where = ["-h", host or self.sockets, "-p", port or self.port]
        return run(PG / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", *where, "-c", statement, env=self.env).strip()

    def start_load(self, rate, clients=2):
        """Starts a constant load of `rate` pgbench transactions per second."""
        self.load = subprocess.Popen([PG / "pgbench", "-n", "-c", str(clients), "-R", str(rate), "-T", "86400"], env=self.env,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop_load(self):
        if self.load:
            self.load.terminate()
            self.load.wait()
            self.load = None

    def update_rows(self, count=1000):
        """Makes random single-row updates, spread over the whole table."""
        for first in range(0, count, 10_000):
            rows = ",".join(str(random.randint(1, self.rows)) for _ in range(min(10_000, count - first)))
            self.sql(f"UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN ({rows})")

    # ---- lockstep on it

    def ls(self, *words):
        """Runs `lockstep --json WORDS`; returns the answer and the measurements."""
        measured = Measured(self.bench.lockstep, "--json", *words, env=self.env)
        return json.loads(measured.stdout), measured

    def remove_restored(self, answer):
        """Removes a restored cluster as an administrator would: stops it and destroys its datasets."""
        if answer["started"]:
            self.pg_ctl("stop", answer["data_directory"], mode="immediate")
        for dataset in answer["datasets"]:
            self.destroy(dataset)
        shutil.rmtree(answer["directory"])

    def destroy(self, name):
        for _ in range(60):
            if subprocess.run(["zfs", "destroy", name], capture_output=True).returncode == 0:
                return
            time.sleep(0.5)
        run("zfs", "destroy", name)

    def used(self):
        """Returns the bytes that both pools use, once ZFS has written everything out."""
        os.sync()
        time.sleep(6)  # a transaction group is written every five seconds
        return sum(int(run("zfs", "get", "-Hp", "-o", "value", "used", pool)) for pool in self.pools)

    def forget_sets(self):
        """Removes every set, so that each bench begins with the same pools."""
        for pool in self.pools:
            for kind in ("filesystem", "snapshot"):
                for name in run("zfs", "list", "-H", "-t", kind, "-o", "name", "-r", pool).split():
                    if kind == "snapshot" and "@lockstep" in name:
                        run("zfs", "release", "lockstep", name, check=False)
                        self.destroy(name)
                    elif kind == "filesystem" and "/lockstep-" in name:
                        self.destroy(name)
        shutil.rmtree(self.state, ignore_errors=True)

    def close(self, keep):
        self.stop_load()
        for pid_file in self.root.glob("**/postmaster.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT if pid_file.parent == self.data else signal.SIGQUIT)
        for _ in range(100):
            if not (self.data / "postmaster.pid").exists():
                break
            time.sleep(0.1)
        time.sleep(1)
        for pool in self.pools:
            for _ in range(5):
                if subprocess.run(["zpool", *(["export"] if keep else ["destroy", "-f"]), pool], capture_output=True).returncode == 0:
                    break
                time.sleep(2)


# ---------------------------------------------------------------- pgBackRest

class PgBackRest:
    """pgBackRest on a cluster: two processes, lz4, --start-fast, a repository in a folder next to the cluster."""

    def __init__(self, cluster):
        self.cluster, self.root = cluster, cluster.root / "repository"
        self.configuration = cluster.root / "pgbackrest.conf"
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in ("backups", "lock", "log", "spool"):
            (self.root / folder).mkdir(parents=True)
        for path in (self.root, *self.root.iterdir()):
            os.chown(path, POSTGRES.pw_uid, POSTGRES.pw_gid)
        self.configuration.write_text(
            f"[global]\nrepo1-path={self.root}/backups\nrepo1-retention-full=99\nlock-path={self.root}/lock\n"
            f"log-path={self.root}/log\nlog-level-file=off\nlog-level-console=warn\nspool-path={self.root}/spool\n"
            f"process-max=2\ncompress-type=lz4\nstart-fast=y\n[main]\npg1-path={cluster.data}\npg1-port={cluster.port}\n"
            f"pg1-socket-path={cluster.sockets}\n")
        self.run("stanza-create")
        cluster.sql(f"ALTER SYSTEM SET archive_command = 'pgbackrest --config={self.configuration} --stanza=main archive-push %p'")
        cluster.sql("SELECT pg_reload_conf()")

    def run(self, *words):
        return Measured("pgbackrest", f"--config={self.configuration}", "--stanza=main", *words, user=True)

    def restore(self, to):
        """Restores the newest backup to `to`/data and `to`/tablespaces, which are created; doesn't start the server."""
        for folder in (to, to / "data"):
            folder.mkdir(mode=0o700)
            os.chown(folder, POSTGRES.pw_uid, POSTGRES.pw_gid)
        return self.run(f"--pg1-path={to}/data", f"--tablespace-map-all={to}/tablespaces", "restore")

    def bytes(self):
        """What it has stored: backups and archived WAL."""
        return folder_bytes(self.root / "backups")

    def remove(self):
        self.cluster.sql("ALTER SYSTEM RESET archive_command")
        self.cluster.sql("SELECT pg_reload_conf()")
        shutil.rmtree(self.root)


# ---------------------------------------------------------------- tables

def median(values):
    return statistics.median(list(values))


def markdown(head, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def size(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
