#!/usr/bin/env bash
# Prints the folder of a complete Debian root that has the packages of packages.txt.
#
# The root is made once, under the user's cache directory, and checked at every call: a
# file that is missing or has another size means that it is thrown away and made again.
# All that a person should read goes to stderr.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
suite=forky # Debian testing: the first release that has Bazel 7.7 and Python 3.14
cache=${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/grpc-on-kubernetes
recipe=$(cat "$here/packages.txt" "$here/root.sh" | sha256sum | head -c 12)
root=$cache/root-$recipe
log=$cache/root-$recipe.log

say() { printf 'tools/bazel: %s\n' "$*" >&2; }
die() { say "error: $1"; shift; for line in "$@"; do say "  $line"; done; exit 1; }

# One line a file, so that a deleted or truncated one shows; 28,000 files take 0.1 s.
listing() { find "$1/usr" "$1/etc" -xdev -printf '%P %s %l\n' | LC_ALL=C sort | sha256sum; }

complete() { [[ -f $root/listing && $(listing "$root") == "$(cat "$root/listing")" ]]; }

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

make_root() {
    local partial=$root.partial packages
    packages=$(sed 's/#.*//' "$here/packages.txt" | xargs | tr ' ' ',')
    rm -rf --one-file-system "$root" "$partial"
    : >"$log"
    install_mmdebstrap
    say "making a Debian root with ${packages//,/, } (about a minute, 3.0 GB in $root)"
    # A mirror that is not refreshed daily serves a Release file past its date; the
    # signature is checked all the same.
    logged mmdebstrap --variant=apt --mode=root \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --aptopt='APT::Install-Recommends "false"' \
        --include="$packages" "$suite" "$partial" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} \
        || explain_failure "making the root"
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
    older=$(find "$cache" -maxdepth 1 -name 'root-*' -type d ! -path "$root" -printf '%f ' | sed 's/ $//')
    [[ -z $older ]] || say "roots of other versions are in $cache and may be removed: $older"
}

make_root_once() {
    local started=$SECONDS
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock --nonblock 9 || { say "another shell is making the Debian root; waiting for it"; flock 9; }
    complete && return
    [[ ! -e $root ]] || say "the Debian root in $root is broken; making it again"
    make_root
    say "the Debian root is ready after $((SECONDS - started)) s"
    mention_older_roots
}

require_root
# In a subshell, or the Bazel server would inherit the lock and keep it.
if ! complete; then (make_root_once); fi
printf '%s\n' "$root"
