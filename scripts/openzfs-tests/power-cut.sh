#!/bin/bash
# power-cut.sh -- the power fails during a backup: the cluster starts, what was complete is restored, the rest is
# removed.
#
# Unlike the other tests, this one is controlled from the host, which cuts the power (sysrq-b: nothing is flushed,
# nothing is unmounted). Lockstep's state is in one of the pools, because only these are meant to survive this; the
# guest's own root file system has no journal. $LOCKSTEP_BIN as in lockstep.sh.
if [ ! -e /etc/openzfs-guest ]; then
  here=$(dirname "$(realpath "$0")")
  vm=$here/../openzfs-vm
  "$vm" run --push "${LOCKSTEP_BIN:-$here/../../target/debug/lockstep}" "$0" before || exit
  for moment in at-once first-snapshot last-snapshot; do
    echo "the power fails during a backup: $moment"
    "$vm" exec "cd /root/tests && bash ./power-cut.sh cut $moment" >/dev/null 2>&1      # the guest is gone: 125
    "$vm" reboot || exit
    "$vm" exec 'cd /root/tests && exec bash ./power-cut.sh after' || exit
  done
  exec "$vm" exec 'cd /root/tests && exec bash ./power-cut.sh end'
fi
. "$(dirname "$0")/lib.sh"

lockstep=/usr/local/bin/lockstep

sets() { "$lockstep" --json list | jq -r '.. | .set? // empty' | sort; }
# Lists the sets that have a snapshot on any dataset.
sets_with_snapshots() { zfs list -H -t snapshot -o name | sed -n 's/.*@lockstep-//p' | sort -u; }

case $1 in
  before)
    cluster_in_two_pools
    must zfs create -o mountpoint=/tank/state tank/state
    write_cluster_config /tank/state </dev/null
    [ -e "$lockstep" ] || mv /usr/local/bin/* "$lockstep"
    expect "a first backup" "$lockstep" backup
    sets >/tank/state/first
    expect_equal "it is the only one" 1 "$(wc -l </tank/state/first)"
    start_load
    note_clock
    sync
    disown
    finish
    ;;
  cut)
    count=$(zfs list -H -t snapshot -o name | wc -l)
    "$lockstep" backup >/tank/state/backup.log 2>&1 &
    case $2 in
      at-once) sleep 0.3 ;;
      first-snapshot) until [ "$(zfs list -H -t snapshot -o name | wc -l)" -gt "$count" ]; do :; done ;;
      last-snapshot) until [ "$(zfs list -H -t snapshot -o name | wc -l)" -gt $((count + 2)) ]; do :; done ;;
    esac
    echo b >/proc/sysrq-trigger
    sleep 60
    ;;
  after)
    keep_clock
    must zpool import -f tank
    must zpool import -f fast
    # As systemd does if the machine wasn't shut down cleanly: no running process can own this number now.
    rm -f "$PG_ROOT/data/postmaster.pid"
    start_cluster "$PG_ROOT/data" "$PG_PORT"
    expect_consistent "the original after the power cut"
    before=$(sets)
    expect "the next backup" "$lockstep" backup
    expect_equal "no set is lost that was complete, and one is new" $(($(wc -l <<<"$before") + 1)) "$(sets | wc -l)"
    expect_equal "nothing is left of one that was not" "$(sets)" "$(sets_with_snapshots)"
    expect_equal "no slot is left" 0 "$(sql 'select count(*) from pg_replication_slots')"
    start_load
    disown
    note_clock
    sync
    finish
    ;;
  end)
    for set in $(sets); do
      expect "set $set is restored" "$lockstep" restore "$set" --to "/restored/$set" --start --port 5500
      PGHOST=/restored/$set/run
      [ -S "$PGHOST/.s.PGSQL.5500" ] || PGHOST=/run/postgresql
      PGHOST=$PGHOST expect_consistent "set $set" 5500
      stop_cluster "/restored/$set/data"
    done
    finish
    ;;
esac
