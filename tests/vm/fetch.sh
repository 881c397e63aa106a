# Packages without touching the system's own: sourced by `run`.
#
#   fetch_kernel             -> $kernel (image), $modules (directory), $release
#   fetch_programs PKG...    -> unpacked below $host; whatever the system has already is used from there
#
# apt works with lists, cache and sources of its own, below the cache directory, and needs no root. The mirror is the one that the
# system itself uses. A kernel that is there is used as it is: delete the directory for a newer one.

# The suite whose kernel has nbd and ublk_drv; Debian 12's has no ublk.
kernel_suite=trixie
# What of the kernel package is unpacked: everything that the tests may load, not the drivers of the world.
kernel_parts='^\./boot/vmlinuz|/kernel/(drivers/(block|virtio|md|net/virtio_net|char/hw_random)|fs/(9p|btrfs|ext4|xfs|jbd2|netfs|mbcache)|net/9p|lib|crypto|arch)/|/kernel/fs/[a-z]*\.ko|modules\.(builtin|order)'

unavailable() { # MESSAGE: this machine cannot do it, which is no failed test
    echo "vm: not on this machine: $*" >&2
    exit 69
}

# The mirror that the system's own sources name for its own suite.
mirror() {
    local site
    # shellcheck disable=SC2016 # the names are apt's
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(IDENTIFIER)' 2>/dev/null |
        awk -v own="$codename" '$2 == own && $3 == "Packages" { print $1; exit }')
    [[ $site ]] || unavailable "apt's sources name no mirror for suite '$codename'"
    printf '%s\n' "$site"
}

apt_in() { # SUITE apt-get|apt-cache ARG...
    local suite=$1 program=$2 dir=$cache/apt/$1
    shift 2
    "$program" -q -q -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" -o Dir::Etc::sourcelist="$dir/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Debug::NoLocking=1 -o Acquire::Languages=none \
        -o APT::Sandbox::User="$(id -un)" -o APT::Architecture=amd64 "$@"
}

# Lists of a suite, once.
update() { # SUITE
    local dir=$cache/apt/$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -e $dir/updated ]] && return
    type -P apt-get >/dev/null || unavailable "no apt-get"
    [[ -e $keyring ]] || unavailable "no $keyring: the packages are Debian's"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=$keyring] $(mirror) $1 main" >"$dir/sources.list"
    apt_in "$1" apt-get update >&2 || unavailable "no package lists of suite '$1'"
    touch "$dir/updated"
}

fetch_kernel() {
    local dir=$cache/kernel package deb
    if [[ ! -e $dir/done ]]; then
        update "$kernel_suite"
        package=$(apt_in "$kernel_suite" apt-cache depends linux-image-amd64 |
            awk '$1 == "Depends:" { sub(/-unsigned$/, "", $2); print $2; exit }')
        [[ $package ]] || unavailable "suite '$kernel_suite' has no linux-image-amd64"
        echo "vm: fetching $package" >&2
        rm -rf "$dir" && mkdir -p "$dir"
        (cd "$dir" && apt_in "$kernel_suite" apt-get -o Dir::State::status=/dev/null download "$package") >&2 ||
            unavailable "$package cannot be downloaded"
        deb=$(echo "$dir"/*.deb)
        dpkg-deb --fsys-tarfile "$deb" >"$dir/all.tar"
        tar -tf "$dir/all.tar" | grep -E "$kernel_parts" | grep -v '/$' >"$dir/parts"
        tar -xf "$dir/all.tar" -C "$dir" -T "$dir/parts"
        release=$(basename "$dir"/usr/lib/modules/*)
        # `modprobe -d` looks in lib/modules.
        ln -s usr/lib "$dir/lib"
        kmod_as depmod -b "$dir" "$release" || unavailable "no depmod"
        rm "$dir/all.tar" "$deb"
        touch "$dir/done"
    fi
    release=$(basename "$dir"/usr/lib/modules/*)
    kernel=$dir/boot/vmlinuz-$release
    modules=$dir
}

# Downloads what of the packages the system lacks and unpacks it beside the system.
fetch_programs() { # PACKAGE...
    local dir=$cache/apt/$codename package missing=()
    for package; do
        [[ -e $host/.$package ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    update "$codename"
    echo "vm: fetching ${missing[*]}" >&2
    apt_in "$codename" apt-get clean
    mkdir -p "$host" "$dir/cache/archives/partial"
    # Nothing is installed, so nothing that apt would replace or remove is touched.
    apt_in "$codename" apt-get install -y --no-install-recommends --download-only --allow-downgrades "${missing[@]}" >&2 ||
        unavailable "${missing[*]} cannot be downloaded"
    for package in "$dir"/cache/archives/*.deb; do
        [[ ! -e $package ]] || dpkg-deb -x "$package" "$host"
    done
    for package in "${missing[@]}"; do touch "$host/.$package"; done
}

# One of kmod's programs; in its package they are links to an absolute path.
kmod_as() { # NAME ARG...
    local name=$1
    shift
    (LD_LIBRARY_PATH=$libraries exec -a "$name" "$(program kmod)" "$@")
}

# Where a program is: unpacked by us, or the system's.
program() { # NAME
    PATH=$host/usr/bin:$host/usr/sbin:$host/bin:$host/sbin:$PATH:/usr/sbin:/sbin type -P "$1"
}
