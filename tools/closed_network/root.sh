#!/usr/bin/env bash
# Prints the folder of a complete Debian root that has the packages of packages.txt.
#
#   root.sh           the newest root that these files describe; the first call makes it
#   root.sh --renew   makes a new one, with what Debian has today
#
# A root is under the user's cache directory, and checked at every call: a file that is missing
# or has another size means that it is thrown away and made again. Its name ends with the time
# (UTC) of its making. In it, foreign/ARCHITECTURE has the files that images of the other
# architecture are made of. All that a person should read goes to stderr.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
suite=forky # Debian testing: the first release that has Bazel 7.7 and Python 3.14
# A time of Debian's archive, such as 20261128T000000Z; nothing: as the mirror has it.
snapshot=${DEBIAN_SNAPSHOT:-}
snapshots=${DEBIAN_SNAPSHOTS:-https://snapshot.debian.org/archive/debian}
# What images of the other architecture hold; apt adds what these depend on.
foreign_packages=base-files,ca-certificates,libstdc++6,python3.14,tzdata
cache=${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/grpc-on-kubernetes
recipe=$({ cat "$here"/{packages.txt,root.sh,dpkg_database.sh} && echo "$snapshot"; } | sha256sum | head -c 12)
log=$cache/root-$recipe.log

say() { printf 'tools/bazel: %s\n' "$*" >&2; }
die() { say "error: $1"; shift; for line in "$@"; do say "  $line"; done; exit 1; }

newest_root() {
    find "$cache" -maxdepth 1 -type d -name "root-$recipe-*" ! -name '*.partial' | LC_ALL=C sort | tail -n 1
}

# One line a file, so that a deleted or truncated one shows; 28,000 files take 0.1 s.
listing() { find "$1/usr" "$1/etc" "$1/foreign" -xdev -printf '%P %s %l\n' | LC_ALL=C sort | sha256sum; }

complete() { [[ -f $1/listing && $(listing "$1") == "$(cat "$1/listing")" ]]; }

require_root() {
    [[ $EUID == 0 ]] || die "the closed-network mode needs root, to make and to enter a Debian root of its own" \
        "run it as root (sudo -E tools/bazel ...), or install Bazelisk and use BAZEL_MODE=public"
    unshare --mount true 2>/dev/null || die "this machine does not let root mount (no CAP_SYS_ADMIN)" \
        "in a container, start it with --privileged or with --cap-add SYS_ADMIN and an unconfined seccomp profile"
    [[ /bin -ef /usr/bin ]] || die "this machine keeps /bin apart from /usr/bin; the closed-network mode needs a merged /usr, as Debian 12 has"
}

# Runs "$@" with its output in the log, and shows the lines that tell how far it is.
logged() {
    "$@" 2>&1 | tee -a "$log" | sed -un 's/^I: \(.*\)/tools\/bazel:   \1/p' >&2
}

explain_failure() {
    die "$1 failed; its last words:" "$(grep -E '^(E|Err|W):' "$log" | tail -n 3 || tail -n 3 "$log")" \
        "the whole log: $log" \
        "if a mirror could not be reached, give apt a proxy or a mirror in /etc/apt, or name one: DEBIAN_MIRROR=URL tools/bazel ..."
}

install_mmdebstrap() {
    command -v mmdebstrap >/dev/null && return
    command -v apt-get >/dev/null || die "mmdebstrap is missing and there is no apt-get to install it with"
    say "installing the Debian package mmdebstrap on this machine (it makes the root)"
    export DEBIAN_FRONTEND=noninteractive
    { logged apt-get update && logged apt-get install --yes --no-install-recommends mmdebstrap; } \
        || explain_failure "installing mmdebstrap"
}

foreign_architecture() { [[ $(uname -m) == aarch64 ]] && echo amd64 || echo arm64; }

mirror() { [[ -z $snapshot ]] && echo "${DEBIAN_MIRROR:-}" || echo "$snapshots/$snapshot/"; }

# debian FOLDER OPTION...: fills a folder with what the options say.
debian() {
    local folder=$1 mirror
    shift
    mirror=$(mirror)
    # A mirror that is not refreshed daily serves a Release file past its date; the
    # signature is checked all the same. What it mounts in the root goes with it, also if it is killed.
    logged unshare --mount --propagation private mmdebstrap --mode=root \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --aptopt='APT::Install-Recommends "false"' \
        "$@" "$suite" "$folder" ${mirror:+"$mirror"} \
        || explain_failure "making the root"
}

make_root() {
    local root=$1 partial=$1.partial foreign packages
    foreign=$(foreign_architecture)
    packages=$(sed 's/#.*//' "$here/packages.txt" | xargs | tr ' ' ',')
    find "$cache" -maxdepth 1 -name "root-$recipe-*.partial" -exec rm -rf --one-file-system {} +
    : >"$log"
    install_mmdebstrap
    say "making a Debian root with ${packages//,/, } (about a minute, 3.5 GB in $root)"
    debian "$partial" --variant=apt --include="$packages"
    say "unpacking what images for $foreign hold"
    mkdir "$partial/foreign"
    debian "$partial/foreign/$foreign" --variant=extract --architectures="$foreign" \
        --include="$foreign_packages" --extract-hook="$here/dpkg_database.sh"
    prepare_for_binds "$partial"
    listing "$partial" >"$partial/listing"
    mv "$partial" "$root"
}

# enter.sh lays this machine's own files over these; see there.
prepare_for_binds() {
    rm -f "$1"/etc/{resolv.conf,hosts,hostname,localtime}
    touch "$1"/etc/{resolv.conf,hosts,hostname,localtime,pip.conf}
}

# Not removed here: another work tree may use them.
mention_older_roots() {
    local older
    older=$(find "$cache" -maxdepth 1 -name 'root-*' -type d ! -path "$1" -printf '%f ' | sed 's/ $//')
    [[ -z $older ]] || say "other roots are in $cache and may be removed once nothing uses them: $older"
}

# make_root_unless ROOT: makes a new root, unless there is a complete one that is newer than ROOT.
make_root_unless() {
    local started=$SECONDS root
    exec 9>"$cache/lock"
    flock --nonblock 9 || { say "another shell is making the Debian root; waiting for it"; flock 9; }
    root=$(newest_root)
    [[ $root == "$1" ]] || ! complete "$root" || return 0
    if [[ -n $root ]] && ! complete "$root"; then
        say "the Debian root in $root is broken; making it again"
        rm -rf --one-file-system "$root"
    fi
    root=$cache/root-$recipe-$(date --utc +%Y%m%dT%H%M%S.%3NZ)
    make_root "$root"
    say "the Debian root is ready after $((SECONDS - started)) s"
    mention_older_roots "$root"
}

tell_age() {
    local made=${1##*-}
    say "Debian $suite${snapshot:+ of $snapshot} as installed on ${made:0:4}-${made:4:2}-${made:6:2};" \
        "tools/closed_network/root.sh --renew for today's"
}

case ${1:-} in
    "" | --renew) ;;
    *) die "root.sh takes nothing or --renew, not '$1'" ;;
esac
require_root
mkdir -p "$cache"
root=$(newest_root)
# In a subshell, or the Bazel server would inherit the lock and keep it.
if [[ ${1:-} == --renew ]] || ! complete "$root"; then (make_root_unless "$root"); fi
root=$(newest_root)
tell_age "$root"
printf '%s\n' "$root"
