"""Generated stubs of package stock.v1."""
