"""The metrics of this node as Prometheus reads them, taken from Ray's own exporter."""

import http.client
from typing import Final

import ray

from btray.serve.errors import ServeError

_PREFIX: Final = "ray_btray_"
_SECONDS: Final = 5.0


def metrics_page() -> bytes:
    """Return those metrics of the replicas on this node that are btray's own.

    Raises:
        ServeError: Ray's exporter does not answer.

    """
    node = ray.get_runtime_context().get_node_id()
    ports = [n["MetricsExportPort"] for n in ray.nodes() if n["NodeID"] == node]
    address = ray.util.get_node_ip_address()
    try:
        connection = http.client.HTTPConnection(address, ports[0], timeout=_SECONDS)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    except (OSError, IndexError, http.client.HTTPException):
        raise ServeError(
            "unavailable", "this node's metrics exporter does not answer", retry_after_s=5
        ) from None
    lines = [line for line in page.splitlines() if _PREFIX in line.partition("{")[0]]
    return ("\n".join(lines) + "\n").encode()
