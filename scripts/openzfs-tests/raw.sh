#!/bin/bash
# raw.sh -- encrypted datasets in a repository: sent raw, restored with and without their keys loaded.
#
# Two pools: the data directory is in an encrypted dataset whose key is a file, one tablespace in a dataset with a
# passphrase, one in a plain dataset. Later pg_wal is encrypted too. PostgreSQL and pgbench's sums check what the
# restored servers hold. The program is named by $LOCKSTEP_BIN (default: target/debug/lockstep of this checkout).
. "$(dirname "$0")/lib.sh"
run_in_guest --push "${LOCKSTEP_BIN:-$(dirname "$0")/../../target/debug/lockstep}"

lockstep=/usr/local/bin/$(cd /usr/local/bin && ls)      # the only thing there, whatever its name was
output=/tmp/lockstep.json
PASSPHRASE='correct horse battery staple'
KEY=/root/data.key

write_config() { # [LINE OF THE REPOSITORY'S TABLE...]
  write_cluster_config /var/lib/lockstep <<TOML
strategy = "${STRATEGY:-auto}"
repositories = ["${REPOSITORY:-open}"]

[clusters.main.retention]
local = { last = 1 }
repository = { last = 2 }

[repositories.open]
url = "file:///var/repository"
grace_hours = 0
$(printf '%s\n' "$@")

[repositories.sealed]
url = "file:///var/sealed"
key_file = "/root/repository.key"
TOML
}

# How a dataset of the last backup is stored: the length of its chain of raw segments, or 'plain'.
stored() { # DATASET
  jq -r --arg dataset "$1" \
    '.repositories[0].volumes[] | select(.dataset == $dataset) | if .raw then .raw | length else "plain" end' "$output"
}

expect_stored() { # WHAT DATA SPACE_ONE SPACE_TWO
  expect_equal "$1: the data directory" "$2" "$(stored tank/enc/pgdata)"
  expect_equal "$1: the encrypted tablespace" "$3" "$(stored "fast/space one")"
  expect_equal "$1: the plain tablespace" "$4" "$(stored fast/two)"
}

backup() { # WHAT [ARGUMENT...]: leaves its id in $set, and what was counted before in $rows
  local what=$1; shift
  sleep 2
  rows=$(sql 'select count(*) from pgbench_history')
  run_lockstep "$what" backup "$@"
  set=$(json "$output" .set)
}

expect_refused() { # WHAT STATUS TEXT ARGUMENT...
  local what=$1 wanted=$2 text=$3 status=0; shift 3
  "$lockstep" "$@" >/tmp/refused.out 2>&1 || status=$?
  expect_equal "$what: exit status" "$wanted" "$status"
  expect "$what: says '$text'" grep -qF -- "$text" /tmp/refused.out || cat /tmp/refused.out
}

# Checks that a restored server is right, holds what was committed before the backup, and is in encrypted datasets of
# its own, with one snapshot or as many as given.
expect_restored() { # WHAT DATASET PORT ROWS [SNAPSHOTS]
  local -x PGHOST
  PGHOST=$(json "$output" .socket_directory)
  expect_consistent "$1" "$3"
  expect_equal "$1: the plain tablespace's table" 10000 "$(sql 'select count(*) from plain_table' "$3")"
  expect_equal "$1: what was committed before the backup" yes "$([ "$(sql 'select count(*) from pgbench_history' "$3")" -ge "$4" ] && echo yes)"
  expect_equal "$1: its data is encrypted" aes-256-gcm "$(zfs get -H -o value encryption "$2/data")"
  expect_equal "$1: by a key of its own" "$2/data" "$(zfs get -H -o value encryptionroot "$2/data")"
  expect_equal "$1: how many snapshots came along" "${5:-1}" "$(zfs list -H -t snapshot -o name -d 1 "$2/data" | wc -l)"
}

# --- a cluster of which some is encrypted -----------------------------------------------------------------------------

head -c 32 /dev/urandom >$KEY
head -c 32 /dev/urandom >/root/repository.key
chmod 600 $KEY /root/repository.key
must zpool create -O mountpoint=none -O atime=off -O compression=lz4 tank /dev/vdb
must zpool create -O mountpoint=none -O atime=off -O compression=lz4 fast /dev/vdc
must zfs create -o encryption=on -o keyformat=raw -o keylocation=file://$KEY tank/enc
must zfs create -o mountpoint="$PG_ROOT/data" -o recordsize=8k tank/enc/pgdata
must zfs create -o mountpoint="$PG_ROOT/wal" fast/pgwal
echo "$PASSPHRASE" | zfs create -o encryption=on -o keyformat=passphrase -o mountpoint="$PG_ROOT/space one" -o recordsize=8k "fast/space one" ||
  die "no dataset with a passphrase"
must zfs create -o mountpoint="$PG_ROOT/two" fast/two
must chown postgres: "$PG_ROOT/two"
cluster
must sql "create tablespace space_two location '$PG_ROOT/two'"
must sql "create table plain_table tablespace space_two as select generate_series(1, 10000) as n"
space_one=$(sql "select oid from pg_tablespace where spcname = 'space_one'")
write_config 'raw_full_every = 2'
expect "repo init" "$lockstep" repo init open
start_load

# Its shipment dies once a pack has been stored, and reuses that pack when it is started again.
backup "the first set" --no-ship || finish
write_config 'raw_full_every = 2' 'rate_limit = "3MB"'
interrupt_shipment /var/repository
write_config 'raw_full_every = 2'
run_lockstep "it is shipped again" ship latest || finish
expect_equal "with the pack that was there" "$interrupted" "$(comm -12 <(echo "$interrupted") <(packs_of /var/repository))"
expect_equal "and nothing is left over" 0 "$("$lockstep" --json repo check | jq '.repositories[0].orphans | length')"
expect_stored "a full stream" 1 1 plain
expect_equal "pg_wal isn't stored" "" "$(stored fast/pgwal)"
expect_equal "pages of what is raw aren't checked, and it says so" raw "$(jq -r '.repositories[0].volumes[] | select(.dataset == "tank/enc/pgdata") | .pages.not_checked' "$output")"
first=$set
backup "the second set"
expect_stored "an increment" 2 2 plain
second=$set second_rows=$rows

# The snapshots are removed and their bookmarks stay: the next increments start there.
run_lockstep "the first two sets are pruned on this host" prune --local --set "$first" --set "$second"
expect "a bookmark is left of the raw volume" zfs list -t bookmark "tank/enc/pgdata#lockstep-$second"
backup "the third set"
expect_stored "an increment from a bookmark" 3 3 plain
third=$set third_rows=$rows
backup "the fourth set"
expect_stored "after two increments a full stream" 1 1 plain
fourth=$set fourth_rows=$rows

run_lockstep "list" list --from repository
expect_equal "it says what is raw" 2 "$(jq -r '.sets[0].stored | map(select(.raw)) | length' "$output")"
run_lockstep "show" show "$third" --from repository
expect_equal "it names the chain" "lockstep-$first lockstep-$second lockstep-$third" \
  "$(jq -r '.stored[] | select(.dataset == "tank/enc/pgdata") | .raw | map(.snapshot) | join(" ")' "$output")"
expect "show says it in words" sh -c "'$lockstep' show $third --from repository | grep -q 'raw, encrypted as on disk: a full stream and 2 increments'"

# --- what cannot be done without looking into it ----------------------------------------------------------------------

expect_refused "ls" 4 "is stored raw" ls latest data --from repository
expect_refused "cat" 4 "is stored raw" cat latest:data/PG_VERSION --from repository
expect_refused "restore as files" 4 "is stored raw" restore latest --from repository --as files --to /files
expect_refused "restore of one database" 4 "is stored raw" restore latest --from repository --as zfs --dataset tank/r --to /r --only-database postgres
expect "ls of what is plain" "$lockstep" ls --from repository latest "tablespaces/$(sql "select oid from pg_tablespace where spcname = 'space_two'")"
expect "its WAL, which lay in the clear" sh -c "'$lockstep' ls latest wal --from repository | grep -q 0000"

# --- restored: a key in a file, and one that somebody has to type ------------------------------------------------------

expect_refused "restore without the passphrase" 4 "its keys aren't loaded" restore "$third" --from repository --as zfs --dataset tank/r --to /restored --start --port 5500
expect "the hint names the dataset" grep -qF "zfs load-key tank/r/tablespace-$space_one" /tmp/refused.out
expect "what was received stays" zfs list "tank/r/data@lockstep-$third" "tank/r/tablespace-$space_one@lockstep-$third"
expect_equal "the key in a file was loaded" available "$(zfs get -H -o value keystatus tank/r/data)"
expect_equal "the passphrase was not" unavailable "$(zfs get -H -o value keystatus "tank/r/tablespace-$space_one")"
expect "the passphrase fits the copy" sh -c "echo '$PASSPHRASE' | zfs load-key tank/r/tablespace-$space_one"
received=$(zfs get -Hp -o value guid "tank/r/data@lockstep-$third")
run_lockstep "the same command with --delta" restore "$third" --from repository --as zfs --dataset tank/r --to /restored --start --port 5500 --delta || finish
expect_equal "nothing was received twice" "$received" "$(zfs get -Hp -o value guid "tank/r/data@lockstep-$third")"
expect_restored "the third set" tank/r 5500 "$third_rows"
stop_cluster /restored/data

# A restore that is killed while it receives leaves nothing.
"$lockstep" restore "$third" --from repository --as zfs --dataset tank/killed --to /killed >/dev/null 2>&1 &
killed=$!
for ((tries = 0; tries < 240; tries++)); do ! zfs list -H -t snapshot -o name -r tank/killed 2>/dev/null | grep -q receiving || break; sleep 0.1; done
kill -9 $killed
wait $killed 2>/dev/null
expect "it was receiving" zfs list tank/killed
run_lockstep "the next command clears away" ship latest
expect_failure "what it received is gone" "does not exist" zfs list tank/killed
expect_failure "and its folder" "No such file" ls /killed

# --- on top of what is there, with the keys away ------------------------------------------------------------------------

expect_refused "the second set, into other datasets" 4 "its keys aren't loaded" restore "$second" --from repository --as zfs --dataset fast/r2 --to /second
expect "load it" sh -c "echo '$PASSPHRASE' | zfs load-key fast/r2/tablespace-$space_one"
run_lockstep "and once more" restore "$second" --from repository --as zfs --dataset fast/r2 --to /second --delta --start --port 5501
expect_restored "the second set" fast/r2 5501 "$second_rows"
stop_cluster /second/data
for dataset in fast/r2/data "fast/r2/tablespace-$space_one"; do
  must zfs unmount "$dataset"
  must zfs unload-key "$dataset"
done
mv $KEY $KEY.away
expect_refused "a newer set is received without any key" 4 "its keys aren't loaded" restore "$third" --from repository --as zfs --dataset fast/r2 --to /second --delta --start --port 5501
expect "both are named" sh -c "grep -qF 'zfs load-key fast/r2/data' /tmp/refused.out && grep -qF 'tablespace-$space_one' /tmp/refused.out"
expect "it is there" zfs list "fast/r2/data@lockstep-$third"
mv $KEY.away $KEY
expect "load the passphrase" sh -c "echo '$PASSPHRASE' | zfs load-key fast/r2/tablespace-$space_one"
run_lockstep "with the keys it starts" restore "$third" --from repository --as zfs --dataset fast/r2 --to /second --delta --start --port 5501
PGHOST=$(json "$output" .socket_directory) expect_consistent "the third set on top of the second" 5501
stop_cluster /second/data
expect_refused "a chain that began anew doesn't fit on top" 4 "can't be brought to set" restore "$fourth" --from repository --as zfs --dataset fast/r2 --to /second --delta
must zfs destroy -r fast/r2

# --- prune, check, damage ---------------------------------------------------------------------------------------------

expect "repo check" "$lockstep" repo check --read-data
run_lockstep "prune keeps the newest two" prune --repository open
expect_equal "the first two went" "$first $second" "$(jq -r '.places[0].removed | join(" ")' "$output")"
expect "repo check after it" "$lockstep" repo check --read-data
folder=$(echo /var/repository/clusters/main/volumes/tank=enc=pgdata@raw)
expect_equal "the third's chain and the fourth are there" 4 "$(find "$folder" -name '*.json' | wc -l)"
run_lockstep "the oldest set goes" prune --repository open --set "$third"
run_lockstep "and what nobody needs" repo compact open
expect_equal "with its chain" 1 "$(find "$folder" -name '*.json' | wc -l)"
expect "repo check after that" "$lockstep" repo check --read-data
pack=$(find /var/repository/clusters/main/packs -type f -size +100k | head -1)
cp "$pack" /tmp/pack
printf '\xff' | dd of="$pack" bs=1 seek=70000 conv=notrunc 2>/dev/null
cmp -s "$pack" /tmp/pack && printf '\x00' | dd of="$pack" bs=1 seek=70000 conv=notrunc 2>/dev/null
expect_refused "a changed byte is found" 3 "harms $fourth" repo check --read-data
cp /tmp/pack "$pack"

# --- sealed by the repository itself, and plain on purpose ---------------------------------------------------------------

REPOSITORY=sealed write_config
expect "repo init of one with a key" "$lockstep" repo init sealed
backup "a set in a repository with a key"
expect_stored "it is sealed there" plain plain plain
expect "so it can be looked into" "$lockstep" cat latest:data/PG_VERSION --from repository
write_config 'encrypted_datasets = "plain"'
backup "a set in the clear, as it was asked for"
expect_stored "as it was asked for" plain plain plain
expect "cat" "$lockstep" cat latest:data/PG_VERSION --from repository
write_config
backup "and raw again"
expect_stored "it goes on with its chain" 2 2 plain
last=$set last_rows=$rows
stop_load
expect_consistent "the original"

# --- a stopped cluster whose keys are gone -------------------------------------------------------------------------------

stop_cluster "$PG_ROOT/data"
run_lockstep "a cold set" backup --strategy cold --no-ship
cold=$(json "$output" .set)
must zfs unmount tank/enc/pgdata
must zfs unload-key tank/enc
write_config 'encrypted_datasets = "plain"'
expect_refused "in the clear it can't be sent" 3 "the key of \"tank/enc/pgdata\" isn't loaded" ship "$cold"
write_config
run_lockstep "raw it can" ship "$cold"
expect_stored "an increment" 3 3 plain
expect_refused "its snapshots can't be cloned" 4 "zfs load-key tank/enc" restore "$cold" --to /nokey
expect_refused "nor by clone create" 4 "zfs load-key tank/enc" clone create nokey
REPOSITORY=sealed write_config
for dataset in tank/enc/r tank/enc; do
  expect_refused "nothing is received below $dataset" 4 "zfs load-key tank/enc" restore latest --from repository --as zfs --dataset $dataset --to /nokey
done
expect_failure "nothing was made" "does not exist" zfs list tank/enc/r
expect_failure "nor a folder" "No such file" ls /nokey
must zfs load-key tank/enc
run_lockstep "with the key it is received there" restore latest --from repository --as zfs --dataset tank/enc/r --to /nokey
for dataset in $(zfs list -H -o name -r tank/enc/r | tac); do zfs unmount "$dataset" 2>/dev/null; done
must zfs unload-key tank/enc
expect_refused "nor brought to a set's state" 4 "zfs load-key tank/enc" restore latest --from repository --as zfs --dataset tank/enc/r --to /nokey --delta
expect_equal "and stays as it is" on "$(zfs get -H -o value canmount tank/enc/r/data)"
write_config
must zfs load-key tank/enc
must zfs destroy -r tank/enc/r
rm -rf /nokey
must zfs mount tank/enc/pgdata
must zfs destroy -r tank/r
expect_refused "restored with one key alone" 4 "its keys aren't loaded" restore "$cold" --from repository --as zfs --dataset tank/r --to /cold
expect "load its passphrase" sh -c "echo '$PASSPHRASE' | zfs load-key tank/r/tablespace-$space_one"
run_lockstep "the cold set" restore "$cold" --from repository --as zfs --dataset tank/r --to /cold --delta --start --port 5502
expect_restored "the cold set" tank/r 5502 "$last_rows"
stop_cluster /cold/data

# --- keys that are changed --------------------------------------------------------------------------------------------------

# The copy's key is loaded, and isn't the one that the next increment brings.
write_config 'raw_full_every = 9'
head -c 32 /dev/urandom >$KEY
must zfs change-key tank/enc
run_lockstep "a set behind the change of the original's key" backup --strategy cold
expect_stored "an increment" 4 4 plain
run_lockstep "on top of what has the old key" restore latest --from repository --as zfs --dataset tank/r --to /cold --delta --start --port 5502
# The older snapshot belongs to a set that this host has, so nobody may remove it.
expect_restored "behind the change" tank/r 5502 "$last_rows" 2
expect_equal "mounted by the next start" on "$(zfs get -H -o value canmount tank/r/data)"
stop_cluster /cold/data
must zfs unmount tank/r/data
must zfs unload-key tank/r/data
expect "the new key is the copy's" zfs load-key tank/r/data
must zfs mount tank/r/data
# From a key file to a passphrase: `zfs load-key` as printed has to ask for it, and not try the file once more.
expect "a passphrase instead of the file" sh -c "echo 'new $PASSPHRASE' | zfs change-key -o keyformat=passphrase -o keylocation=prompt tank/enc"
run_lockstep "a set behind the change to a passphrase" backup --strategy cold
expect_refused "nobody has told it" 4 "its keys aren't loaded" restore latest --from repository --as zfs --dataset tank/r --to /cold --delta
expect_equal "the copy asks for it" prompt "$(zfs get -H -o value keylocation tank/r/data)"
expect "as the hint says" sh -c "echo 'new $PASSPHRASE' | zfs load-key tank/r/data"
run_lockstep "on top of what had the file's key" restore latest --from repository --as zfs --dataset tank/r --to /cold --delta --start --port 5502
expect_restored "behind the change to a passphrase" tank/r 5502 "$last_rows" 3
stop_cluster /cold/data
must zfs change-key -o keyformat=raw -o keylocation=file://$KEY tank/enc
run_lockstep "a set behind the change back" backup --strategy cold
# The increment would give a copy whose key was changed the original's key back, and then nobody could load the copy's
# key.
expect_refused "a copy below an encrypted dataset" 4 "its keys aren't loaded" restore latest --from repository --as zfs --dataset tank/enc/c --to /copy
must zfs change-key -i tank/enc/c/data
expect_refused "its key was changed" 4 'the key of "tank/enc/c/data" was changed' restore latest --from repository --as zfs --dataset tank/enc/c --to /copy --delta
must zfs destroy -r tank/enc/c
rm -rf /copy

# --- the original, received anew ------------------------------------------------------------------------------------------

# Without -w its snapshot keeps the GUID, and is encrypted anew: an increment from it wouldn't fit on what is stored.
set=$(json "$output" .set)
must zfs unmount tank/enc/pgdata
zfs send "tank/enc/pgdata@lockstep-$set" | zfs receive -u -o recordsize=8k tank/enc/anew || die "it can't be received anew"
must zfs set mountpoint=none tank/enc/pgdata
must zfs rename tank/enc/pgdata tank/enc/before
must zfs rename tank/enc/anew tank/enc/pgdata
must zfs set mountpoint="$PG_ROOT/data" tank/enc/pgdata
[ "$(zfs get -H -o value mounted tank/enc/pgdata)" = yes ] || must zfs mount tank/enc/pgdata
expect_equal "it has the GUID" "$(zfs get -Hp -o value guid "tank/enc/before@lockstep-$set")" "$(zfs get -Hp -o value guid "tank/enc/pgdata@lockstep-$set")"
run_lockstep "a set of the original received anew" backup --strategy cold
expect_stored "all of it is sent again" 1 7 plain
expect_refused "restored into new datasets" 4 "its keys aren't loaded" restore latest --from repository --as zfs --dataset tank/a --to /anew
expect "load its passphrase" sh -c "echo '$PASSPHRASE' | zfs load-key tank/a/tablespace-$space_one"
run_lockstep "the original received anew" restore latest --from repository --as zfs --dataset tank/a --to /anew --delta --start --port 5504
expect_restored "the original received anew" tank/a 5504 "$last_rows"
stop_cluster /anew/data
run_lockstep "the set after it" backup --strategy cold
expect_stored "goes on from there" 2 8 plain

# --- pg_wal encrypted too ----------------------------------------------------------------------------------------------------

must zpool destroy -f tank
must zpool destroy -f fast
rm -rf "$PG_ROOT" /restored /second /cold /anew /var/lib/lockstep /var/repository
must zpool create -O mountpoint=none -O atime=off -O compression=lz4 -O encryption=on -O keyformat=raw -O keylocation=file://$KEY tank /dev/vdb
must zpool create -O mountpoint=none copies /dev/vdc
must zfs create -o mountpoint="$PG_ROOT/data" -o recordsize=8k tank/pgdata
must zfs create -o mountpoint="$PG_ROOT/wal" tank/pgwal
must zfs create -o mountpoint="$PG_ROOT/space one" -o recordsize=8k "tank/space one"
cluster
write_config
expect "repo init" "$lockstep" repo init open
start_load
backup "a set of which all is encrypted" || finish
expect_equal "pg_wal's volume goes raw too" 1 "$(stored tank/pgwal)"
expect_equal "and no WAL lies beside it" snapshot "$("$lockstep" --json show latest --from repository | jq -r '.wal.stored')"
expect_refused "ls wal" 4 "is stored raw" ls latest wal --from repository
run_lockstep "restored into another pool" restore latest --from repository --as zfs --dataset copies/r --to /restored --start --port 5503
PGHOST=$(json "$output" .socket_directory) expect_consistent "all of it encrypted" 5503
expect_equal "its pg_wal too" aes-256-gcm "$(zfs get -H -o value encryption copies/r/wal)"
stop_cluster /restored/data
run_lockstep "pruned on this host" prune --local --set "$set"
backup "the next set"
expect_equal "pg_wal's is an increment from its bookmark" 2 "$(stored tank/pgwal)"
stop_load

# WAL that was copied out of an encrypted dataset: pg_wal is inside the data directory, with the backup API.
stop_cluster "$PG_ROOT/data"
must rm "$PG_ROOT/data/pg_wal"
must as_postgres cp -a "$PG_ROOT/wal" "$PG_ROOT/data/pg_wal"
start_cluster "$PG_ROOT/data" "$PG_PORT"
expect_refused "its WAL would lie in the clear" 3 "it would be stored there in the clear" backup --strategy label
expect "the hint says what to do" grep -qF "give the repository a key" /tmp/refused.out
write_config 'encrypted_datasets = "raw"'
run_lockstep "unless raw was asked for by name" ship latest
expect "then it warns" grep -q "isn't encrypted in the repository" /tmp/lockstep.err
stop_cluster "$PG_ROOT/data"
finish
