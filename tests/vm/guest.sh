# What the guest's scripts share. Sourced; in the guest there is busybox and what `run` was given.
# Programs that busybox has too are called by path: its shell prefers its own.

fail() {
    echo "FAILED: $*"
    [ ! -e /tmp/log ] || { echo "-- server:" && tail -n 20 /tmp/log; }
    echo "-- kernel:" && dmesg | tail -n 15
    exit 1
}

wait_for() { # SECONDS COMMAND...: until the command succeeds
    tries=$(($1 * 20))
    shift
    until "$@" 2>/dev/null; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "waited in vain for: $*"
        usleep 50000
    done
}

# Starts a server in the background; it has said so when this returns. Its process is $server.
serve() { # COMMAND...
    : >/tmp/out
    "$@" >/tmp/out 2>>/tmp/log &
    server=$!
    wait_for 60 said
}

said() { [ -s /tmp/out ] || { kill -0 $server || fail "the server ended"; false; }; }

stop_server() {
    kill -TERM $server
    wait $server || fail "the server's exit status is $?"
}

make_fs() { # TYPE DEVICE
    case $1 in
    ext4) /bin/mke2fs -q -F -t ext4 "$2" ;;
    xfs) mkfs.xfs -q -f "$2" ;;
    btrfs) mkfs.btrfs -q -f "$2" ;;
    esac >/tmp/mkfs 2>&1 || { cat /tmp/mkfs; fail "mkfs.$1"; }
}

check_fs() { # TYPE DEVICE: healthy, or else; changes nothing
    case $1 in
    ext4) e2fsck -fn "$2" ;;
    xfs) xfs_repair -n "$2" ;;
    btrfs) btrfs check --readonly "$2" ;;
    esac >/tmp/fsck 2>&1 || { cat /tmp/fsck; fail "the $1 file system is damaged"; }
}

# Files with content of every kind: incompressible, text, the same twice, holes. Their checksums are beside them.
fill() { # DIRECTORY MIB
    mkdir -p "$1/a" "$1/b"
    dd if=/dev/urandom of="$1/a/random" bs=1M count="$2" 2>/dev/null || return 1
    seq 1 $(($2 * 20000)) >"$1/a/text" || return 1
    dd if=/dev/zero of="$1/a/hole" bs=4k count=1 seek=2048 2>/dev/null || return 1
    cp "$1/a/text" "$1/a/hole" "$1/b/" || return 1
    i=0
    while [ $i -lt 100 ]; do
        echo "file $i" >"$1/b/small$i" || return 1
        i=$((i + 1))
    done
    (cd "$1" && sha256sum a/* b/*) >"$1.sums"
}

verify() { # DIRECTORY
    echo 3 >/proc/sys/vm/drop_caches
    (cd "$1" && sha256sum -c -s "$1.sums") || fail "what is in $1 is not what was written"
}

no_errors() { # the kernel has reported none
    ! dmesg | grep -E '[Ii]/[Oo] error|fs error|[Cc]orrupt|lost async|[Ss]hutting down|blocked for more|BUG:|WARNING:' ||
        fail "the kernel complains"
}
