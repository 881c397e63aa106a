# Guest: how many system calls the front end makes for a request, with nothing behind it. Times say nothing under emulation; counts do.
#
#   calls.sh [OPTION OF dedup-ublk...]
. /job/guest.sh
requests=4000
for depth in 32 1; do
    mkdir /tmp/v
    serve dedup-ublk add /tmp/v --id 0 --create --logical-size 200M --null --queues 1 --no-recovery "$@"
    for kind in randwrite randread; do
        strace -c -f -o /tmp/calls -p $server 2>/dev/null &
        strace=$!
        wait_for 20 grep -q 'TracerPid:.[1-9]' /proc/$server/status
        fio --name=x --filename=/dev/ublkb0 --ioengine=libaio --direct=1 --rw=$kind --bs=4k --iodepth=$depth --number_ios=$requests \
            --size=200M >/tmp/fio 2>&1 || fail "fio: $(cat /tmp/fio)"
        kill -INT $strace
        wait $strace
        # What is rare is of the start and the end.
        awk -v n=$requests -v what="$kind of 4 KiB, $depth in flight" \
            '$4 > n / 50 && $NF !~ /total|call/ { sum += $4; text = text sprintf(", %.2f %s", $4 / n, $NF) }
            END { printf "%s: %.1f calls a request%s\n", what, sum / n, text }' /tmp/calls
    done
    stop_server
    rm -r /tmp/v
done
