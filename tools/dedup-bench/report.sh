#!/usr/bin/env bash
# All tables of docs/performance.md, as Markdown on standard output; progress on standard error.
#
#   tools/dedup-bench/report.sh [OPTIONS OF dedup-bench]      with --size 256M --rounds 3: five minutes, build included
#
# JSON of the two runs of dedup-bench is left in the current directory: peers.json, engine.json.
set -euo pipefail
from=$PWD
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
cargo build --release --bin dedup-bench --bin dedup-nbd --bin dedup-tool --bin instructions --bin write-budget >&2
cd "$from"
bin=${CARGO_TARGET_DIR:-$root/target}/release

section() { printf '\n## %s\n\n' "$1"; }
verbatim() { # COMMAND..., whose output is for a fixed font; its failure is part of the report
    printf '```text\n'
    "$@" || printf '(exit status %d)\n' $?
    printf '```\n'
}

section 'Against other servers'
"$bin/dedup-bench" --json peers.json "$@"
section 'The engine alone'
"$bin/dedup-bench" engine --json engine.json
section 'Instructions'
verbatim "$bin/instructions"
section 'Metadata written'
verbatim "$bin/write-budget" --operations 1024 --ratio 1024 --aged 60
