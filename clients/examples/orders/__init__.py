"""A peer: a small service that lets Identity judge its callers, and a client that calls it."""
