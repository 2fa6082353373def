"""Generated stubs of package billing.v1."""
