#!/usr/bin/env bash
# Other people's NBD clients against dedup-nbd: nbdinfo, nbdcopy, libnbd's Python, qemu-img, qemu-io, qemu-nbd, fio; over Unix
# sockets and TCP, with 1 and with many connections, in the clear and encrypted. Prints one line for each property that held, and
# stops loudly at the first that did not.
#
#   tests/nbd-clients.sh [SEED [OPERATIONS]]      default: seed 1 and 500 random requests for each transport, about half a minute
#
# BIN names the directory of dedup-nbd and dedup-check. Needs qemu-utils, libnbd-bin, python3-libnbd, fio, openssl.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

seed=${1:-1}
operations=${2:-500}
bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release}")
work=$(mktemp -d "${TMPDIR:-/tmp}/dedup-nbd-clients.XXXXXX")
export DEDUP_RUNTIME_DIR=$work/run
mkdir -m 700 "$DEDUP_RUNTIME_DIR"
server=''

passed() { printf 'ok    %4ds  %s\n' "$SECONDS" "$*"; }
fail() {
    trap - ERR
    printf '\nFAILED: %s\n' "$*" >&2
    tail -n 8 "$work"/serve.log >&2 2>/dev/null || true
    exit 1
}
cleanup() {
    [[ -z $server ]] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# An authority, a server and a client, in the files that nbdkit, QEMU and libnbd look for.
certificates() {
    local pki=$1 role
    mkdir -p "$pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=test authority' \
        -addext 'basicConstraints=critical,CA:true' -addext 'keyUsage=critical,keyCertSign' \
        -keyout "$pki/ca-key.pem" -out "$pki/ca-cert.pem" 2>/dev/null
    for role in server client; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=test $role" \
            -keyout "$pki/$role-key.pem" -out "$work/$role.csr" 2>/dev/null
        printf 'keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=%sAuth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n' $role \
            >"$work/$role.ext"
        openssl x509 -req -days 2 -in "$work/$role.csr" -CA "$pki/ca-cert.pem" -CAkey "$pki/ca-key.pem" -CAcreateserial \
            -extfile "$work/$role.ext" -out "$pki/$role-cert.pem" 2>/dev/null
    done
}

# URI: what libnbd is given. IMAGE: what QEMU is given, with OBJECT before it.
serve() { # VOLUME, options
    rm -f "$work/serve.out"
    "$bin/dedup-nbd" "$@" >"$work/serve.out" 2>>"$work/serve.log" &
    server=$!
    local tries
    for ((tries = 0; tries < 400; tries++)); do
        if grep -q '^try:' "$work/serve.out" 2>/dev/null; then
            uri=$(head -n 1 "$work/serve.out")
            return
        fi
        kill -0 "$server" 2>/dev/null || fail "the server did not start: $*"
        sleep 0.05
    done
    fail "the server did not listen within 20 s"
}
stop() {
    kill -TERM "$server"
    local status=0
    wait "$server" || status=$?
    server=''
    [[ $status == 0 ]] || fail "after SIGTERM the server exited with $status"
}

qemu_target() { # sets object and image for the transport
    local place=$1 export=$2
    object=()
    image="driver=nbd,export=$export,$place"
    if [[ $uri == nbds* ]]; then
        object=(--object "tls-creds-x509,id=tls0,endpoint=client,dir=$work/pki")
        image+=",tls-creds=tls0,tls-hostname=localhost"
    fi
}

clients() { # NAME, PLACE for QEMU: everything that is tried on each transport
    local name=$1
    qemu_target "$2" disk
    local libnbd_uri=$uri
    if [[ $uri == nbds* ]]; then
        if [[ $uri == *\?* ]]; then libnbd_uri+='&'; else libnbd_uri+='?'; fi
        libnbd_uri+="tls-certificates=$work/pki"
    fi

    nbdinfo --json "$libnbd_uri" >"$work/info"
    grep -q '"export-size": 67108864' "$work/info" || fail "$name: nbdinfo does not know the size"
    local wanted
    for wanted in can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero; do
        grep -q "\"$wanted\": true" "$work/info" || fail "$name: nbdinfo misses $wanted"
    done
    nbdinfo --list "$libnbd_uri" | grep -q 'x-dedup:sharing' || fail "$name: nbdinfo --list misses a context"
    passed "$name: nbdinfo sees the export, its flags and its contexts"

    local connections
    for connections in 1 8; do
        /usr/bin/python3 tests/nbd-model.py "$libnbd_uri" 67108864 "$((seed + connections))" "$operations" "$connections"
        passed "$name: libnbd, $operations random requests over $connections connections, are what an array says"
    done

    for connections in 1 8; do
        nbdcopy --connections=$connections --flush "$work/image" "$libnbd_uri"
        nbdcopy --connections=$connections "$libnbd_uri" "$work/back"
        cmp "$work/image" "$work/back"
    done
    passed "$name: nbdcopy brings an image in and out, over 1 and 8 connections"

    qemu-img compare "${object[@]}" --image-opts driver=raw,file.driver=file,file.filename="$work/image" "driver=raw,file.$(qemu_file)" >/dev/null
    qemu-img map "${object[@]}" --output=json --image-opts "driver=raw,file.$(qemu_file)" >"$work/map"
    nbdinfo --map "$libnbd_uri" >"$work/nbdmap"
    [[ $(grep -c '"data": true' "$work/map") == $(grep -c data "$work/nbdmap") ]] || fail "$name: two maps differ"
    qemu-img convert "${object[@]}" -n -W -m 16 -f raw --target-image-opts "$work/image" "driver=raw,file.$(qemu_file)"
    qemu-img convert "${object[@]}" -W -m 16 --image-opts "driver=raw,file.$(qemu_file)" -O raw "$work/back"
    cmp "$work/image" "$work/back"
    # It takes no --object, so no certificates either.
    if [[ $uri != nbds* ]]; then
        qemu-img bench -w --flush-interval=64 -c 2000 -d 32 -s 4096 -S 8192 -t none --image-opts "driver=raw,file.$(qemu_file)" >/dev/null
    fi
    passed "$name: qemu-img compares, maps, converts both ways out of order, and benches"

    local -a io=()
    local command
    for command in 'write -P 1 1 511' 'write -P 2 512 3585' 'read -P 1 1 511' 'write -f -P 3 4095 8194' 'read -P 3 4095 8194' \
        'write -z 4k 8k' 'read -P 0 4k 8k' 'write -z -u 60M 4M' 'discard 32M 16M' 'read -P 0 32M 16M' \
        'write -P 4 67108863 1' 'read -P 4 67108863 1' 'aio_write -P 5 1M 1M' 'aio_write -P 6 2M 1M' aio_flush \
        'read -P 5 1M 1M' 'read -P 6 2M 1M' flush; do
        io+=(-c "$command")
    done
    qemu-io "${object[@]}" "${io[@]}" --image-opts "driver=raw,file.$(qemu_file)" >"$work/io"
    if grep -qi 'failed\|error' "$work/io"; then fail "$name: qemu-io: $(cat "$work/io")"; fi
    passed "$name: qemu-io reads what it wrote, aligned and not"

    qemu_nbd_list | grep -q "export: 'disk'" || fail "$name: qemu-nbd --list does not list the export"
    passed "$name: qemu-nbd lists the export"

    # Its engine cannot be told where certificates are.
    if [[ $uri == nbds* ]]; then return; fi
    local jobs
    for jobs in 1 4; do
        fio --name=verify --ioengine=nbd --uri="$libnbd_uri" --rw=randrw --bsrange=512-64k --bs_unaligned=0 --size=8M \
            --offset_increment=8M --numjobs=$jobs --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed="$seed" \
            --fsync=50 --group_reporting --output="$work/fio.log"
    done
    passed "$name: fio verifies what 1 and 4 jobs wrote"
}
qemu_file() { printf '%s' "${image//,/,file.}"; }
qemu_nbd_list() {
    local -a target
    case $image in
    *path=*) target=(-k "$work/nbd.sock") ;;
    *) target=(-b localhost -p "$port") ;;
    esac
    if [[ $uri == nbds* ]]; then target+=(--tls-creds tls0 --tls-hostname localhost); fi
    qemu-nbd --list "${object[@]}" "${target[@]}"
}

certificates "$work/pki"
# Text that repeats, text that does not, and holes.
head -c 24M /dev/urandom >"$work/image"
truncate -s 40M "$work/image"
/usr/bin/python3 -c 'import sys; sys.stdout.write("all work and no play makes Jack a dull boy\n" * 190000)' >>"$work/image"
truncate -s 64M "$work/image"

"$bin/dedup-nbd" --version >/dev/null
serve "$work/v" --create --logical-size 64M --export-name disk --socket "$work/nbd.sock"
clients 'Unix socket' "server.type=unix,server.path=$work/nbd.sock"
stop
serve "$work/v" --export-name disk --listen localhost:0
port=${uri%/*} port=${port##*:}
clients 'TCP' "server.type=inet,server.host=localhost,server.port=$port"
stop
tls=(--tls-certificates "$work/pki" --tls-verify-peer)
serve "$work/v" --export-name disk --listen localhost:0 "${tls[@]}"
uri=nbds://localhost:$(port=${uri%/*} && echo "${port##*:}")/disk
port=${uri%/*} port=${port##*:}
if nbdinfo "${uri/nbds/nbd}" >/dev/null 2>&1; then fail 'a client in the clear is served'; fi
if nbdinfo "$uri?tls-certificates=$work" >/dev/null 2>&1; then fail 'a client without certificates is served'; fi
passed 'TLS: clients in the clear, and without a certificate, are refused'
clients 'TCP with TLS' "server.type=inet,server.host=localhost,server.port=$port"
stop
serve "$work/v" --export-name disk --socket "$work/nbd.sock" --tls on "${tls[@]:0:2}"
clients 'Unix socket with TLS' "server.type=unix,server.path=$work/nbd.sock"
uri=${uri/nbds/nbd}
nbdinfo --size "$uri" >/dev/null
stop
passed 'TLS: where it is optional, clients in the clear are served too'
serve "$work/v" --export-name disk --socket "$work/nbd.sock"
/usr/bin/python3 - "$uri" <<'END'
import sys, nbd
writers, flusher = [nbd.NBD() for _ in range(4)], nbd.NBD()
for handle in [*writers, flusher]:
    handle.connect_uri(sys.argv[1])
for i, handle in enumerate(writers):
    handle.pwrite(bytes([i + 1]) * 10_000, i << 20)
flusher.flush()
END
{ kill -9 "$server" && wait "$server"; } 2>/dev/null || true
serve "$work/v" --export-name disk --socket "$work/nbd.sock"
/usr/bin/python3 - "$uri" <<'END'
import sys, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
for i in range(4):
    assert handle.pread(10_000, i << 20) == bytes([i + 1]) * 10_000
END
stop
passed 'what four connections wrote, and a fifth flushed, outlives kill -9'
"$bin/dedup-check" --data "$work/v" >/dev/null
passed 'the volume is clean, data included'
