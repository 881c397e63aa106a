#!/usr/bin/env bash
# The systemd units: that they say what systemd understands, and that the server which faces clients is confined.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! type -P systemd-analyze >/dev/null; then
    echo 'units: NOT RUN, this machine has no systemd-analyze'
    exit 0
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/etc/systemd/system" "$root/usr/bin"
cp contrib/systemd/*.service contrib/systemd/*.socket "$root/etc/systemd/system"
for program in /usr/bin/dedup-nbd /usr/bin/dedup-ublk /bin/kill; do
    install -D -m 755 /dev/null "$root$program"
done

# What verify says of units that are not ours, which this root does not have, is left out.
said=$(systemd-analyze verify --root="$root" --man=no dedup-nbd@a.service dedup-nbd@a.socket dedup-ublk@a.service 2>&1 | grep dedup |
    grep -v 'not found\|No such file' || true)
if [[ -n $said ]]; then
    printf 'units: expected nothing to complain of, found:\n%s\n' "$said"
    exit 1
fi

# "OK" in its own words is up to 5.0 (here in tenths).
systemd-analyze security --offline=true --root="$root" --threshold=40 --no-pager dedup-nbd@a.service | tail -n 1
