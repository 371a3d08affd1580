"""Ports for servers that tests start."""

import socket


def free_port():
    """A port of loopback that nobody listens on now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]
