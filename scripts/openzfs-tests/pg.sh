#!/bin/bash
# pg.sh -- the fixtures of lib.sh in use: PostgreSQL on OpenZFS, frozen by hand in one transaction group, started again.
#
# It proves what the other tests assume: that the guest's PostgreSQL survives being stopped hard, that one `zfs
# snapshot` of all its datasets is a consistent copy, and that expect_consistent distinguishes a bad copy from a good
# one.
. "$(dirname "$0")/lib.sh"
run_in_guest

cluster_in_one_pool
expect_consistent "new cluster"

start_load
must zfs snapshot "$DATA_DATASET@one" "$WAL_DATASET@one" "$SPACE_DATASET@one"
sleep 5
# The same parts from different moments, as a naive backup would combine them.
must sql checkpoint
sleep 5
must zfs snapshot "$DATA_DATASET@two" "$WAL_DATASET@two" "$SPACE_DATASET@two"
expect_equal "the load goes on" t "$(sql "select count(*) > 20 from pgbench_history")"
stop_load
stop_cluster "$PG_ROOT/data" immediate
start_cluster "$PG_ROOT/data" "$PG_PORT"
expect_consistent "after an immediate stop"
expect "its snapshots are readable as their owner" as_postgres test -r "$PG_ROOT/data/.zfs/snapshot/one/global/pg_control"

start_clone() { # NAME DATA_SNAPSHOT WAL_SNAPSHOT SPACE_SNAPSHOT PORT
  local at=/srv/$1
  must zfs clone -o mountpoint="$at/data" "$2" "tank/$1-data"
  must zfs clone -o mountpoint="$at/wal" "$3" "tank/$1-wal"
  must zfs clone -o mountpoint="$at/space" "$4" "tank/$1-space"
  rm -f "$at/data/postmaster.pid"
  ln -sfn "$at/wal" "$at/data/pg_wal"
  start_cluster_over "$at/space" "$at/data" "$5"
}

start_clone good "$DATA_DATASET@one" "$WAL_DATASET@one" "$SPACE_DATASET@one" 5433
expect_consistent "one transaction group" 5433
stop_cluster /srv/good/data

if (start_clone bad "$DATA_DATASET@two" "$WAL_DATASET@two" "$SPACE_DATASET@one" 5434) >/tmp/bad.log 2>&1; then
  found=$(expect_consistent "two moments" 5434)
  expect_equal "parts of two moments are told from one" FAILED "$(grep -o -m1 FAILED <<<"$found")"
  stop_cluster /srv/bad/data
else
  passed "parts of two moments do not even start: $(tail -1 /tmp/bad.log)"
fi

expect_consistent "the original, beside its clones"
stop_cluster "$PG_ROOT/data"
must zpool destroy -f tank
must rm -rf "$PG_ROOT"

cluster_in_two_pools
expect_consistent "cluster in two pools"
expect_equal "its datasets" "fast/pgwal fast/space one tank/pgdata" \
  "$(for path in "$PG_ROOT/wal" "$PG_ROOT/space one" "$PG_ROOT/data"; do zfs list -H -o name "$path"; done | paste -sd' ')"
finish
