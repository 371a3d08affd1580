"""Answering over HTTP and gRPC: models, limits, who may ask."""
