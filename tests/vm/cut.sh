# Guest: writes and flushes until the power goes; and the next time, what was flushed is there.
#
#   cut.sh FILESYSTEM SEED last|on [OPTION OF dedup-ublk...]
#
# Prints a line `durable NAME SUM` once a file's fsync has returned: whoever cuts the power knows from these lines what must be there.
# /job/durable holds those of the boots before.
. /job/guest.sh
kind=$1 seed=$2 then=$3
shift 3
volume="--data-dev /dev/vda --metadata-dev /dev/vdb"
mkdir -p /mnt
if [ -s /job/durable ] || [ "$then" = last ]; then
    dedup-check --data $volume >/tmp/check 2>/dev/null || { cat /tmp/check && fail "dedup-check after the power cut"; }
    serve dedup-ublk add $volume --id 0 "$@"
    # Mounting replays the file system's own log; only then is it to be whole.
    mount -t "$kind" /dev/ublkb0 /mnt || fail "mount after the power cut"
    while read -r name sum; do
        [ "$(sha256sum "/mnt/$name" 2>/dev/null | cut -d' ' -f1)" = "$sum" ] || fail "$name was flushed and is not what it was"
    done </job/durable
    umount /mnt
    check_fs "$kind" /dev/ublkb0
    echo "verified $(wc -l </job/durable) flushed files"
    if [ "$then" = last ]; then
        no_errors
        stop_server
        exit 0
    fi
else
    serve dedup-ublk add $volume --id 0 --create --logical-size 320M "$@"
    make_fs "$kind" /dev/ublkb0
fi
mount -t "$kind" -o discard /dev/ublkb0 /mnt || fail "mount"
echo "writing"
# Others write too, and never flush.
(while :; do dd if=/dev/urandom of=/mnt/noise bs=64k count=24 conv=notrunc 2>/dev/null; rm -f /mnt/noise; done) &
i=0
while :; do
    name=f$seed.$i
    # Half of it seen before, half new.
    { seq 1 $((i * 97 % 9000)) && head -c $((i * 7919 % 60000 + 1)) /dev/urandom; } >/tmp/file
    # In these three file systems the name of a new file is durable with it.
    dd if=/tmp/file of=/mnt/$name bs=32k conv=fsync 2>/dev/null || fail "writing $name"
    echo "durable $name $(sha256sum /tmp/file | cut -d' ' -f1)"
    i=$((i + 1))
done
