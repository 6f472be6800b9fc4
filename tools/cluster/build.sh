#!/usr/bin/env bash
# Builds the programs of cluster.py with Go, where they are missing, and prints their folder.
#
# Not a Bazel target: in the closed-network mode Bazel does not see the machine's Go.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

version=$(sed -En 's/^\tk8s\.io\/kubernetes (v[0-9.]+).*/\1/p' go.mod)
recipe=$(cat go.mod go.sum build.sh | sha256sum | head -c 12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/grpc-on-kubernetes/bin/kubernetes-$version-$recipe

say() { printf 'tools/cluster: %s\n' "$*" >&2; }

# Clients read Kubernetes' version from the API server, where Kubernetes' own build puts it.
stamp() {
    local major minor
    IFS=.v read -r _ major minor _ <<<"$version"
    printf ' -X k8s.io/component-base/version.git%s' "Version=$version" "Major=$major" "Minor=$minor"
}

build() {
    say "building $1..."
    CGO_ENABLED=0 go build -trimpath -ldflags="-s -w$(stamp)" -o "$partial/$1" "$2"
}

if [[ ! -d $folder ]]; then
    command -v go >/dev/null || { say "error: building Kubernetes needs Go on PATH (see https://go.dev/dl)"; exit 1; }
    say "building Kubernetes $version (about ten minutes, 350 MB in $folder)"
    mkdir -p "${folder%/*}"
    partial=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    build etcd go.etcd.io/etcd/server/v3
    build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
    build kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
    build kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
    build kwok sigs.k8s.io/kwok/cmd/kwok
    # What KWOK brings for nodes, volumes and Jobs.
    cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage" "$partial/stages"
    mv --no-target-directory "$partial" "$folder" || [[ -d $folder ]] # another shell was faster
    say "built after $SECONDS s"
fi
printf '%s\n' "$folder"
