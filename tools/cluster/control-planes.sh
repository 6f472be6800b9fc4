#!/usr/bin/env bash
# Builds Istio and Envoy Gateway with Go, where they are missing, and prints their folder.
#
# Not a Bazel target: in the closed-network mode Bazel does not see the machine's Go.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

recipe=$(cat control-planes/go.mod control-planes/go.sum control-planes.sh | sha256sum | head -c 12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/grpc-on-kubernetes/bin/control-planes-$recipe

say() { printf 'tools/cluster: %s\n' "$*" >&2; }

build() {
    # At once: they share most of their packages. Not optimized, and without what debuggers read: they do little in
    # the tests, and that is a third of the compiler's CPU time.
    CGO_ENABLED=0 go build -trimpath -gcflags="all=-N -l -dwarf=false" -ldflags="-s -w" -o "$partial/" \
        istio.io/istio/istioctl/cmd/istioctl \
        istio.io/istio/pilot/cmd/pilot-{agent,discovery} \
        github.com/envoyproxy/gateway/cmd/envoy-gateway
    # What pilot-agent starts Envoy with.
    cp --no-preserve=mode "$(go list -m -f '{{.Dir}}' istio.io/istio)/tools/packaging/common/envoy_bootstrap.json" "$partial"
}

if [[ ! -d $folder ]]; then
    command -v go >/dev/null || { say "error: building Istio and Envoy Gateway needs Go on PATH (see https://go.dev/dl)"; exit 1; }
    say "building Istio and Envoy Gateway (about ten minutes, 490 MB in $folder)"
    mkdir -p "${folder%/*}"
    partial=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    cd control-planes
    build
    mv --no-target-directory "$partial" "$folder" 2>/dev/null || [[ -d $folder ]] # another shell was faster
    say "built after $SECONDS s"
fi
printf '%s\n' "$folder"
