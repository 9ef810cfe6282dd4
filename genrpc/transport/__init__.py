"""The only importer of grpc."""
