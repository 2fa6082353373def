"""The contract: generated stubs of package identity.v1, and the .proto files beside them."""
