"""What tells how calls go: logs, metrics and traces."""
