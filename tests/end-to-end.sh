#!/usr/bin/env bash
# The release binaries from outside, with other people's programs: a file system image stored twice, and kill -9
# at the moments that hurt. Prints one line for each property that held, and stops loudly at the first that did not.
#
#   tests/end-to-end.sh [IMAGE_MIB [KILL_SECONDS]]      default: 512 MiB and 30 s of kills, about a minute
#
# BIN names the directory of dedup-tool, dedup-nbd and dedup-check, DRIVERS that of kill-loop and damage, if it is another; KEEP=1 keeps the
# scratch directory, SEED names other kills.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

image_mib=${1:-512}
kill_seconds=${2:-30}
seed=${SEED:-1}
format_kills=24
bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release}")
drivers=$(realpath "${DRIVERS:-$bin}")
work=$(mktemp -d "${TMPDIR:-/tmp}/dedup-end-to-end.XXXXXX")
# Sockets of this run only: a volume that is being served elsewhere has nothing to do with it.
export DEDUP_RUNTIME_DIR=$work/run
mkdir -m 700 "$DEDUP_RUNTIME_DIR"
server=''

passed() { printf 'ok    %4ds  %s\n' "$SECONDS" "$*"; }
fail() {
    trap - ERR
    printf '\nFAILED: %s\n' "$*" >&2
    tail -n 20 "$work"/{serve,check}.log >&2 2>/dev/null || true
    exit 1
}
cleanup() {
    local status=$?
    [[ -z $server ]] || kill -9 "$server" 2>/dev/null || true
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
# kill -9.

killed_in_a_loop() { # by its own program, which writes, records what was answered, and verifies
    timeout $((kill_seconds + 60)) "$drivers/kill-loop" --bin "$bin" --seconds "$kill_seconds" --seed "$seed" --dir "$work" >"$work/kill-loop.out" 2>&1 ||
        fail "kill-loop: $(cat "$work/kill-loop.out")"
    passed "kill -9 in a loop: $(tail -n 1 "$work/kill-loop.out")"
}

fresh_volume() { # VOLUME: empty
    rm -rf "$1"
    timeout 20 "$bin/dedup-tool" format "$1" --logical-size 64M >/dev/null
}

killed_in_format() {
    local volume=$work/format kill size whole=0 none=0 old=0 job
    for ((kill = 0; kill < format_kills; kill++)); do
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
    passed "kill -9 while formatting over a volume, $format_kills times: the old one ($old), the new one ($whole), or none ($none), never a part"
}

damaged() { # one block of a tree after the other, by the damage tool, and what dedup-check says of it
    local volume=$work/damaged block told status
    fresh_volume "$volume"
    for block in superblock:slot metamap:0:0; do
        cp -r --sparse=always "$volume" "$volume.copy"
        "$drivers/damage" zero "$volume.copy" --block "$block"
        sha256sum "$volume.copy"/{data,metadata} >"$work/before"
        status=0
        told=$("$bin/dedup-check" "$volume.copy") || status=$?
        [[ $status == 4 ]] || fail "dedup-check of a volume whose $block is zeros exited with $status: $told"
        grep -q "metadata block $("$drivers/damage" list "$volume" | awk -v name="$block" '$1 == name { print $3 }') " <<<"$told" ||
            fail "dedup-check does not name $block: $told"
        sha256sum --quiet -c "$work/before" || fail 'dedup-check wrote something'
        rm -rf "$volume.copy"
    done
    "$drivers/damage" truncate "$volume" --device metadata --bytes 4194304
    status=0
    told=$("$bin/dedup-check" "$volume" 2>&1) || status=$?
    [[ $status == 8 && $told == *'metadata device is too small'* ]] || fail "a cut metadata device: $status, $told"
    passed 'damaged by the damage tool: dedup-check names each block, writes nothing, and says when a device is cut'
}

for program in "$bin"/dedup-{tool,nbd,check} "$drivers"/{kill-loop,damage}; do
    [[ -x $program ]] || fail "$program is missing: cargo build --release"
done
stored_twice
killed_in_a_loop
killed_in_format
damaged
