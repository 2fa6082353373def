"""Generated stubs of package orders.v1."""
