"""Subchannels, one for each endpoint, and the pickers that choose one for a call."""
