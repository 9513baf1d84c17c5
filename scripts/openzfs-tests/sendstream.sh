#!/bin/bash
# sendstream.sh -- folded streams on OpenZFS: a real `zfs receive` must accept what `lockstep stream fold` makes of the
# recorded chains. The result holds what the source held, keeps its GUID, and accepts the source's next increment.
#
# The program is built on the host and named by $LOCKSTEP_BIN (default: target/debug/lockstep of this checkout). The
# trees are read with find and sha256sum, not by Lockstep.
. "$(dirname "$0")/lib.sh"
run_in_guest --push "${LOCKSTEP_BIN:-$(dirname "$0")/../../target/debug/lockstep}" \
  --push "$(dirname "$0")/../../crates/sendstream/testdata/streams/streams.tar.zst"

streams=/var/tmp/streams
mkdir -p "$streams"
must tar -C "$streams" -I 'zstd --long=27' -xf /usr/local/bin/streams.tar.zst
lockstep=$(find /usr/local/bin -type f -name 'lockstep*' | head -1)
must zpool create -O mountpoint=/a a /dev/vdb

# Path, type, mode, uid, gid, size, mtime in nanoseconds, 32 digits of SHA-256, as in the recorded trees.
listing() { # FOLDER
  (
    cd "$1" || exit 1
    find . -type f -print0 | xargs -0 sha256sum | sed 's/^\(.\{32\}\)[^ ]* [ *]\.\//\1\t/' >/tmp/hashes
    find . -type l -printf '%P\n' | while IFS= read -r link; do
      printf '%s\t%s\n' "$(readlink -n "$link" | sha256sum | cut -c1-32)" "$link"
    done >>/tmp/hashes
    find . -printf '%P\t%y\t%m\t%U\t%G\t%s\t%T@\n' | awk -F'\t' -v OFS='\t' '
      FILENAME == "/tmp/hashes" { hash[$2] = $1; next }
      {
        if ($1 == "") $1 = "."
        $3 = substr("0000" $3, length($3) + 1)
        if ($2 == "d") $6 = "-"
        split($7, time, "."); $7 = time[1] substr(time[2] "000000000", 1, 9)
        print $1, $2, $3, $4, $5, $6, $7, ($2 == "d" ? "-" : hash[$1])
      }' /tmp/hashes -
  ) | LC_ALL=C sort
}

expect_tree() { # WHAT DATASET TREE
  local difference
  if difference=$(diff <(listing "/$2") <(grep -v '^# path' "$streams/$3.tree" | LC_ALL=C sort)); then
    passed "$1: the tree of $3"
  else
    failed "$1: the tree of $3" "$difference"
  fi
}

guid() { awk -F'\t' -v name="tank/${1}1@$2" '$1 == name { print $2 }' "$streams/guids.tsv"; }

receive() { zfs receive "$@" <"$streams/stream"; }

check_chain() { # DATASET FLAGS LAST
  local what="$1.$2 to s$3" files=("$streams/$1.$2.s0") step target
  for ((step = 0; step < $3; step++)); do files+=("$streams/$1.$2.s$step-s$((step + 1))"); done
  target=a/$1-$2-$3
  "$lockstep" stream fold "${files[@]}" >"$streams/stream" || { failed "$what: it folds"; return; }
  expect "$what: zfs receive takes the fold" receive "$target"
  expect_tree "$what" "$target" "$1.s$3"
  expect_equal "$what: the GUID is kept" "$(guid "$1" "s$3")" "$(zfs get -Hp -o value guid "$target@s$3")"
  if (($3 < 4)); then
    cp "$streams/$1.$2.s$3-s$(($3 + 1))" "$streams/stream"
    expect "$what: the next increment applies on top" receive -F "$target"
    expect_tree "$what and one more" "$target" "$1.s$(($3 + 1))"
  fi
  must zfs destroy -r "$target"
}

for chain in "pg8k plain" "std128k plain" "std128k ce" "big1m L"; do
  for last in 0 2 4; do
    # shellcheck disable=SC2086
    check_chain $chain $last
  done
done

# All steps as one increment, on top of the source's own full stream.
for chain in pg8k.plain std128k.ce big1m.L; do
  dataset=${chain%.*}
  cp "$streams/$chain.s0" "$streams/stream"
  must receive "a/$dataset"
  "$lockstep" stream fold "$streams/$chain".s{0-s1,1-s2,2-s3,3-s4} >"$streams/stream" || failed "$chain: the steps fold"
  expect "$chain: zfs receive takes all steps as one" receive -F "a/$dataset"
  expect_tree "$chain as one step" "a/$dataset" "$dataset.s4"
done

# Large blocks turned on half way: some receivers can't receive the source's own chain, but they can receive the fold.
"$lockstep" stream fold "$streams/big1m.plain.s0" "$streams/big1m.L.s0-s1" >"$streams/stream" || failed "plain and -L fold"
expect "big1m, -L turned on: zfs receive takes the fold" receive a/switched
expect_tree "big1m, -L turned on" a/switched big1m.s1
cp "$streams/big1m.L.s1-s2" "$streams/stream"
expect "big1m, -L turned on: the next increment applies on top" receive -F a/switched
expect_tree "big1m, -L turned on and one more" a/switched big1m.s2

finish
