#!/usr/bin/env bash
# enter.sh ROOT COMMAND...: runs COMMAND on this machine, but with the Debian root's /usr and /etc.
#
# Everything else (home, work tree, /tmp, network, processes) is the machine's own. It is
# exec all the way, under one process id, so signals reach COMMAND and its exit code comes back.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    exec unshare --mount --propagation private "${BASH_SOURCE[0]}" --inside "$@"
fi
shift
root=$1
shift

mount --bind "$root" "$root"
# What belongs to the machine rather than to its distribution.
for file in resolv.conf hosts hostname localtime pip.conf passwd group ssl/certs; do
    [[ ! -e /etc/$file ]] || mount --bind "/etc/$file" "$root/etc/$file"
done
# Debian's settings for Bazel, of which ours has what is right.
[[ ! -e $root/etc/bazel/bazelrc ]] || mount --bind /dev/null "$root/etc/bazel/bazelrc"
mount -o remount,bind,ro "$root"
mount --rbind "$root/etc" /etc
mount --rbind "$root/usr" /usr

export CLOSED_NETWORK_ROOT=$root PATH=/usr/sbin:/usr/bin
exec "$@"
