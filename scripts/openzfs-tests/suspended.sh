#!/bin/bash
# suspended.sh -- a pool loses its disk and is suspended: a process that reads a file there waits in the kernel for good,
# and can't be killed. So nothing may touch it: not a check, nor another cluster's restore, nor the one from a repository.
#
# The disk is a device-mapper table over a loop device, which is replaced by one that only returns errors.
. "$(dirname "$0")/lib.sh"
run_in_guest --push "${LOCKSTEP_BIN:-$(dirname "$0")/../../target/debug/lockstep}"

lockstep=/usr/local/bin/$(cd /usr/local/bin && ls)      # the only thing there, whatever its name was

# Runs a command that must end within two minutes with this status, and say this. What hangs can't be killed.
expect_end() { # WHAT STATUS-PATTERN TEXT COMMAND...
  local what=$1 wanted=$2 text=$3 status=0 waited said; shift 3
  "$@" >/tmp/said 2>&1 &
  for ((waited = 0; waited < 120; waited++)); do kill -0 $! 2>/dev/null || break; sleep 1; done
  if kill -0 $! 2>/dev/null; then failed "$what" "'$*' hangs: $(cat "/proc/$!/stack")"; return; fi
  wait $! || status=$?
  said=$(cat /tmp/said)
  # shellcheck disable=SC2053  # a pattern
  if [[ $status == $wanted ]] && [[ $said == *"$text"* ]]; then passed "$what"; else failed "$what" "'$*' returned $status: $said"; fi
}

# --- cluster main has its data directory on pool sus; cluster second isn't on it --------------------------------------------

cluster_in_two_pools
stop_cluster "$PG_ROOT/data"
modprobe loop
truncate -s 1500M /var/sus.img
loop=$(losetup -f --show /var/sus.img) || die "there is no loop device"
sectors=$(blockdev --getsz "$loop")
must dmsetup create sus --table "0 $sectors linear $loop 0"
must zpool create -O mountpoint=none sus /dev/mapper/sus
must zfs create -o mountpoint=/srv/sus sus/d
must zfs create -o mountpoint=/srv/state sus/state
must zfs create -o mountpoint=/srv/second tank/second
must zfs create -o mountpoint=/repository tank/repository
must cp -a "$PG_ROOT/data/." /srv/sus/
must rm -r "${PG_ROOT:?}/data/global"
must chown postgres: /srv/sus /srv/second
must chmod 700 /srv/sus /srv/second
must as_postgres "$PG_BIN/initdb" -D /srv/second --auth=trust --no-sync
as_postgres tee -a /srv/second/postgresql.conf >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
CONF
write_cluster_config /var/lib/lockstep <<TOML
repositories = ["here"]

[repositories.here]
url = "file:///repository/lockstep"

[clusters.second]
data_directory = "/srv/second"
host = "/run/postgresql"
port = 5433
user = "postgres"
os_user = "postgres"
bin_dir = "$PG_BIN"
TOML
must sed -i "s#\"$PG_ROOT/data\"#\"/srv/sus\"#" /etc/lockstep/lockstep.toml
start_cluster /srv/sus "$PG_PORT"
start_cluster /srv/second 5433
must "$lockstep" --cluster main repo init
must "$lockstep" --cluster main backup
must "$lockstep" --cluster second backup
set=$("$lockstep" --json --cluster main list | jq -r '.sets[-1].set')
must "$lockstep" mirror create copy --from "host=/run/postgresql port=5433 user=postgres" --dataset sus/copy --directory /srv/copy --port 5509
sed 's#^state_dir = .*#state_dir = "/srv/state"#' /etc/lockstep/lockstep.toml > /etc/lockstep/there.toml
must "$lockstep" --config /etc/lockstep/there.toml --cluster second backup
sed 's#^url = .*#url = "file:///srv/state/repository"#' /etc/lockstep/lockstep.toml > /etc/lockstep/far.toml

# --- its disk is gone ----------------------------------------------------------------------------------------------------

replace_disk() { # TABLE
  must dmsetup load sus --table "$1"
  must dmsetup suspend --nolockfs --noflush sus
  must dmsetup resume sus
}
replace_disk "0 $sectors error"
dd if=/dev/urandom of=/srv/sus/junk bs=1M count=8 2>/dev/null &
sleep 1
sync -f /srv/sus &
for ((tries = 0; tries < 60; tries++)); do [[ $(zpool list -H -o health sus) != SUSPENDED ]] || break; sleep 1; done
expect_equal "the pool is suspended" SUSPENDED "$(zpool list -H -o health sus)"

words='pool "sus" is suspended'
expect_end "check reports it" 3 "$words" "$lockstep" --cluster main check
expect_end "check of the other cluster" "[03]" "sets" "$lockstep" --cluster second check
expect_end "list shows the sets" 3 "zpool clear sus" "$lockstep" --cluster main list
expect_end "prune gives up what is named" 0 "$words" "$lockstep" --cluster main prune --local --set "$set" --dry-run
expect_end "a backup is refused" 4 "$words" "$lockstep" --cluster main backup
expect_end "a restore from its snapshots is refused" 4 "$words" "$lockstep" --cluster main restore latest --to /srv/r1
expect_end "a restore from the repository" 0 "" "$lockstep" --cluster main restore latest --from repository --as files --to /srv/r2 --start --port 5507
expect_end "a restore of the other cluster" 0 "" "$lockstep" --cluster second restore latest --to /srv/r3
expect_end "a clone of the other cluster" 0 "" "$lockstep" --cluster second clone create dev
expect_end "a backup of the other cluster" 0 "" "$lockstep" --cluster second backup
for command in check list backup; do
  expect_end "$command with state_dir there" 4 "$words" "$lockstep" --config /etc/lockstep/there.toml --cluster second "$command"
done
for command in "init here" "list here" "key list here" "check here"; do
  # shellcheck disable=SC2086  # words
  expect_end "repo $command with the repository there" 4 "$words" "$lockstep" --config /etc/lockstep/far.toml --cluster main repo $command
done
expect_end "the state of a mirror" 3 "$words" "$lockstep" mirror status
expect_end "the start of a mirror is refused" 4 "$words" "$lockstep" mirror start copy
expect_end "the stop of a mirror is refused" 4 "$words" "$lockstep" mirror stop copy
expect_end "mirror with state_dir there" 4 "$words" "$lockstep" --config /etc/lockstep/there.toml mirror list

# --- and is back ---------------------------------------------------------------------------------------------------------

replace_disk "0 $sectors linear $loop 0"
expect "the pool is cleared" timeout 60 zpool clear sus
expect_end "list" 0 "" "$lockstep" --cluster main list
expect_end "list with state_dir there" 0 "" "$lockstep" --config /etc/lockstep/there.toml --cluster second list

# --- and is gone again, with failmode=continue: before 2.2, `zpool list` doesn't call it suspended ---------------------------

must zpool set failmode=continue sus
sync -f /srv/sus
replace_disk "0 $sectors error"
dd if=/dev/urandom of=/srv/sus/junk bs=1M count=8 2>/dev/null &
sleep 1
sync -f /srv/sus &
for ((tries = 0; tries < 60; tries++)); do [[ $(zfs list sus 2>&1) != *suspended* ]] || break; sleep 1; done
expect_end "check reports it" 3 "$words" "$lockstep" --cluster main check
expect_end "a backup is refused" 4 "$words" "$lockstep" --cluster main backup
expect_end "a backup of the other cluster" 0 "" "$lockstep" --cluster second backup
replace_disk "0 $sectors linear $loop 0"
expect "the pool is cleared" timeout 60 zpool clear sus
must zpool set failmode=wait sus
expect_end "list" 0 "" "$lockstep" --cluster main list

# --- and is imported read-only: nothing can be removed there, and nothing is begun ------------------------------------------

# Servers in mount namespaces of their own keep it busy.
must "$lockstep" mirror stop copy
must "$lockstep" --cluster second clone destroy dev
stop_cluster /srv/r2/data
as_postgres "$PG_BIN/pg_ctl" -D /srv/sus -m immediate stop >/dev/null 2>&1
must zpool export -f sus
must zpool import -o readonly=on -d /dev/mapper sus
for dry in --dry-run ""; do
  # shellcheck disable=SC2086  # nothing, or an option
  expect_end "prune of a read-only pool $dry" 3 "imported read-only" "$lockstep" --cluster main prune --local --set "$set" $dry
done
expect_equal "its set is there" "$set" "$("$lockstep" --json --cluster main list | jq -r '.sets[-1].set')"
must zpool export sus
must zpool import -d /dev/mapper sus
expect_end "prune of the pool, when it can be written again" 0 "" "$lockstep" --cluster main prune --local --set "$set"
finish
