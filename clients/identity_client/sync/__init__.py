"""The threaded twin of `identity_client.aio`, for services on grpc.server. Its names are those of `identity_client`."""
