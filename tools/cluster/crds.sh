#!/usr/bin/env bash
# Fetches the CustomResourceDefinitions of the kinds in k8s/, where they are missing, and prints their folder.
#
# They are files of their projects' Go modules. To take another version, replace it and run this: it says which sum
# Go found, after Go has asked its checksum database for it (see `go help module-auth`).
set -euo pipefail
script=$(readlink -f "${BASH_SOURCE[0]}")

recipe=$(sha256sum <"$script" | head -c 12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/grpc-on-kubernetes/bin/crds-$recipe

say() { printf 'tools/cluster: %s\n' "$*" >&2; }
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" <<<"$module"; }

# fetch MODULE@VERSION SUM FILE...: the sum is the one that go.sum files have.
fetch() {
    local module file
    # Not in this folder, to whose go.sum Go would add it.
    module=$(cd / && go mod download -json "$1") || { say "error: $1: $(field Error)"; exit 1; }
    [[ $(field Sum) == "$2" ]] || { say "error: $1 has the sum $(field Sum), not $2"; exit 1; }
    for file in "${@:3}"; do
        cp --no-preserve=mode "$(field Dir)/$file" "$partial"
    done
}

if [[ ! -d $folder ]]; then
    command -v go >/dev/null || { say "error: fetching CRDs needs Go on PATH (see https://go.dev/dl)"; exit 1; }
    say "fetching CRDs (35 MB, unpacked 140 MB in Go's module cache; 2 MB in $folder)"
    mkdir -p "${folder%/*}"
    partial=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$partial"' EXIT

    fetch github.com/cert-manager/cert-manager@v1.21.2 h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68= \
        deploy/crds/cert-manager.io_{certificates,clusterissuers}.yaml
    fetch github.com/cert-manager/trust-manager@v0.25.0 h1:nGtkHH9wEacI5uACdsq8wqCKWsCw1PMrwHPJcrUFUXA= \
        deploy/crds/trust.cert-manager.io_bundles.yaml
    fetch github.com/envoyproxy/gateway@v1.9.1 h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY= \
        charts/gateway-helm/charts/crds/crds/generated/gateway.envoyproxy.io_{backend,client}trafficpolicies.yaml
    fetch github.com/prometheus-operator/prometheus-operator@v0.85.0 h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s= \
        example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml
    fetch github.com/traefik/traefik/v3@v3.7.13 h1:T8wy9KuaFzCkmXCqAzDy7t73pBDR1DHrJe3pqXpNXTw= \
        docs/content/reference/dynamic-configuration/traefik.io_{ingressroutes,middlewares,serverstransports}.yaml
    fetch istio.io/api@v1.31.4 h1:AcnncYrlDj1PJkym7h88Gggkef4MAra8QpGaXRMsr+E= \
        kubernetes/customresourcedefinitions.gen.yaml
    fetch sigs.k8s.io/gateway-api@v1.6.3 h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc= \
        config/crd/standard/gateway.networking.k8s.io_{gateways,grpcroutes}.yaml

    mv --no-target-directory "$partial" "$folder" || [[ -d $folder ]] # another shell was faster
fi
printf '%s\n' "$folder"
