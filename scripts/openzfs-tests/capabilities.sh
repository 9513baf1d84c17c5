#!/bin/bash
# capabilities.sh -- the facts about OpenZFS that Lockstep's code depends on, each as a check.
#
# If one fails on a newer OpenZFS, review the code that depends on it; the messages are also in testdata/zfs-output,
# where the parsers' tests read them.
. "$(dirname "$0")/lib.sh"
run_in_guest

must zpool create -O mountpoint=/a a /dev/vdb
must zpool create -O mountpoint=/b b /dev/vdc
must zfs create a/x
must zfs create a/y
must zfs create "a/two words"
must zfs create b/z
echo hello >/a/x/file

property() { zfs get -Hp -o value "$1" "$2"; }
snapshots() { zfs list -H -o name -t snapshot | sort | paste -sd' '; }
# Type and source of what is mounted at a path. The kernel writes a space as \040, in the path and in the source.
mounted_at() { at="${1// /\\040}" awk '$5 == ENVIRON["at"] { for (i = 6; i <= NF; i++) if ($i == "-") print $(i + 1), $(i + 2) }' /proc/self/mountinfo; }

# One command for several snapshots: the 'atomic' strategy uses this, and is detected by it.
expect_failure "a probe with two missing datasets is refused for them, not for being two" "dataset does not exist" zfs snapshot a/no-a@x a/no-b@x
expect_equal "and makes nothing" "" "$(snapshots)"
expect "two datasets of one pool in one command" zfs snapshot a/x@s "a/two words@s" a@s
expect_equal "have one createtxg" "$(property createtxg a/x@s)" "$(property createtxg "a/two words@s")"
expect_equal "as has their parent" "$(property createtxg a/x@s)" "$(property createtxg a@s)"
must zfs snapshot a/y@s
expect_equal "which another command's snapshot does not have" yes "$([ "$(property createtxg a/y@s)" != "$(property createtxg a/x@s)" ] && echo yes)"
before=$(snapshots)
expect_failure "two pools in one command are refused" "cannot create snapshots" zfs snapshot a/x@p b/z@p
expect_failure "one of them existing already is refused" "already exists" zfs snapshot a/x@s a/y@new
expect_failure "one of them missing is refused" "does not exist" zfs snapshot a/x@new a/no@new
expect_equal "and none of these made anything" "$before" "$(snapshots)"

# Output for programs.
expect_equal "zfs get -Hp prints bytes" 131072 "$(property recordsize a/x)"
expect_equal "zfs list -Hp prints bytes" 131072 "$(zfs list -Hp -o recordsize a/x)"
expect_equal "fields are parted by one tab" "a/two words	/a/two words	yes" "$(zfs list -Hp -o name,mountpoint,mounted "a/two words")"
expect_equal "zpool get -Hp too" health "$(zpool get -Hp health a | cut -f2)"
expect_equal "a guid fits 64 bits and stays" "$(property guid a/x@s)" "$(zfs list -Hp -o guid a/x@s)"

# How the dataset of a path is found.
expect_equal "a mount's type and source" "zfs a/x" "$(mounted_at /a/x)"
expect_equal "also with a blank in its name" 'zfs a/two\040words' "$(mounted_at '/a/two\040words')"

# Snapshots can be read in place.
expect_equal "a snapshot is readable in .zfs" hello "$(cat /a/x/.zfs/snapshot/s/file)"
expect_equal "where it is a mount of its own, with the snapshot as source" "zfs a/x@s" "$(mounted_at /a/x/.zfs/snapshot/s)"
expect "also of a dataset with a blank in its name" ls "/a/two words/.zfs/snapshot/s"

# Properties of snapshots.
expect "user properties at snapshot time, one command for two" zfs snapshot -o lockstep:set=1 -o "lockstep:label=two words" a/x@t a/y@t
expect_equal "are read back" "1 two words" "$(property lockstep:set a/x@t) $(property lockstep:label a/y@t)"
expect "are set later" zfs set lockstep:state=complete lockstep:part=data a/x@t
expect_equal "and read back too" "complete data" "$(property lockstep:state a/x@t) $(property lockstep:part a/x@t)"
expect_equal "an absent one is a dash" - "$(property lockstep:absent a/x@t)"
long=$(printf '%8191s' '' | tr ' ' x)
expect "a value has up to 8191 bytes" zfs set "lockstep:long=$long" a/x@t
expect_equal "all of which are kept" 8191 "$(property lockstep:long a/x@t | tr -d '\n' | wc -c)"
expect_failure "and no more" "too long" zfs set "lockstep:long=${long}x" a/x@t

# Holds.
expect "hold" zfs hold lockstep a/x@t a/y@t
expect_failure "a hold twice" "tag already exists on this dataset" zfs hold lockstep a/x@t
expect_equal "holds -H prints name, tag, time" "a/x@t	lockstep" "$(zfs holds -H a/x@t | cut -f1,2)"
expect_equal "userrefs counts them" 1 "$(property userrefs a/x@t)"
expect_failure "a held snapshot cannot be destroyed" "dataset is busy" zfs destroy a/x@t
expect "release" zfs release lockstep a/x@t a/y@t
expect_failure "a release twice" "no such tag on this dataset" zfs release lockstep a/x@t

# Clones.
expect "a clone with its mountpoint" zfs clone -o mountpoint=/clone -o lockstep:clone=c a/x@t a/clone
expect_equal "is mounted there" "zfs a/clone" "$(mounted_at /clone)"
expect_equal "with its origin" a/x@t "$(property origin a/clone)"
expect_equal "which names its clones" a/clone "$(property clones a/x@t)"
expect_failure "an origin with clones cannot be destroyed" "snapshot has dependent clones" zfs destroy a/x@t
expect_failure "a clone in another pool" "source and target pools differ" zfs clone a/x@t b/clone
(cd /clone && sleep 60) & sleeper=$!
sleep 1
expect_failure "a clone in use cannot be destroyed" "pool or dataset is busy" zfs destroy a/clone
pkill -P $sleeper; wait $sleeper 2>/dev/null
expect "at once when nobody uses it" zfs destroy a/clone
expect "and then its origin" zfs destroy a/x@t

# Bookmarks.
echo more >>/a/x/file
must zfs snapshot a/x@u
expect "bookmark" zfs bookmark a/x@s a/x#s
expect_equal "it has the snapshot's guid and txg" "$(property guid a/x@s) $(property createtxg a/x@s)" "$(property guid a/x#s) $(property createtxg a/x#s)"
expect_failure "a bookmark twice" "bookmark exists" zfs bookmark a/x@s a/x#s
expect "the snapshot can go" zfs destroy a/x@s
expect "and an incremental stream starts from the bookmark" sh -c 'zfs send -i "#s" a/x@u | cat >/tmp/stream'
expect_failure "a probe for bookmarks with a missing dataset" "does not exist" zfs bookmark a/no@x a/no#x

# Streams.
expect "send -L -c -e" sh -c 'zfs send -L -c -e a/x@u | zfs receive -u b/copy'
expect_equal "receive keeps the guid" "$(property guid a/x@u)" "$(property guid b/copy@u)"
head -c 3000000 /dev/urandom >/a/x/big
must zfs snapshot a/x@v
expect_failure "an interrupted resumable receive" "" sh -c 'zfs send -i @u a/x@v | head -c 1000000 | zfs receive -s -u b/copy'
expect_equal "leaves a token" 1- "$(property receive_resume_token b/copy | cut -c1-2)"
# shellcheck disable=SC2016  # the inner shell's
expect "with which the rest is sent" sh -c 'zfs send -t "$(zfs get -H -o value receive_resume_token b/copy)" | zfs receive -s -u b/copy'
expect_equal "which completes it" "$(property guid a/x@v)" "$(property guid b/copy@v)"

finish
