#!/bin/bash
# guest.sh -- openzfs-vm itself: exit statuses, files in and out, states, and the power cut. Controlled from the host.
. "$(dirname "$0")/lib.sh"

vm=$(dirname "$(realpath "$0")")/../openzfs-vm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Not `run`: this test works with the guest's states.
must "$vm" boot
must "$vm" reset fresh

expect "exec returns 0" "$vm" exec true
"$vm" exec 'exit 3'
expect_equal "exec returns the script's status" 3 $?
expect_equal "stdout and stderr come back as they were" $'a\nb' "$("$vm" exec 'echo a; printf b >&2')"
# shellcheck disable=SC2016  # the guest's shell's
expect_equal "a script on stdin" 42 "$(echo 'echo $((6 * 7))' | "$vm" exec)"
expect_equal "two at once take turns" "one two" "$({ "$vm" exec 'sleep 1; echo one' & sleep 0.3; "$vm" exec 'echo two'; wait; } | paste -sd' ')"

head -c 5000000 /dev/urandom >"$work/with blank"
expect "push" "$vm" push "$work/with blank" "/root/in here"
expect "pull" "$vm" pull "/root/in here/with blank" "$work/out"
expect "they are the same" cmp "$work/with blank" "$work/out/with blank"

"$vm" exec 'zpool create -O mountpoint=/tank tank /dev/vdb && echo kept >/tank/file && sleep 1000 >/dev/null 2>&1 & sleep 3'
expect "save" "$vm" save guest-test
"$vm" exec 'zpool destroy tank; pkill sleep'
expect "reset" "$vm" reset guest-test
expect_equal "the disks are back" kept "$("$vm" exec 'cat /tank/file')"
expect "and the processes" "$vm" exec 'pgrep -x sleep'
expect_equal "the clock is right" yes "$([ $(($(date +%s) - $("$vm" exec 'date +%s'))) -lt 5 ] && echo yes)"
expect_failure "reset to what was not saved" "could not load" "$vm" reset no-such-state
expect "the guest runs on after that" "$vm" exec true

"$vm" exec 'echo synced >/tank/synced; sync; echo lost >/tank/lost'
expect "reboot" "$vm" reboot
expect "the pool can be imported" "$vm" exec 'zpool import -f tank'
expect_equal "it holds what was synced, not what wasn't" synced "$("$vm" exec 'cd /tank; ls | grep -v file')"
expect "back to the beginning" "$vm" reset fresh
expect_failure "where there is no pool" "no such pool" "$vm" exec 'zpool list tank'
finish
