"""Channels for the clients of gRPC services; channel.py opens them."""
