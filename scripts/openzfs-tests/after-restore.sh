#!/bin/bash
# after-restore.sh -- the block "clones" of docs/after-a-restore.md, where some datasets have the key of another one.
#
# ZFS promotes no clone outside of its encryption root, and the block says so before anything has changed its place.
# Datasets and marks are made by hand here; the commands are the page's.
. "$(dirname "$0")/lib.sh"
run_in_guest --push "$(dirname "$0")/../../docs/after-a-restore.md"

page=/usr/local/bin/after-a-restore.md
KEY=/root/datasets.key

block() { awk -v begin="\`\`\`sh $1" '$0 == begin { on = 1; next } /^```/ { on = 0 } on' "$page"; }

# Runs the block for the clones below /restored.
change_places() {
  { block setup; echo 'TO=/restored'; block clones; } >/tmp/block.sh
  bash /tmp/block.sh
}

original() { # DATASET [OPTION...]: an original with a file in it, and a set's snapshot
  local dataset=$1; shift
  must zfs create -p "$@" -o mountpoint="/live/${dataset//\//-}" "$dataset"
  must sh -c "echo old >/live/${dataset//\//-}/file"
  must zfs snapshot "$dataset@set"
  must sh -c "echo new >/live/${dataset//\//-}/file"
}

restored() { # ORIGINAL CLONE
  must zfs clone -o mountpoint="/restored/${2//\//-}" -o lockstep:restore=one "$1@set" "$2"
}

content() { cat "/live/${1//\//-}/file"; }

head -c 32 /dev/urandom >$KEY
must zpool create -O mountpoint=none tank /dev/vdb
must zfs create -o mountpoint=none tank/plain
must zfs create -o mountpoint=none -o encryption=on -o keyformat=raw -o keylocation=file://$KEY tank/enc
original tank/enc/pgdata
original tank/own -o encryption=on -o keyformat=raw -o keylocation=file://$KEY
original tank/plain/pgwal
expect_equal "an original that has the key above it" tank/enc "$(zfs get -H -o value encryptionroot tank/enc/pgdata)"
expect_equal "one with a key of its own" tank/own "$(zfs get -H -o value encryptionroot tank/own)"

# --- elsewhere: refused, by ZFS too, and nothing has moved -----------------------------------------------------------

restored tank/plain/pgwal tank/a-first
restored tank/enc/pgdata tank/elsewhere
expect_failure "ZFS doesn't promote it" "" zfs promote tank/elsewhere
expect_failure "the block refuses it" "it can't be promoted" change_places
expect_equal "the encrypted one is where it was" new "$(content tank/enc/pgdata)"
expect_equal "the plain one, which comes first, too" new "$(content tank/plain/pgwal)"
must zfs destroy tank/elsewhere

# --- the original is a restore that has stayed where it is, of one with a key of its own: promoted, but not renamed ----------

must zfs create -o mountpoint=none tank/kept
must zfs create -o mountpoint=none tank/other
must zfs clone -o mountpoint=/live/tank-kept-own tank/own@set tank/kept/own
must sh -c "echo new >/live/tank-kept-own/file"
must zfs snapshot tank/kept/own@set
restored tank/kept/own tank/other/again
expect_failure "the block refuses a clone of a clone" "it can't be promoted" change_places
expect_equal "the clone is where it was" new "$(content tank/kept/own)"
must zfs promote tank/other/again
expect_failure "ZFS doesn't rename it to there" "" zfs rename tank/other/again tank/kept/another
must zfs promote tank/kept/own
must zfs destroy tank/other/again
must zfs destroy -r tank/kept
must zfs destroy tank/other

# --- below the same root, with a key of its own, and plain: all change places --------------------------------------------

restored tank/enc/pgdata tank/enc/restored-data
restored tank/own tank/restored-own
expect "the block" change_places
for dataset in tank/enc/pgdata tank/own tank/plain/pgwal; do
  expect_equal "$dataset is the restored one" old "$(content "$dataset")"
  expect_equal "$dataset-before depends on it" "$dataset@set" "$(zfs get -H -o value origin "$dataset-before")"
done
finish
