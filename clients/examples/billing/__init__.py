"""A service in the middle of a chain: threaded, calls the next one on behalf of its caller."""
