#!/bin/bash
# lockstep.sh -- the program itself on OpenZFS: plan, backup under load, restore and clone, on two pools and on one.
#
# The program is built on the host and named by $LOCKSTEP_BIN (default: target/debug/lockstep of this checkout). It must
# run with Debian 12's glibc. PostgreSQL and pgbench's sums check what the restored servers hold, not Lockstep.
. "$(dirname "$0")/lib.sh"
run_in_guest --push "${LOCKSTEP_BIN:-$(dirname "$0")/../../target/debug/lockstep}"

lockstep=/usr/local/bin/$(cd /usr/local/bin && ls)      # the only thing there, whatever its name was
output=/tmp/lockstep.json

write_config() {
  write_cluster_config /var/lib/lockstep <<TOML
strategy = "auto"
TOML
}

lockstep_snapshots() { zfs list -H -t snapshot -o name | grep '@lockstep-' | sort; }

expect_nothing_left() { # WHAT
  expect_equal "$1: no slot is left" 0 "$(sql 'select count(*) from pg_replication_slots')"
  expect_equal "$1: no backup runs" "" "$(sql "select pid from pg_stat_activity where query like '%pg_backup_start%' and pid <> pg_backend_pid()")"
}

# The original's tablespace is where a restored cluster does the worst harm: on the source host, replayed WAL writes
# into it. A restored server can be restarted by hand, so its link must point elsewhere. A clone keeps the original's
# path and sees its own folder there, so the check looks at the device that its server sees.
expect_restored() { # WHAT DATA_DIRECTORY PORT
  local what=$1 data=$2 port=$3 location process
  local -x PGHOST
  PGHOST=$(json "$output" .socket_directory)
  expect_consistent "$what" "$port"
  location=$(sql "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'space_one'" "$port")
  process=$(head -1 "$data/postmaster.pid")
  expect_equal "$what: its tablespace is not the original's" different \
    "$([ "$(stat -c %d "/proc/$process/root$location")" != "$(stat -c %d "$PG_ROOT/space one")" ] && echo different || echo "the same: $location")"
  expect_equal "$what: it takes writes" 1 "$(sql "create table written_$port as select 1 as one; select one from written_$port" "$port")"
}

expect_link_inside() { # WHAT DIRECTORY
  local link
  for link in "$2"/data/pg_tblspc/*; do
    expect_equal "$1: started by hand it would use its own tablespace" "$2" "$(readlink "$link" | cut -c "1-${#2}")"
  done
}

# --- two pools: the backup API ---------------------------------------------------------------------------------------

cluster_in_two_pools
write_config
start_load

run_lockstep "plan on two pools" plan
expect_equal "it chooses" label "$(json "$output" .strategy)"
expect_equal "it finds every dataset" "fast/pgwal fast/space one tank/pgdata" "$(jq -r '[.volumes[].dataset] | sort | join(" ")' "$output")"
expect_equal "it changes nothing" "" "$(lockstep_snapshots)"

# A known way to forbid ALTER SYSTEM: each copy has the flag too, and its restore must rewrite that file.
must chattr +i "$PG_ROOT/data/postgresql.auto.conf"
before=$(sql 'select count(*) from pgbench_history')
run_lockstep "backup under load" backup --label "two pools" || finish
set=$(json "$output" .set)
cp "$output" /tmp/set.json
expect_equal "its strategy" label "$(json "$output" .strategy)"
expect_equal "its snapshots" "fast/pgwal@lockstep-$set fast/space one@lockstep-$set tank/pgdata@lockstep-$set" "$(lockstep_snapshots | paste -sd' ')"
for dataset in "$DATA_DATASET" "$WAL_DATASET" "$SPACE_DATASET"; do
  expect_failure "the snapshot of $dataset is held" "dataset is busy" zfs destroy "$dataset@lockstep-$set"
  expect_equal "and says which set it is of" "$set" "$(zfs get -Hp -o value lockstep:set "$dataset@lockstep-$set")"
  expect_equal "and that the set is complete" complete "$(zfs get -Hp -o value lockstep:state "$dataset@lockstep-$set")"
done
expect_nothing_left "after the backup"
run_lockstep "list" list
expect_equal "it has the set" "$set" "$(jq -r '.. | .set? // empty' "$output" | head -1)"
run_lockstep "show" show latest

# Much happens between the backup and its restore, including a checkpoint that recycles WAL.
sleep 10
must sql 'checkpoint'
expect "the load still runs" kill -0 "$LOAD"
run_lockstep "restore beside the running original" restore latest --to /restored --start --port 5500
cp "$output" /tmp/restored.json
expect_restored "restored from two pools" /restored/data 5500
expect_link_inside "restored from two pools" /restored
PGHOST=$(json "$output" .socket_directory) expect "its own postgresql.auto.conf can be changed" sql 'alter system set work_mem = 5000' 5500
restored=$(PGHOST=$(json "$output" .socket_directory) sql 'select count(*) from pgbench_history' 5500)
expect_equal "it has what was committed before the backup ($before rows, it has $restored)" yes "$([ "$restored" -ge "$before" ] && echo yes)"
expect_equal "and not what came after it" yes "$([ "$restored" -lt "$(sql 'select count(*) from pgbench_history')" ] && echo yes)"
run_lockstep "a second backup, beside the restored cluster" backup
stop_load
expect_consistent "the original"
expect_nothing_left "at the end"
expect "check" "$lockstep" check

# --- a power cut isn't possible from inside; the closest: every process killed, the pools exported and imported again -----

stop_cluster /restored/data
stop_cluster "$PG_ROOT/data" immediate
must zpool export -f tank
must zpool export -f fast
must zpool import -a
run_lockstep "restore of the same set after the pools were moved" restore "$set" --to /restored-again --start --port 5501
expect_restored "restored again" /restored-again/data 5501
stop_cluster /restored-again/data

# --- one pool: one transaction group, and clones ---------------------------------------------------------------------

must zpool destroy -f tank
must zpool destroy -f fast
rm -rf "$PG_ROOT" /restored /restored-again /var/lib/lockstep
cluster_in_one_pool
start_load
run_lockstep "plan on one pool" plan --strategy atomic
run_lockstep "backup in one transaction group" backup --strategy atomic || finish
set=$(json "$output" .set)
expect_equal "its strategy" atomic "$(json "$output" .strategy)"
expect_equal "its snapshots" "tank/pgdata@lockstep-$set tank/pgwal@lockstep-$set tank/space one@lockstep-$set" "$(lockstep_snapshots | paste -sd' ')"
expect_equal "they are of one transaction group" 1 "$(zfs list -Hp -t snapshot -o name,createtxg | grep "@lockstep-$set" | cut -f2 | sort -u | wc -l)"
expect_nothing_left "after the atomic backup"
sleep 5
# A restore that is kept loses no commits that the original wouldn't lose, whatever the dataset above says.
for dataset in "$DATA_DATASET" "$WAL_DATASET" "$SPACE_DATASET"; do must zfs set sync=standard "$dataset"; done
must zfs set sync=disabled tank
run_lockstep "restore of the atomic set" restore latest --to /restored --start --port 5502
expect_equal "its commits are on disk when they say so" standard \
  "$(zfs list -H -o mountpoint,sync | awk -F'\t' 'index($1, "/restored/") == 1 { print $2 }' | sort -u)"
must zfs inherit sync tank
expect_restored "restored from one transaction group" /restored/data 5502
expect_link_inside "restored from one transaction group" /restored
stop_cluster /restored/data

run_lockstep "clone create" clone create dev
port=$(json "$output" .port)
clone=$(json "$output" .data_directory)
expect_restored "the clone" "$clone" "$port"
run_lockstep "clone list" clone list
expect_equal "it has the clone" dev "$(jq -r '.clones[].name' "$output")"
expect_equal "it runs" true "$(jq -r '.clones[].running' "$output")"
before=$(zfs list -H -o name | wc -l)
run_lockstep "clone destroy" clone destroy dev
expect_equal "its three datasets are gone" $((before - 3)) "$(zfs list -H -o name | wc -l)"
expect_equal "its folder too" "" "$(ls -d "$clone" 2>/dev/null)"
expect_equal "and its server" "" "$(pgrep -f "postgres -D $clone")"
run_lockstep "clone list" clone list
expect_equal "has none" "" "$(jq -r '.clones[].name' "$output")"
stop_load
expect_consistent "the original in one pool"
finish
