# shellcheck shell=bash
# What the tests in this folder share. A test begins with
#
#   . "$(dirname "$0")/lib.sh"
#   run_in_guest [--push FILE]...
#
# and can then be started on the host like any program: it runs itself in the guest, from a fresh state, and returns the
# status from there. Everything after that line runs in the guest, as root, with /dev/vdb and /dev/vdc empty.
#
# What could go wrong: the guest is slow. So nothing here waits less than a minute for what natively takes a second.
set -uo pipefail

LIB=$(realpath "${BASH_SOURCE[0]}")
PG_BIN=/usr/lib/postgresql/15/bin
PG_PORT=5432
PG_ROOT=/srv/pg

# shellcheck disable=SC2120  # most tests push nothing
run_in_guest() { # [--push FILE]...
  [ ! -e /etc/openzfs-guest ] || return 0
  exec "$(dirname "$0")/../openzfs-vm" run "$@" "$0"
}

# An emulated clock may run ahead of the host's, from which the guest's clock is set at its next start. A real machine's
# clock continues through a power cut, and snapshots taken before it aren't dated later than now.
note_clock() { date +%s >/root/clock; }
keep_clock() { [ "$(date +%s)" -ge "$(cat /root/clock)" ] || date -s "@$(cat /root/clock)" >/dev/null; }

# --------------------------------------------------------------------------------------------------------------- checks

CHECKS_PASSED=0 CHECKS_FAILED=0

passed() { CHECKS_PASSED=$((CHECKS_PASSED + 1)); echo "ok: $1 [${SECONDS}s]"; }

failed() { # WHAT [DETAIL]
  CHECKS_FAILED=$((CHECKS_FAILED + 1))
  echo "FAILED: $1 [${SECONDS}s]"
  local detail=${2:0:1000}         # pg_amcheck can name every row of a table
  [ -z "$detail" ] || echo "    ${detail//$'\n'/$'\n    '}"
}

expect() { # WHAT COMMAND...: it succeeds
  local what=$1 output; shift
  if output=$("$@" 2>&1); then passed "$what"; else failed "$what" "'$*' returned $?: $output"; fi
}

expect_failure() { # WHAT TEXT COMMAND...: it fails, and what it prints contains the text
  local what=$1 text=$2 output; shift 2
  if output=$("$@" 2>&1); then
    failed "$what" "'$*' succeeded: $output"
  elif [[ $output != *"$text"* ]]; then
    failed "$what" "'$*' failed without saying '$text': $output"
  else
    passed "$what"
  fi
}

expect_equal() { # WHAT WANTED FOUND
  if [ "$2" = "$3" ]; then passed "$1"; else failed "$1" "wanted '$2', found '$3'"; fi
}

# Ends the test. A test that stopped half way because of its own error never gets here, so it doesn't count as passed.
finish() {
  echo "$CHECKS_PASSED checks passed, $CHECKS_FAILED failed"
  [ "$CHECKS_FAILED" = 0 ]
  exit
}

die() { echo "error: $*" >&2; exit 1; }

# For preparing a test: prints nothing if the command succeeds, and ends the test if it fails.
must() { # COMMAND...
  local output
  output=$("$@" 2>&1) || die "'$*' returned $?: $output"
}

# ----------------------------------------------------------------------------------------------------------- PostgreSQL

as_postgres() { (cd /tmp && setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/var/lib/postgresql "$@"); }

# The fixtures. Both make a running cluster whose parts are on three datasets, with pgbench's tables in the tablespace
# and their indexes in the data directory, so that a backup which mixes two moments can't go unnoticed. There is no
# checkpoint after CREATE TABLESPACE: replaying this WAL on the same host writes into the original's tablespace, unless
# that is hidden (start_cluster_over hides it).
cluster_in_two_pools() {
  must zpool create -O mountpoint=none -O atime=off -O compression=lz4 tank /dev/vdb
  must zpool create -O mountpoint=none -O atime=off -O compression=lz4 fast /dev/vdc
  must zfs create -o mountpoint="$PG_ROOT/data" -o recordsize="${RECORDSIZE:-8k}" tank/pgdata
  must zfs create -o mountpoint="$PG_ROOT/wal" fast/pgwal
  must zfs create -o mountpoint="$PG_ROOT/space one" -o recordsize="${RECORDSIZE:-8k}" "fast/space one"
  datasets_in_two_pools
  cluster
}

# Their names, also after the guest was restarted.
# shellcheck disable=SC2034  # for the tests
datasets_in_two_pools() {
  DATA_DATASET=tank/pgdata WAL_DATASET=fast/pgwal SPACE_DATASET="fast/space one"
}

cluster_in_one_pool() {
  must zpool create -O mountpoint=none -O atime=off -O compression=lz4 tank /dev/vdb
  must zfs create -o mountpoint="$PG_ROOT/data" -o recordsize="${RECORDSIZE:-8k}" tank/pgdata
  must zfs create -o mountpoint="$PG_ROOT/wal" tank/pgwal
  must zfs create -o mountpoint="$PG_ROOT/space one" -o recordsize="${RECORDSIZE:-8k}" "tank/space one"
  # shellcheck disable=SC2034  # for the tests
  DATA_DATASET=tank/pgdata WAL_DATASET=tank/pgwal SPACE_DATASET="tank/space one"
  cluster
}

cluster() {
  must chown postgres: "$PG_ROOT/data" "$PG_ROOT/wal" "$PG_ROOT/space one"
  must chmod 700 "$PG_ROOT/data" "$PG_ROOT/wal" "$PG_ROOT/space one"
  must as_postgres "$PG_BIN/initdb" -D "$PG_ROOT/data" --waldir="$PG_ROOT/wal" --data-checksums --auth=trust --no-sync
  # The emulated disks ignore flushes anyway; synchronous_commit=off only saves waiting time.
  as_postgres tee -a "$PG_ROOT/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
shared_buffers = 64MB
max_wal_size = 256MB
synchronous_commit = off
log_checkpoints = on
CONF
  start_cluster "$PG_ROOT/data" "$PG_PORT"
  must sql "create tablespace space_one location '$PG_ROOT/space one'"
  must sql "create extension amcheck"
  must as_postgres "$PG_BIN/pgbench" -q -i -s "${PG_SCALE:-1}" -p "$PG_PORT" --tablespace=space_one --index-tablespace=pg_default
}

start_cluster() { # DATA_DIRECTORY PORT
  must as_postgres "$PG_BIN/pg_ctl" -D "$1" -o "-p $2" -l "/tmp/postgresql-$2.log" -t 600 -w start
}

# Starts a copy in its own mount namespace, in which the original's tablespace path shows the copy's own tablespace.
start_cluster_over() { # SPACE_DIRECTORY DATA_DIRECTORY PORT
  # shellcheck disable=SC2016  # the inner shell's
  must unshare --mount bash -c '. "$0"; must mount --bind "$1" "$PG_ROOT/space one"; start_cluster "$2" "$3"' "$LIB" "$@"
}

stop_cluster() { # DATA_DIRECTORY [MODE]
  must as_postgres "$PG_BIN/pg_ctl" -D "$1" -m "${2:-fast}" -t 600 -w stop
}

sql() { # STATEMENT [PORT]
  as_postgres psql -XAtq -v ON_ERROR_STOP=1 -p "${2:-$PG_PORT}" -c "$1" postgres
}

# Runs pgbench in the background until stop_load; it ends by itself after twenty minutes. Its rate is limited, because
# at full speed it would take both processors from everything else.
start_load() {
  as_postgres "$PG_BIN/pgbench" -n -c 2 -R 15 -T 1200 -p "$PG_PORT" >/tmp/pgbench.log 2>&1 &
  LOAD=$!
  local tries
  for ((tries = 0; tries < 60; tries++)); do
    [ "$(sql 'select count(*) > 20 from pgbench_history')" != t ] || return 0
    sleep 1
  done
  die "pgbench makes no transactions: $(cat /tmp/pgbench.log)"
}

stop_load() {
  pkill -INT -P "$LOAD" 2>/dev/null || kill -INT "$LOAD" 2>/dev/null
  wait "$LOAD" 2>/dev/null
  ! grep -E 'error|aborted|FATAL' /tmp/pgbench.log || failed "pgbench ran without errors" "$(cat /tmp/pgbench.log)"
}

# Writes the configuration of one cluster; stdin is appended to the cluster's table.
write_cluster_config() { # STATE_DIR
  mkdir -p /etc/lockstep
  {
    cat <<TOML
state_dir = "$1"

[clusters.main]
data_directory = "$PG_ROOT/data"
host = "/run/postgresql"
port = $PG_PORT
user = "postgres"
os_user = "postgres"
bin_dir = "$PG_BIN"
TOML
    cat
  } >/etc/lockstep/lockstep.toml
}

# Lists the complete packs of a repository in a folder.
packs_of() { # FOLDER
  find "$1/clusters/main/packs" -type f -name '??????????????????????????' 2>/dev/null | sort
}

# Ships the latest set, kills the shipment once a pack has been stored, and leaves the list of existing packs in
# $interrupted.
interrupt_shipment() { # FOLDER OF THE REPOSITORY
  "$lockstep" ship latest >/dev/null 2>&1 &
  local shipment=$! tries
  for ((tries = 0; tries < 240; tries++)); do [ -z "$(packs_of "$1")" ] || break; sleep 0.5; done
  kill -9 $shipment
  wait $shipment 2>/dev/null
  interrupted=$(packs_of "$1")
  expect "a pack was stored, and no set" test -n "$interrupted" -a -z "$("$lockstep" --json list --from repository | jq -r '.sets[]')"
}

# Runs the program $lockstep with JSON output into $output, and shows its stderr if it fails.
run_lockstep() { # WHAT ARGUMENT...
  local what=$1 status=0; shift
  "$lockstep" --json "$@" >"$output" 2>/tmp/lockstep.err || status=$?
  if [ $status = 0 ]; then passed "$what"; else failed "$what" "lockstep $* returned $status: $(cat /tmp/lockstep.err "$output")"; fi
  return $status
}

# Prints the value at a path in a JSON document, or nothing; 'null' never looks like a value.
json() { # FILE JQ_FILTER
  jq -r "$2 // empty" "$1"
}

# Every pgbench transaction adds one number to a row of each of four tables. If a copy holds half a transaction or the
# pages of two moments, its sums differ or an index doesn't match its heap.
expect_consistent() { # WHAT [PORT]; with PGHOST where the socket lies elsewhere
  local port=${2:-$PG_PORT}
  expect_equal "$1: pgbench's four sums agree" 1 "$(sql "
    select count(distinct s) from (select sum(abalance) from pgbench_accounts union all select sum(bbalance) from pgbench_branches
      union all select sum(tbalance) from pgbench_tellers union all select coalesce(sum(delta), 0) from pgbench_history) t(s)" "$port")"
  expect_equal "$1: no row is missing" "$((100000 * ${PG_SCALE:-1}))" "$(sql 'select count(*) from pgbench_accounts' "$port")"
  expect "$1: pg_amcheck" as_postgres "$PG_BIN/pg_amcheck" -p "$port" --heapallindexed postgres
}
