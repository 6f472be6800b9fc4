package main

import (
	"path/filepath"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
	"google.golang.org/grpc/security/advancedtls"
)

// In place of a minute in a cluster: shorter than a step of certificates.py.
const refresh = 500 * time.Millisecond

// Return mutual TLS with the files of a mounted Secret, which are followed: each handshake has the newest ones.
func followed(directory string) (credentials.TransportCredentials, error) {
	files, err := pemfile.NewProvider(pemfile.Options{
		CertFile:        filepath.Join(directory, "tls.crt"),
		KeyFile:         filepath.Join(directory, "tls.key"),
		RootFile:        filepath.Join(directory, "ca.crt"),
		RefreshDuration: refresh,
	})
	if err != nil {
		return nil, err
	}
	return advancedtls.NewClientCreds(&advancedtls.Options{
		IdentityOptions: advancedtls.IdentityCertificateOptions{IdentityProvider: files},
		RootOptions:     advancedtls.RootCertificateOptions{RootProvider: files},
	})
}
