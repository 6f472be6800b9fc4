"""The settings of a server: their types, how they are read, followed and shown on a command line."""
