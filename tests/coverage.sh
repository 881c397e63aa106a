#!/usr/bin/env bash
# Line coverage of the engine crates by their own tests and by those of the volume, one line a file, the least covered first.
#
#   tests/coverage.sh [TEST...]     default: all tests of the engine crates and of the tests package, but for `processes`, whose
#                                   servers are not seen; or only these of the tests package
#
# Needs cargo-tarpaulin (cargo install cargo-tarpaulin --locked). Builds with counters into a target directory of its own; the first run
# takes some ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
crates=(sync device spacemap meta btree volume checker)
out=${CARGO_TARGET_DIR:-target}/coverage
tests=("$@")

command -v cargo-tarpaulin >/dev/null || { echo "cargo-tarpaulin is missing: cargo install cargo-tarpaulin --locked" >&2; exit 1; }
selected=()
if ((${#tests[@]} == 0)); then
    selected=(--lib)
    for file in tests/tests/*.rs crates/{device,spacemap,meta,btree,volume,checker}/tests/*{.rs,/main.rs}; do
        test=${file%/main.rs} test=$(basename "$test" .rs)
        [[ ! -e $file || " processes schedules ${tests[*]} " == *" $test "* ]] || tests+=("$test")
    done
    everything=1
fi
for test in "${tests[@]}"; do selected+=(--test "$test"); done
packages=(-p dedup-tests)
# What a test does in another process is not seen, so the tools' tests would only take their time.
for crate in "${crates[@]}"; do packages+=(-p "dedup-$crate"); done
[[ -n ${everything:-} ]] || packages=(-p dedup-tests)
mkdir -p "$out"
nice -n 5 cargo tarpaulin --engine llvm --skip-clean --target-dir "$out" --out Json --output-dir "$out" \
    --include-files 'crates/*/src/*' --timeout 600 "${packages[@]}" "${selected[@]}" >"$out/log" 2>&1 ||
    { tail -n 40 "$out/log" >&2; exit 1; }

rm -f build_rs_cov.profraw

python3 - "$out/tarpaulin-report.json" "${crates[@]}" <<'PYTHON'
import json, sys
report, crates = json.load(open(sys.argv[1])), sys.argv[2:]
rows, total = [], [0, 0]
for file in report["files"]:
    path = file["path"]
    at = next((i for i in range(len(path)) if path[i:i + 1] == ["crates"]), None)
    if at is None or path[at + 1] not in crates or file["coverable"] == 0:
        continue
    missing = [t["line"] for t in file["traces"] if t["stats"].get("Line", 0) == 0]
    rows.append((file["covered"] / file["coverable"], "/".join(path[at:]), file["covered"], file["coverable"], missing))
    total = [total[0] + file["covered"], total[1] + file["coverable"]]
for share, name, covered, coverable, missing in sorted(rows):
    print(f"{100 * share:5.1f} %  {covered:4} of {coverable:4}  {name}  {' '.join(map(str, missing))}")
print(f"{100 * total[0] / max(total[1], 1):5.1f} %  {total[0]:4} of {total[1]:4}  all")
PYTHON
