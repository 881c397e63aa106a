#!/usr/bin/env bash
# Miri over the crates that can run under it, where the toolchain has it; valgrind over the device crate, whose io_uring module has the
# only unsafe code. Nothing is fetched: what is not there is reported as not run.
#
#   tests/memory-checks.sh [SECONDS]      for each program under valgrind, 300 by default; a minute in all on an idle machine
#
# The build is the test profile's: no link-time optimisation, so that functions and lines are still there.
set -euo pipefail
cd "$(dirname "$0")/.."
limit=${1:-300}
work=$(mktemp -d "${TMPDIR:-/tmp}/dedup-memory.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What needs no file, no system call and no second: arithmetic, trees and metadata on devices in memory.
miri_crates=(dedup-spacemap dedup-btree dedup-meta)
miri=''
if cargo miri --version &>/dev/null; then miri='cargo miri'; elif cargo +nightly miri --version &>/dev/null; then miri='cargo +nightly miri'; fi
if [[ -n $miri ]]; then
    for crate in "${miri_crates[@]}"; do
        MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 $miri test -p "$crate" --lib
        echo "ok    Miri: $crate"
    done
else
    echo "not run: this toolchain has no Miri"
fi

if ! command -v valgrind >/dev/null; then
    echo "not run: there is no valgrind here"
    exit 0
fi

# SELECT: what cargo is to build, so that a build of everything that is there already serves this, too.
# shellcheck disable=SC2086
programs=$(cargo test ${SELECT:--p dedup-device} --no-run 2>&1 | sed -n 's/.*Executable .*(\(.*\))$/\1/p')
[[ -n $programs ]] || { echo "FAILED: the device crate's tests were not built" >&2; exit 1; }
under_valgrind() { # PROGRAM-PREFIX TEST-FILTER...
    local program status=0
    program=$(grep -m 1 "/$1-" <<<"$programs")
    shift
    # Valgrind runs one thread at a time and does not let another one run while io_uring_enter waits: the test in which one thread waits
    # there for another would wait forever.
    (cd crates/device && timeout -k 5 "$limit" valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
        --trace-syscalls=yes --log-file="$work/log" "../../$program" --test-threads=1 --skip waited_for "$@") \
        >"$work/out" 2>&1 || status=$?
    if [[ $status != 0 ]]; then
        cat "$work/out" >&2
        grep -v '^SYSCALL' "$work/log" | tail -n 40 >&2
        echo "FAILED: valgrind of $program $* exited with $status" >&2
        exit 1
    fi
    local enters
    enters=$(grep -c 'sys_io_uring_enter.*Success' "$work/log" || true)
    echo "ok    valgrind: $(basename "$program") $*: $(grep -c '^test .* ok$' "$work/out") tests, $enters calls of io_uring_enter"
    total=$((total + enters))
}

total=0
export PROPTEST_CASES=2
under_valgrind dedup_device uring
under_valgrind conformance a_batch_may_be an_operation_may an_empty_operation a_range_beyond
if ((total == 0)); then
    echo "not run: valgrind, or this kernel, gives no io_uring; the unsafe code was compiled and not reached"
fi
