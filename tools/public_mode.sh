#!/usr/bin/env bash
# Checks that the public mode works: that the modules resolve, that every target loads and
# is analysed with the real rules, and that the tests pass, a consumer's too.
#
# Needs Bazelisk and the internet. Where some of that is missing, say in user.bazelrc what
# takes its place: a registry, a module, a Python toolchain.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

export BAZEL_MODE=public
step() {
    printf 'public mode: %s\n' "$1" >&2
    shift
    tools/bazel "$@" || { printf 'public mode: FAILED: bazel %s\n' "$*" >&2; exit 1; }
}

step "resolving modules" mod graph >/dev/null
step "loading and analysing every target" build --nobuild //...
step "testing" test //...
(cd examples/consumer && step "testing a consumer" test //...)
git diff --quiet HEAD -- MODULE.bazel.lock && [[ -n $(git ls-files MODULE.bazel.lock) ]] ||
    printf 'public mode: MODULE.bazel.lock is new: it pins what the registry says of each module; commit it\n' >&2
printf 'public mode: all is well\n' >&2
