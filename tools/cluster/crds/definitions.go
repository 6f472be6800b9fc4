package crds

// These modules are nothing but an API, and have its CustomResourceDefinitions as files: their own generators make
// these, which know of protobuf and of channels what controller-gen does not.
import (
	_ "istio.io/api/networking/v1"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
