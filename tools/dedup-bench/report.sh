#!/usr/bin/env bash
# Every table of docs/performance.md by one command: report.md, its JSON and its plots, in a directory.
#
#   tools/dedup-bench/report.sh [--quick] [--size SIZE] [--rounds N] [--fill-size SIZE] [--work DIR] [--skip PART]... [OUT]
#
#   --size, --rounds   of the comparison with other servers and of the engine; default 1G and 3. 256M and 3: about 20 minutes
#   --fill-size        of the larger of two volumes that are filled, opened and checked; the other is a quarter; default 16G
#   --quick            64M, one round, 4G: a look, not a measurement, in about 4 minutes
#   --work             where everything is measured, and removed again; default: OUT
#   --skip             peers, engine, index, scale, instructions, budget
#   OUT                default: report
#
# A part that fails is told in the report, and the others are made. report.md begins with the goals, computed from the JSON by
# `dedup-bench goals docs/goals.md OUT`; figures of larger volumes, measured by hand, are taken in if they have such names there: fill-1T.jsonl,
# reopen-1T.json, check-1T.json. Debian: fio nbdkit qemu-utils e2fsprogs valgrind, and a C compiler for LMDB.
set -euo pipefail

size=1G rounds=3 fill=16G quick= work= out= skip=' '
value() { [ $# -ge 2 ] || { echo "$1: expected a value" >&2; exit 2; }; printf '%s' "$2"; }
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=$(value "$@"); shift ;;
        --rounds) rounds=$(value "$@"); shift ;;
        --fill-size) fill=$(value "$@"); shift ;;
        --work) work=$(value "$@"); shift ;;
        --skip) skip+="$(value "$@") "; shift ;;
        --quick) quick=1 size=64M rounds=1 fill=4G ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        -*) echo "$1: no such option; see --help" >&2; exit 2 ;;
        *) out=$1 ;;
    esac
    shift
done
fill=${fill%[Gg]}
[[ $fill =~ ^[0-9]+$ && $fill -ge 4 ]] || { echo "--fill-size: expected whole GiB, at least 4G" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(realpath -m "${out:-report}")
mkdir -p "$out" "${work:=$out}"
work=$(mktemp -d "$(realpath "$work")/work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

cd "$root"
cargo build --release -p dedup-nbd -p dedup-tool -p dedup-tests --bin dedup-nbd --bin dedup-tool --bin instructions --bin write-budget >&2
# The engines that the index is held against come with a feature; without a C compiler they are left out.
cargo build --release -p dedup-bench --features peers >&2 || cargo build --release -p dedup-bench >&2
bin=${CARGO_TARGET_DIR:-$root/target}/release
cd "$out"

begin=$SECONDS
wanted() { [[ $skip != *" $1 "* ]]; }
section() { # TITLE FILE FUNCTION [ARGUMENTS]: what it prints is the section
    echo "== $((SECONDS - begin)) s: $1" >&2
    { printf '\n## %s\n' "$1" && "${@:3}"; } >"$2"
}
run() { # COMMAND...: the command and what it prints; its failure is part of the report
    printf '\n`%s`\n\n' "$(echo "$*" | sed "s|$bin/||g; s|$work|WORK|g")"
    "$@" || printf '\n**Failed with exit status %d.**\n' $?
}
fixed() { # the same for output in columns
    printf '\n`%s`\n\n```text\n' "$(echo "$*" | sed "s|$bin/||g; s|$work|WORK|g")"
    "$@" || printf 'Failed with exit status %d.\n' $?
    printf '```\n'
}
scale() { # SIZE: a volume is filled, left as if killed with a full log, opened, checked; the fill is drawn
    local dir=$work/fill crash=(--crash-at 20 --seconds 60)
    # With a full log if checkpoints can be held back, which only this program can.
    if "$bin/dedup-bench" fill --help | grep -q -e --hold-checkpoints; then crash=(--crash-at 95 --hold-checkpoints); fi
    fixed "$bin/dedup-bench" fill "$dir" --size "$1" --batch 256 --interval 2 --keep-free 4G
    cp "$dir/fill.jsonl" "fill-$1.jsonl"
    # Held checkpoints can end in waiting for one.
    fixed timeout 300 "$bin/dedup-bench" fill "$dir" --pass 2 --batch 1 --flush "${crash[@]}" --keep-free 4G
    fixed "$bin/dedup-bench" reopen "$dir" --json "reopen-$1.json"
    run "$bin/dedup-bench" check "$dir" --rounds "$rounds" --json "check-$1.json"
    "$bin/dedup-bench" plot "fill-$1.jsonl" "fill-$1.svg"
    rm -rf "$dir"
}

# Short ones first, so that what is wrong shows early; the order in the report is that of the names.
rm -f part-*.md
engine=256M index=(--limit 4) peers=(--size "$size" --rounds "$rounds" --limit 20)
if [ -n "$quick" ]; then engine=64M index=(--quick) peers=(--quick); fi
if wanted instructions; then section 'Instructions' part-4.md fixed "$bin/instructions"; fi
if wanted budget; then
    section 'Metadata written' part-5.md \
        fixed "$bin/write-budget" --operations 1024 --ratio 800 --aged 60 --more --json write-budget.json
fi
if wanted engine; then
    section 'The engine alone' part-2.md \
        run "$bin/dedup-bench" engine --size $engine --rounds "$rounds" --json engine.json
fi
if wanted scale; then
    section "A volume of $((fill / 4)) GiB" part-6.md scale "$((fill / 4))G"
    section "A volume of $fill GiB" part-7.md scale "${fill}G"
fi
if wanted index; then
    section 'The index alone' part-3.md run "$bin/dedup-bench" index --dir "$work" --json index.json "${index[@]}"
fi
if wanted peers; then
    section 'Against other servers' part-1.md \
        run "$bin/dedup-bench" --all --dir "$work" "${peers[@]}" --json peers.json --plots .
fi

{
    printf '# Report\n\nOf %s, %s, in %d s.\n' "$(git -C "$root" describe --always --dirty)" "$(date -u +%F)" $((SECONDS - begin))
    printf '\n## What is aimed for, and where it stands\n\n'
    "$bin/dedup-bench" goals "$root/docs/goals.md" . --json goals.json
    for plot in *.svg; do if [ -e "$plot" ]; then printf '\n![%s](%s)\n' "${plot%.svg}" "$plot"; fi; done
    cat part-*.md
} >report.md
rm -f part-*.md
echo "== $((SECONDS - begin)) s: $out/report.md" >&2
