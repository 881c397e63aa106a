# Guest: each file system made, mounted, filled, verified, trimmed, unmounted, checked; on a ublk device or the kernel's nbd.
#
#   filesystems.sh ublk|nbd FILESYSTEM... [-- OPTION OF dedup-ublk...]
. /job/guest.sh
front=$1
shift
kinds=
while [ $# -gt 0 ] && [ "$1" != -- ]; do kinds="$kinds $1" && shift; done
[ $# -eq 0 ] || shift

# Whether what the deleted files alone had has come back. XFS takes a deleted file's extents back in the background, whatever a sync says.
trimmed() {
    fstrim "$1" || fail "fstrim"
    now=$(used)
    [ $((full - now)) -gt 8388608 ]
}

used() { dedup-tool status --json /tmp/v | sed -n 's/.*"data_used": \([0-9]*\).*/\1/p'; }

mkdir /tmp/v
if [ "$front" = ublk ]; then
    serve dedup-ublk add /tmp/v --create --logical-size 400M --discard "$@"
    device=/dev/ublkb0
else
    # This machine has no ublk_drv, and is told what to do about it.
    ! dedup-ublk list 2>/tmp/said && grep -q 'modprobe ublk_drv' /tmp/said || fail "a missing module: $(cat /tmp/said)"
    serve dedup-nbd /tmp/v --create --logical-size 400M --discard
    device=/dev/nbd0
    /bin/nbd-client -unix /tmp/v/nbd.sock $device -connections 2 >/tmp/nbd 2>&1 || { cat /tmp/nbd && fail "nbd-client"; }
fi
for kind in $kinds; do
    begin=$(date +%s)
    make_fs "$kind" $device
    mkdir -p /mnt/$kind
    mount -t "$kind" $device /mnt/$kind || fail "mount $kind"
    fill /mnt/$kind/files 12 || fail "filling"
    sync
    verify /mnt/$kind/files
    full=$(used)
    rm -rf /mnt/$kind/files/a # 12 MiB of it are nowhere else
    sync
    wait_for 10 trimmed /mnt/$kind
    umount /mnt/$kind || fail "umount"
    check_fs "$kind" $device
    mount -t "$kind" -o ro $device /mnt/$kind || fail "mount $kind again"
    echo 3 >/proc/sys/vm/drop_caches
    (cd /mnt/$kind/files && grep ' b/' /mnt/$kind/files.sums | sha256sum -c -s) || fail "after all that, other bytes"
    umount /mnt/$kind
    echo "$front $kind: filled $full bytes of data, $now after trim; $(($(date +%s) - begin)) s"
done
if [ "$front" = ublk ] && [ -e /bin/fio ]; then
    # Requests of all sizes at offsets of all alignments, in flight together, each block with its checksum.
    /bin/fio --name=verify --filename=$device --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70 --bsrange=512-64k \
        --bs_unaligned=0 --blockalign=512 --size=12M --verify=crc32c --verify_fatal=1 --randseed=1 --trim_percentage=10 \
        --output=/tmp/fio >/dev/null 2>&1 || { cat /tmp/fio && fail "fio"; }
    echo "ublk fio: verified"
fi
no_errors
[ "$front" = ublk ] || /bin/nbd-client -d $device >/dev/null 2>&1
stop_server
dedup-check --data /tmp/v 2>/dev/null || fail "dedup-check"
