"""What a stub calls: deadline, retries, interceptors and observers of each call."""
