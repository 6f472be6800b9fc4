"""What everything else stands on: calls, errors, ports, and the kernel's view of connections."""
