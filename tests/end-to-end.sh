#!/usr/bin/env bash
# The release binaries from outside, with other people's programs: a file system image stored twice, and kill -9
# at the moments that hurt. Prints one line for each property that held, and stops loudly at the first that did not.
#
#   tests/end-to-end.sh [IMAGE_MIB [KILLS]]      default: 512 MiB and 6 kills of each kind, about a minute
#
# BIN names the directory of dedup-tool, dedup-nbd and dedup-check; KEEP=1 keeps the scratch directory.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

image_mib=${1:-512}
kills=${2:-6}
bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release}")
work=$(mktemp -d "${TMPDIR:-/tmp}/dedup-end-to-end.XXXXXX")
# Sockets of this run only: a volume that is being served elsewhere has nothing to do with it.
export DEDUP_RUNTIME_DIR=$work/run
mkdir -m 700 "$DEDUP_RUNTIME_DIR"
server='' jobs=()

passed() { printf 'ok    %4ds  %s\n' "$SECONDS" "$*"; }
fail() {
    trap - ERR
    printf '\nFAILED: %s\n' "$*" >&2
    tail -n 20 "$work"/{serve,check}.log >&2 2>/dev/null || true
    exit 1
}
cleanup() {
    local status=$?
    for job in $server "${jobs[@]}"; do kill -9 "$job" 2>/dev/null || true; done
    if [[ ${KEEP:-0} == 1 || $status != 0 ]]; then echo "scratch directory: $work" >&2; else rm -rf "$work"; fi
}
trap cleanup EXIT
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# A fraction of a second, from $1 to $2 milliseconds.
nap() { sleep "$(printf '0.%03d' $(($1 + RANDOM % ($2 - $1 + 1))))"; }

serve() { # VOLUME: starts the server and waits until it says where
    rm -f "$work/serve.out"
    "$bin/dedup-nbd" "$1" >"$work/serve.out" 2>>"$work/serve.log" &
    server=$!
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        if grep -q '^nbd+unix:' "$work/serve.out" 2>/dev/null; then return; fi
        kill -0 "$server" 2>/dev/null || fail "the server of $1 did not start"
        sleep 0.05
    done
    fail "the server of $1 did not listen within 15 s"
}

stop() { # SIGTERM, and the exit code 0
    kill -TERM "$server"
    timeout 30 tail --pid="$server" -f /dev/null || fail "the server did not end within 30 s of SIGTERM"
    local status=0
    wait "$server" || status=$?
    server=''
    [[ $status == 0 ]] || fail "after SIGTERM the server exited with $status"
}

crash() { # kill -9; false if the server had ended before
    local status=0
    kill -9 "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || status=$?
    server=''
    [[ $status == 137 ]]
}

field() { # VOLUME FIELD: a number of its status
    timeout 20 "$bin/dedup-tool" status --json "$1" | sed -n "s/^ *\"$2\": \([0-9]*\),\{0,1\}\$/\1/p"
}

check() { # VOLUME: data included; any finding fails
    timeout 120 "$bin/dedup-check" --data "$1" >"$work/check.log" 2>&1 || fail "dedup-check of $1 exited with $?"
}

at() { # VOLUME OFFSET SIZE: this part of the export, as options of QEMU's
    echo "driver=raw,offset=$2,size=$3,file.driver=nbd,file.server.type=unix,file.server.path=$1/nbd.sock"
}

# ---------------------------------------------------------------------------------------------------------------
# One image, stored twice.

make_image() { # FILE: ext4 with real files, as many as fill three quarters of it
    mkdir "$work/tree"
    find /usr/share /usr/lib -xdev -type f -size -32M -readable -printf '%s %p\0' 2>/dev/null | sort -z -k 2 |
        awk -v RS='\0' -v ORS='\0' -v room=$((image_mib * 786432)) \
            '{ room -= int($1 / 4096 + 1) * 4096; sub(/^[0-9]+ /, ""); if (room > 0) print }' |
        xargs -0 cp --parents --no-preserve=all -t "$work/tree"
    timeout 120 mke2fs -q -F -t ext4 -d "$work/tree" "$1" "${image_mib}M" &>"$work/mke2fs.log"
    rm -rf "$work/tree"
}

distinct_blocks() { # FILE: how many different blocks of 4 KiB it has, zeros apart
    perl -MDigest::MD5=md5 -e 'my %seen; while (read STDIN, my $b, 4096) { $seen{md5 $b} = 1 if $b =~ /[^\0]/ } print scalar keys %seen' <"$1"
}

stored_twice() {
    local image=$work/image volume=$work/twice size first second copy
    make_image "$image"
    size=$((image_mib << 20))
    timeout 20 "$bin/dedup-tool" format "$volume" --logical-size $((image_mib * 4))M >/dev/null
    serve "$volume"

    timeout 120 qemu-img convert -n -f raw --target-image-opts "$image" "$(at "$volume" 0 $size)"
    first=$(field "$volume" data_used_blocks)
    [[ $first == "$(distinct_blocks "$image")" ]] || fail "the image takes $first blocks, expected $(distinct_blocks "$image")"
    passed "a file system of $image_mib MiB takes one block for each different one that it has: $first"

    # Exactly none: what is stored is found for certain, as long as the index is whole, and zeros take no space.
    timeout 120 qemu-img convert -n -f raw --target-image-opts "$image" "$(at "$volume" $size $size)"
    second=$(field "$volume" data_used_blocks)
    [[ $second == "$first" ]] || fail "the second copy took $((second - first)) data blocks, expected none"
    passed "a second copy of it takes no data block"

    stop
    passed "SIGTERM ends the server with exit code 0"
    check "$volume"
    passed "dedup-check --data finds nothing after an orderly end"

    serve "$volume"
    for copy in 0 1; do
        timeout 120 qemu-img convert -O raw --image-opts "$(at "$volume" $((copy * size)) $size)" "$work/back"
        cmp "$image" "$work/back"
    done
    passed "both copies read back byte for byte, after a restart"
    timeout 120 e2fsck -fn "$work/back" >"$work/e2fsck.log" 2>&1 || fail "e2fsck of a copy read back: $(cat "$work/e2fsck.log")"
    passed "e2fsck finds nothing in a copy read back"
    stop
    rm -rf "$volume" "$work/back" "$image"
}

# ---------------------------------------------------------------------------------------------------------------
# kill -9 under load. One client records what was flushed; another, deep in unique writes and flushes of its own,
# sees to it that commits and checkpoints are always under way: the log ring is small, so one runs every 64 commits.

slots=64 # blocks of the recorder, at the start of the volume

# Round r fills slot s with the byte (7 r + 3 s) mod 251 + 1: slots share blocks, and change partners from round to round.
record() { # VOLUME FIRST_ROUND: writes rounds of all slots, each with a flush, and a read that shows that the flush is over
    local round slot
    for ((round = $2; ; round++)); do
        [[ ! -e $work/enough ]] || break
        for ((slot = 0; slot < slots; slot++)); do echo "write -P $(((round * 7 + slot * 3) % 251 + 1)) $((slot * 4096)) 4096"; done
        printf 'flush\nread 0 512\n'
    done 2>/dev/null | timeout 60 qemu-io -f raw "nbd+unix:///?socket=$1/nbd.sock" >"$work/recorder.out" 2>&1 || true
}

start_load() { # VOLUME FIRST_ROUND
    rm -f "$work/enough"
    record "$1" "$2" &
    jobs=($!)
    timeout 60 fio --name=noise --ioengine=nbd --uri="nbd+unix:///?socket=$1/nbd.sock" --rw=randrw --rwmixwrite=80 \
        --bs=4k --offset=1m --size=60m --iodepth=16 --fsync=8 --time_based --runtime=50 --dedupe_percentage=30 \
        --output="$work/fio.out" >/dev/null 2>&1 &
    jobs+=($!)
}

end_load() { # after the server has gone; sets flushed to the last round known durable
    touch "$work/enough"
    wait "${jobs[@]}" 2>/dev/null || true
    jobs=()
    flushed=$(($1 - 1 + $(grep -c 'read 512/512' "$work/recorder.out" || true)))
}

verify_slots() { # VOLUME ROUND: each slot whole, of this round or of the one after, which was under way
    timeout 30 qemu-img convert -O raw --image-opts "$(at "$1" 0 $((slots * 4096)))" "$work/slots"
    perl -e 'my ($round, $slots) = @ARGV; local $/ = \4096; my $slot = 0;
        while (my $block = <STDIN>) {
            my @may = map { chr(($_ * 7 + $slot * 3) % 251 + 1) } $round, $round + 1;
            my ($byte) = grep { $block eq $_ x 4096 } @may or die "slot $slot: neither of round $round nor of the next\n";
            $slot++;
        }
        $slot == $slots or die "$slot slots\n"' "$2" $slots <"$work/slots" || fail "after kill -9: flushed data is gone or torn"
}

fresh_volume() { # VOLUME: with the smallest log ring, and the recorder's first round in it
    rm -rf "$1"
    timeout 20 "$bin/dedup-tool" format "$1" --logical-size 64M >/dev/null
}

killed_under_load() {
    local volume=$work/killed next=1 kill checkpoints=0 before
    fresh_volume "$volume"
    for ((kill = 0; kill < kills; kill++)); do
        serve "$volume"
        before=$(field "$volume" transaction)
        start_load "$volume" $next
        sleep 1
        nap 0 500
        checkpoints=$((checkpoints + $(field "$volume" transaction) - before))
        crash
        end_load $next
        ((flushed >= next)) || fail "nothing was flushed before the kill: $(tail -n 3 "$work/recorder.out")"
        serve "$volume"
        verify_slots "$volume" "$flushed"
        crash # the recovered log is replayed again by the check
        check "$volume"
        next=$((flushed + 2))
    done
    ((checkpoints > kills)) || fail "only $checkpoints checkpoints within the load"
    passed "kill -9 within writes, commits and $checkpoints checkpoints, $kills times: all that was flushed is there, dedup-check --data finds nothing"
}

killed_at_start() {
    local volume=$work/killed next kill start
    next=$((flushed + 2))
    serve "$volume"
    start_load "$volume" $next
    sleep 1
    crash
    end_load $next
    for ((kill = 0; kill < kills * 2; kill++)); do
        "$bin/dedup-nbd" "$volume" >/dev/null 2>>"$work/serve.log" &
        start=$!
        nap 0 40
        kill -9 $start
        wait $start 2>/dev/null || true
    done
    serve "$volume"
    verify_slots "$volume" "$flushed"
    crash
    check "$volume"
    passed "kill -9 while opening and replaying, $((kills * 2)) times: the same"
}

killed_in_last_checkpoint() {
    local volume=$work/killed next kill within=0
    for ((kill = 0; kill < kills; kill++)); do
        next=$((flushed + 2))
        serve "$volume"
        start_load "$volume" $next
        nap 400 600
        touch "$work/enough"
        kill -TERM "$server"
        nap 0 12
        if crash; then within=$((within + 1)); fi
        end_load $next
        serve "$volume"
        verify_slots "$volume" "$flushed"
        crash
        check "$volume"
    done
    passed "kill -9 while closing, $within times before it had ended: the same"
}

killed_in_format() {
    local volume=$work/format kill size whole=0 none=0 old=0 job
    for ((kill = 0; kill < kills * 4; kill++)); do
        fresh_volume "$volume"
        "$bin/dedup-tool" format "$volume" --logical-size 32M --force >/dev/null 2>&1 &
        job=$!
        nap 0 12
        kill -9 $job 2>/dev/null || true
        wait $job 2>/dev/null || true
        size=$(field "$volume" logical_size 2>/dev/null || true)
        case $size in
            $((64 << 20))) old=$((old + 1)) ;;
            $((32 << 20))) whole=$((whole + 1)) ;;
            '') none=$((none + 1)); timeout 20 "$bin/dedup-tool" format "$volume" --logical-size 32M --force >/dev/null ;;
            *) fail "a killed format left a volume of $size bytes" ;;
        esac
        check "$volume"
    done
    passed "kill -9 while formatting over a volume, $((kills * 4)) times: the old one ($old), the new one ($whole), or none ($none), never a part"
}

for program in dedup-tool dedup-nbd dedup-check; do
    [[ -x $bin/$program ]] || fail "$bin/$program is missing: cargo build --release"
done
flushed=0
stored_twice
killed_under_load
killed_at_start
killed_in_last_checkpoint
killed_in_format
