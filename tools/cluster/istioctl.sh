#!/usr/bin/env bash
# Builds Istio's istioctl with Go, where it is missing, and prints its folder.
#
# Not a Bazel target: in the closed-network mode Bazel does not see the machine's Go.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

recipe=$(cat istio/go.mod istio/go.sum istioctl.sh | sha256sum | head -c 12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/grpc-on-kubernetes/bin/istio-$recipe

say() { printf 'tools/cluster: %s\n' "$*" >&2; }

if [[ ! -d $folder ]]; then
    command -v go >/dev/null || { say "error: building istioctl needs Go on PATH (see https://go.dev/dl)"; exit 1; }
    say "building istioctl (about eight minutes, 105 MB in $folder)"
    mkdir -p "${folder%/*}"
    partial=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    cd istio
    CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o "$partial/istioctl" istio.io/istio/istioctl/cmd/istioctl
    mv --no-target-directory "$partial" "$folder" || [[ -d $folder ]] # another shell was faster
    say "built after $SECONDS s"
fi
printf '%s\n' "$folder"
