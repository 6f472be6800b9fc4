"""The server of gRPC services: the life of a call, health, reflection and an orderly end."""
