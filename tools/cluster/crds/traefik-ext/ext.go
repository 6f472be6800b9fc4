// Package ext stands in for the place where Traefik's own module takes other people's options from, which
// Traefik does not publish: it has none.
package ext

// HTTP has the options of HTTP beside Traefik's own.
type HTTP struct{}

// Router has the options of a router beside Traefik's own.
type Router struct{}
