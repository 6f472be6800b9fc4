// Package crds names the Go packages that are the APIs of the custom kinds in k8s/; see crds.sh beside this folder.
package crds

// controller-gen makes their CustomResourceDefinitions of these.
import (
	_ "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	_ "github.com/cert-manager/trust-manager/pkg/apis/trust/v1alpha1"
	_ "github.com/envoyproxy/gateway/api/v1alpha1"
	_ "github.com/external-secrets/external-secrets/apis/externalsecrets/v1"
	_ "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	_ "github.com/traefik/traefik/v3/pkg/provider/kubernetes/crd/traefikio/v1alpha1"
)
