#!/bin/bash
# repository.sh -- a repository on OpenZFS: shipments that die, increments from bookmarks, restores as datasets and as files.
#
# Controlled from the host, which cuts the power (as power-cut.sh does) in the middle of a restore on top of an older
# one: the next start must not mount what was rolled back. State, repository and restores are in pools, because only
# pools are meant to survive this. PostgreSQL and pgbench's sums check what the restored servers hold. $LOCKSTEP_BIN as
# in lockstep.sh.
if [ ! -e /etc/openzfs-guest ]; then
  here=$(dirname "$(realpath "$0")")
  vm=$here/../openzfs-vm
  "$vm" run --push "${LOCKSTEP_BIN:-$here/../../target/debug/lockstep}" "$0" before || exit
  echo "the power fails during a restore"
  "$vm" exec "cd /root/tests && bash ./repository.sh cut" >/dev/null 2>&1      # the guest is gone: 125
  "$vm" reboot || exit
  exec "$vm" exec 'cd /root/tests && exec bash ./repository.sh after'
fi
. "$(dirname "$0")/lib.sh"

lockstep=/usr/local/bin/lockstep
output=/tmp/lockstep.json
STATE=/tank/state
REPOSITORY=/tank/repository

write_config() { # [LINE OF THE REPOSITORY'S TABLE...]
  write_cluster_config "$STATE" <<TOML
repositories = ["here"]

[repositories.here]
url = "file://$REPOSITORY"
grace_hours = 0
$(printf '%s\n' "$@")
TOML
}

backup() { # NAME [ARGUMENT...]: keeps its id, and what was counted before
  local name=$1; shift
  sleep 2
  sql 'select count(*) from pgbench_history' >"$STATE/$name.rows"
  run_lockstep "backup: the $name set" backup "$@" || finish
  json "$output" .set >"$STATE/$name.set"
}

set_of() { cat "$STATE/$1.set"; }

# The base of the data directory's increment in the last backup or shipment.
parent() { "$lockstep" --json show "$1" --from repository | jq -r '.stored[] | select(.dataset == "tank/pgdata") | .parent // empty'; }

expect_restored() { # WHAT NAME PORT: it is right, and holds what was committed before the backup
  local -x PGHOST
  PGHOST=$(json "$output" .socket_directory)
  expect_consistent "$1" "$3"
  expect_equal "$1: what was committed before the backup" yes \
    "$([ "$(sql 'select count(*) from pgbench_history' "$3")" -ge "$(cat "$STATE/$2.rows")" ] && echo yes)"
}

restore() { # WHAT NAME PORT ARGUMENT...: restores it, looks, and stops its server
  local what=$1 name=$2 port=$3; shift 3
  run_lockstep "$what" restore "$(set_of "$name")" --from repository --start --port "$port" "$@" || finish
  expect_restored "$what" "$name" "$port"
  stop_cluster "$(json "$output" .data_directory)"
}

# Puts a zfs first in the PATH of a command run through `killed`; it kills its caller after a zfs command that matches.
killed() { # PATTERN OF ITS ARGUMENTS, ARGUMENT...
  local real pattern=$1; shift
  real=$(type -P zfs)
  mkdir -p /root/killing
  cat >/root/killing/zfs <<WRAP
#!/bin/bash
"$real" "\$@"; status=\$?
case "\$*" in $pattern) kill -9 \$PPID;; esac
exit \$status
WRAP
  chmod +x /root/killing/zfs
  expect_failure "it is killed behind zfs $pattern" "" env PATH="/root/killing:$PATH" "$lockstep" "$@"
}

expect_parked() { # WHAT DATASET DATA_DIRECTORY: no server starts on it, now or after the machine's next start
  expect_equal "$1: the next start doesn't mount it" noauto "$(zfs get -H -o value canmount "$2")"
  expect_failure "$1: no server starts on it" "No such file" ls "$3/global/pg_control"
  zfs mount -a
  expect_failure "$1: nor later" "No such file" ls "$3/global/pg_control"
}

AS_ZFS=(--as zfs --dataset fast/r --to /tank/restores/zfs)

case $1 in
  before)
    cluster_in_two_pools
    must zfs create -o mountpoint=$STATE tank/state
    must zfs create -o mountpoint=$REPOSITORY tank/repository
    must zfs create -o mountpoint=/tank/restores tank/restores
    [ -e "$lockstep" ] || mv /usr/local/bin/* "$lockstep"
    write_config
    expect "repo init" "$lockstep" repo init
    start_load
    disown

    # Its shipment dies once a pack has been stored, and reuses that pack when it is started again.
    backup first --no-ship
    write_config 'rate_limit = "3MB"'
    interrupt_shipment "$REPOSITORY"
    write_config
    run_lockstep "it is shipped again" ship latest || finish
    expect_equal "with the packs that were there" "$interrupted" "$(comm -12 <(echo "$interrupted") <(packs_of "$REPOSITORY"))"

    # The snapshots are removed and their bookmarks stay: the next increment starts there.
    must sql "create table grown as select n, repeat('x', 200) as filler from generate_series(1, 50000) n"
    backup second
    run_lockstep "the first two sets are pruned on this host" prune --local --set "$(set_of first)" --set "$(set_of second)"
    for dataset in "$DATA_DATASET" "$SPACE_DATASET"; do
      expect "a bookmark is left of $dataset" zfs list -t bookmark "$dataset#lockstep-$(set_of second)"
    done
    must sql "update grown set filler = repeat('y', 200)"
    backup third
    run_lockstep "show" show "$(set_of third)" --from repository
    expect "repo check" "$lockstep" repo check --read-data

    restore "the second set as datasets" second 5500 "${AS_ZFS[@]}"
    expect_equal "mounted by the next start" on "$(zfs get -H -o value canmount fast/r/data)"
    note_clock
    sync
    must zpool sync
    finish
    ;;
  cut)
    "$lockstep" restore "$(set_of third)" --from repository --delta "${AS_ZFS[@]}" >$STATE/restore.log 2>&1 &
    until [ "$(zfs get -H -o value canmount fast/r/data)" = noauto ]; do :; done
    # The properties must be on disk; otherwise the power was cut before the restore began.
    zpool sync
    echo b >/proc/sysrq-trigger
    sleep 60
    ;;
  after)
    datasets_in_two_pools
    must zpool import -f tank
    must zpool import -f fast
    must zfs mount -a
    expect_equal "what is half restored isn't mounted" no "$(zfs get -H -o value mounted fast/r/data)"
    expect_equal "and waits for the command to come again" noauto "$(zfs get -H -o value canmount fast/r/data)"
    expect_failure "so that no server starts on it" "No such file" ls /tank/restores/zfs/data/global/pg_control
    rm -f "$PG_ROOT/data/postmaster.pid"
    start_cluster "$PG_ROOT/data" "$PG_PORT"
    keep_clock
    expect_consistent "the original after the power cut"
    restore "the third set on top, after the power cut" third 5500 --delta "${AS_ZFS[@]}"
    expect_equal "mounted by the next start again" on "$(zfs get -H -o value canmount fast/r/data)"
    expect_equal "and nothing is left to remember" - "$(zfs get -H -o value lockstep:canmount fast/r/data)"

    expect_equal "the second's snapshot, which that stood on, is gone" "lockstep-$(set_of third)" "$(zfs list -H -t snapshot -o name -d 1 fast/r/data | cut -d@ -f2)"

    restore "the second set as files" second 5501 --as files --to /tank/restores/files
    restore "the third set over these files" third 5501 --as files --to /tank/restores/files --delta
    expect_equal "the rows of the third" y "$(
      must start_cluster /tank/restores/files/data 5501
      PGHOST=/run/postgresql; [ -S /run/postgresql/.s.PGSQL.5501 ] || PGHOST=$(json "$output" .socket_directory)
      export PGHOST
      sql 'select distinct left(filler, 1) from grown' 5501
    )"
    stop_cluster /tank/restores/files/data

    # The base is removed, and what was based on it is still complete.
    backup fourth
    run_lockstep "the first two sets go from the repository" prune --repository here --set "$(set_of first)" --set "$(set_of second)"
    run_lockstep "and what nobody needs" repo compact here
    expect "repo check after it" "$lockstep" repo check --read-data
    must zfs destroy -r fast/r
    rm -rf /tank/restores/zfs

    # A pool that was imported below a folder.
    truncate -s 400M /var/below.img
    mkdir -p /mnt/below
    must zpool create -R /mnt/below -m none below /var/below.img
    restore "the fourth set into a pool below a folder" fourth 5502 --as zfs --dataset below/r --to /mnt/below/srv
    expect_equal "mounted where it was asked for" /mnt/below/srv/data "$(zfs get -H -o value mountpoint below/r/data)"
    expect_failure "elsewhere it isn't even received" altroot \
      "$lockstep" restore "$(set_of fourth)" --from repository --as zfs --dataset below/r2 --to /tank/restores/below
    expect_failure "and nothing is made" "does not exist" zfs list below/r2
    must zpool destroy -f below
    restore "the fourth set as datasets" fourth 5500 "${AS_ZFS[@]}"
    expect_equal "one snapshot alone came along" 1 "$(zfs list -H -t snapshot -o name -d 1 fast/r/data | wc -l)"

    # Killed where its dataset is mounted or could be.
    must zfs set acltype=posix "$DATA_DATASET"
    backup fifth --no-ship
    expect "it is shipped from a mount namespace of its own" unshare --mount --propagation private "$lockstep" ship latest
    on_top=(restore "$(set_of fifth)" --from repository --delta "${AS_ZFS[@]}")
    killed '"mount fast/r/data"' "${on_top[@]}"
    expect_parked "killed behind its mount" fast/r/data /tank/restores/zfs/data
    killed '"set canmount="*"fast/r/data"' "${on_top[@]}"
    expect_failure "killed behind its release: no server starts on it" "No such file" ls /tank/restores/zfs/data/global/pg_control
    # Those of the other datasets that are complete by then stay, and the next run continues from them.
    new=(restore "$(set_of fifth)" --from repository --as zfs --delta --dataset fast/q --to /tank/restores/q)
    for pattern in '"set "*"mountpoint="*" fast/q/data"' '"mount fast/q/data"'; do
      killed "$pattern" "${new[@]}"
      [ "$(zfs get -H -o value canmount fast/q/data 2>/dev/null)" != on ] || failed "a new one is mounted by the next start"
      expect_failure "no server starts on a new one" "No such file" ls /tank/restores/q/data/global/pg_control
      run_lockstep "the next command clears away" list
    done
    restore "the fifth set on top" fifth 5500 --delta "${AS_ZFS[@]}"
    run_lockstep "the fifth set anew" "${new[@]}"
    expect_equal "its access control lists count" "$(zfs get -H -o value acltype "$DATA_DATASET")" "$(zfs get -H -o value acltype fast/q/data)"
    must zfs destroy -r fast/q

    # What somebody did with its datasets.
    must zfs snapshot fast/r/data@foreign
    must zfs bookmark fast/r/data@foreign 'fast/r/data#foreign'
    must zfs destroy fast/r/data@foreign
    expect_failure "a bookmark in the way is named" "zfs destroy 'fast/r/data#foreign'" "$lockstep" "${on_top[@]}"
    must zfs destroy 'fast/r/data#foreign'
    must zfs unmount fast/r/wal
    must zfs set mountpoint=legacy fast/r/wal
    must mount -t zfs fast/r/wal /tank/restores/zfs/wal
    expect_failure "so is a legacy mount point" "has mountpoint=legacy" "$lockstep" "${on_top[@]}"
    must umount /tank/restores/zfs/wal
    must zfs set mountpoint=/tank/restores/zfs/wal fast/r/wal
    expect "and nothing was changed" ls /tank/restores/zfs/data/global/pg_control

    # A set is either removed as a whole or kept.
    (cd "$PG_ROOT/space one/.zfs/snapshot/lockstep-$(set_of fifth)" && exec sleep 600) &
    sleep 2
    expect_failure "a set that somebody works in stays" "somebody works in" "$lockstep" prune --local --set "$(set_of fifth)"
    expect "with all of it" zfs list "$DATA_DATASET@lockstep-$(set_of fifth)" "$SPACE_DATASET@lockstep-$(set_of fifth)"
    expect "and is known" sh -c "'$lockstep' list | grep -q $(set_of fifth)"
    kill $!
    wait $! 2>/dev/null
    run_lockstep "and goes when nobody does" prune --local --set "$(set_of fifth)"
    expect_failure "with its snapshots" "does not exist" zfs list "$SPACE_DATASET@lockstep-$(set_of fifth)"

    # A dropped table that an idle session has open: the snapshot has files without a name, and OpenZFS removes them when
    # it mounts the dataset, which is modified then.
    must zfs set dnodesize=1k "$SPACE_DATASET"
    must sql "create table dropped tablespace space_one as select n, repeat('z', 200) as filler from generate_series(1, 3000) n"
    as_postgres psql -XAtq -p "$PG_PORT" -c "select count(*) from dropped" -c "select pg_sleep(1500)" postgres >/dev/null &
    sleep 3
    must sql "drop table dropped"
    backup sixth
    expect "its files are there without a name" sh -c "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q 'space one.*deleted'"
    backup seventh
    new=(--as zfs --dataset fast/u --to /tank/restores/unlinked)
    restore "the sixth set anew" sixth 5500 "${new[@]}"
    restore "the seventh set on top of it" seventh 5500 --delta "${new[@]}"
    must zfs destroy -r fast/u

    # A pool without the features that a volume needs.
    truncate -s 400M /var/plain.img
    must zpool create -d -m none plain /var/plain.img
    expect_failure "a pool that lacks a feature is refused" "zpool set feature@large_dnode=enabled plain" \
      "$lockstep" restore "$(set_of seventh)" --from repository --as zfs --dataset plain/r --to /tank/restores/plain
    expect_failure "and nothing is made" "does not exist" zfs list plain/r
    must zpool destroy -f plain

    # A bookmark of `zfs redact` with the GUID of a set's snapshot is no base: an increment from it has more.
    seventh=$DATA_DATASET@lockstep-$(set_of seventh)
    must zfs clone -o mountpoint=/redacted "$seventh" tank/redacted
    rm -rf /redacted/base
    must zfs snapshot tank/redacted@r
    must zfs redact "$seventh" redaction tank/redacted@r
    must zfs destroy -r tank/redacted
    zfs list -H -o name -t snapshot -d 1 "$DATA_DATASET" | while read -r name; do
      zfs holds -H "$name" | while IFS=$'\t' read -r _ tag _; do zfs release "$tag" "$name"; done
      zfs destroy "$name"
    done
    zfs list -H -o name -t bookmark -d 1 "$DATA_DATASET" | grep '#lockstep-' | while read -r name; do zfs destroy "$name"; done
    expect_equal "the bookmark is all that is left" "$DATA_DATASET#redaction" "$(zfs list -H -o name -t snapshot,bookmark -d 1 "$DATA_DATASET")"
    backup eighth
    expect "repo check at the end" "$lockstep" repo check --read-data
    expect_consistent "the original at the end"
    finish
    ;;
esac
