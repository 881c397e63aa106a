# Guest: servers that die, leave and are replaced while a file system is in use on their device.
#
#   recover.sh FILESYSTEM ROUNDS [OPTION OF dedup-ublk...]
. /job/guest.sh
kind=$1 rounds=$2
shift 2

# Blocks that were acknowledged and never flushed: there after the server was killed.
unflushed() { # SEED
    seq "$1" 400000 | head -c 1048576 >/tmp/blocks
    dd if=/tmp/blocks of=/dev/ublkb0 bs=16k seek=12800 oflag=direct 2>/dev/null || fail "writing"
    read_back || fail "the device does not hold what was written"
}
read_back() { dd if=/dev/ublkb0 bs=16k skip=12800 count=64 iflag=direct 2>/dev/null | cmp -s - /tmp/blocks; }
waits() { dedup-ublk list | grep -q 'waiting for a server'; }

die() {
    kill -9 $server
    wait $server 2>/dev/null
    wait_for 60 waits
}

mkdir /tmp/v /tmp/home
serve dedup-ublk add /tmp/v --id 0 --reconstruct no --force --logical-size 400M "$@" # which is done once, and not by `recover`

# What the rounds below rest on: without the volume's journal the same is lost, which is not passed over. So the test can fail.
unflushed 1
die
rm /run/dedup/journal-*
! dedup-ublk recover 0 2>/tmp/refused || fail "a volume was served without what its dead server had acknowledged"
grep -q 'expected journal .*--force' /tmp/refused || fail "recover: $(cat /tmp/refused)"
serve dedup-ublk recover 0 --force
! read_back || fail "unflushed blocks were there without their journal: this test proves nothing"
unflushed 2
die
dedup-check /tmp/v >/tmp/check 2>&1 || { cat /tmp/check && fail "dedup-check of a volume whose server died"; }
grep -q 'operations that it had acknowledged' /tmp/check || fail "dedup-check: $(cat /tmp/check)"
serve dedup-ublk recover 0
read_back || fail "acknowledged blocks are gone after a recovery"
grep -q 'acknowledged are taken in' /tmp/log || fail "nothing was taken in"
echo "recover: unflushed blocks survive kill -9 of the server"

make_fs "$kind" /dev/ublkb0
mount -t "$kind" /dev/ublkb0 /mnt || fail "mount"
# Several programs that write, read back and remove, until told to end.
load() { # NUMBER
    n=0
    while [ ! -e /tmp/enough ]; do
        fill "/mnt/load$1.$n" 2 || { echo "load $1: a write failed" >>/tmp/failed; return; }
        # One of the two through the device, the other as it comes.
        [ "$1" = 0 ] || { sync && echo 1 >/proc/sys/vm/drop_caches; }
        (cd "/mnt/load$1.$n" && sha256sum -c -s "/mnt/load$1.$n.sums") || echo "load $1: other bytes" >>/tmp/failed
        [ $((n % 2)) = 0 ] || rm -rf "/mnt/load$1.$n" "/mnt/load$1.$n.sums"
        n=$((n + 1))
        [ $n -lt 12 ] || return
    done
}
load 0 & loads=$!
load 1 & loads="$loads $!"
round=0
while [ $round -lt "$rounds" ]; do
    usleep $((300000 + round * 170000 % 500000))
    case $((round % 3)) in
    0 | 1)
        die
        serve dedup-ublk recover 0
        ;;
    2) # An upgrade: the old one makes everything durable and goes, the new one is started as a service manager would.
        kill -HUP $server
        wait $server
        [ $? = 75 ] || fail "the leaving server's exit status is not 75"
        wait_for 60 waits
        serve dedup-ublk add /tmp/v --id 0 --or-recover "$@"
        ;;
    esac
    round=$((round + 1))
done
touch /tmp/enough
wait $loads
[ ! -e /tmp/failed ] || { cat /tmp/failed && fail "the file system saw a failure"; }
sync
for sums in /mnt/*.sums; do verify "${sums%.sums}"; done
umount /mnt || fail "umount"
check_fs "$kind" /dev/ublkb0
no_errors
# `del` has the server close the volume, refuses what is mounted, and takes a device without a server away too.
mount -t "$kind" -o ro /dev/ublkb0 /mnt
! dedup-ublk del 0 2>/dev/null || fail "a mounted device was removed"
umount /mnt
dedup-ublk del 0 || fail "del"
wait $server || fail "the server's exit status is $?"
nothing_left() {
    # A control socket of a killed server stays until the next one of its pool.
    [ ! -e /dev/ublkc0 ] && [ -z "$(ls /run/dedup | grep ublk)" ] || fail "something is left: $(ls /dev/ublk* /run/dedup)"
}
nothing_left
serve dedup-ublk add /tmp/v --read-only
[ "$(cat /sys/block/ublkb0/ro)" = 1 ] || fail "a read-only device says it is not"
mount -t "$kind" -o ro /dev/ublkb0 /mnt || fail "mount of a read-only device"
for sums in /mnt/*.sums; do verify "${sums%.sums}"; done
umount /mnt
die
dedup-ublk del 0 || fail "del of a device without a server"
nothing_left
# What was acknowledged is the volume's, not the device's: it is there under any number.
serve dedup-ublk add /tmp/v --id 0
unflushed 3
die
dedup-ublk del 0 || fail "del of a device without a server"
nothing_left
serve dedup-ublk add /tmp/v --id 0
read_back || fail "what was acknowledged went with the device"
stop_server
# Without recovery the device goes with its server, and the next one has its number.
serve dedup-ublk add /tmp/v --id 0 --no-recovery
kill -9 $server
wait $server 2>/dev/null
dedup-ublk del 0 || fail "del of a device whose server died"
nothing_left
dedup-check --data /tmp/v >/tmp/check 2>&1 || { cat /tmp/check && fail "dedup-check"; }

# An ordinary user, once udev (here: a loop) hands him the nodes.
echo 'root:x:0:0::/:/bin/sh
user:x:1000:1000::/tmp:/bin/sh' >/etc/passwd
chmod 666 /dev/ublk-control
chmod 1777 /run/ublksrvd /tmp
chown 1000 /tmp/home
(while [ ! -e /tmp/handed ]; do chown 1000 /dev/ublkc0 /dev/ublkb0 2>/dev/null && touch /tmp/handed; usleep 20000; done) &
as_user() { su user -c "LD_LIBRARY_PATH=/lib/job DEDUP_RUNTIME_DIR=/tmp/home/run $*"; }
serve as_user dedup-ublk add /tmp/home/v --create --logical-size 40M --unprivileged
wait_for 20 [ -e /tmp/handed ]
as_user 'dd if=/job/script of=/dev/ublkb0 bs=512 count=4 conv=fsync && dd if=/dev/ublkb0 bs=512 count=4' >/tmp/same 2>/dev/null
[ "$(head -c 2048 /job/script | sha256sum)" = "$(sha256sum </tmp/same)" ] || fail "an ordinary user's device holds other bytes"
as_user dedup-ublk del 0 || fail "del by an ordinary user"
wait $server || fail "the server's exit status is $?"
echo "recover $kind $*: $rounds servers replaced under load, $(grep -c 'are taken in' /tmp/log) journals taken in"
