"""Certificates: files that are checked and watched, and the credentials made of them."""
