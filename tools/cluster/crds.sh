#!/usr/bin/env bash
# Generates the CustomResourceDefinitions of the kinds in k8s/ with Go, where they are missing, and prints their folder.
#
# controller-gen makes them of the Go packages of crds/apis.go, in the versions of crds/go.mod. To take another version:
# `go get MODULE@VERSION` and `go mod tidy` in crds/, then this.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

recipe=$(cat crds/go.mod crds/go.sum crds/apis.go crds.sh | sha256sum | head -c 12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/grpc-on-kubernetes/bin/crds-$recipe

say() { printf 'tools/cluster: %s\n' "$*" >&2; }

# The packages have more kinds, some of them of a megabyte.
kinds=(
    cert-manager.io_{certificates,clusterissuers}
    external-secrets.io_externalsecrets
    gateway.envoyproxy.io_{backendtrafficpolicies,clienttrafficpolicies}
    monitoring.coreos.com_{podmonitors,prometheusrules,servicemonitors}
    traefik.io_{ingressroutes,middlewares,serverstransports}
    trust.cert-manager.io_bundles
)

generate() {
    local paths kind
    mapfile -t paths < <(sed -n 's/^\t_ "\(.*\)"$/paths=\1/p' apis.go)
    # Dangerous are floating-point numbers, which Envoy Gateway, Traefik and External Secrets have.
    go tool controller-gen crd:allowDangerousTypes=true "${paths[@]}" output:crd:dir="$partial/all"
    for kind in "${kinds[@]}"; do
        mv "$partial/all/$kind.yaml" "$partial"
    done
    rm -r "$partial/all"
}

# copy MODULE FILE...
copy() {
    local module file
    go mod download "$1"
    module=$(go list -m -f '{{.Dir}}' "$1")
    for file in "${@:2}"; do
        cp --no-preserve=mode "$module/$file" "$partial"
    done
}

if [[ ! -d $folder ]]; then
    command -v go >/dev/null || { say "error: generating CRDs needs Go on PATH (see https://go.dev/dl)"; exit 1; }
    say "generating CRDs (about two minutes; 110 MB to download, 850 MB in Go's caches, 2 MB in $folder)"
    mkdir -p "${folder%/*}"
    partial=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    cd crds
    generate
    copy istio.io/api kubernetes/customresourcedefinitions.gen.yaml
    copy sigs.k8s.io/gateway-api config/crd/standard/gateway.networking.k8s.io_{gateways,grpcroutes}.yaml
    mv --no-target-directory "$partial" "$folder" || [[ -d $folder ]] # another shell was faster
    say "generated after $SECONDS s"
fi
printf '%s\n' "$folder"
