"""Writes the configuration that Ray Serve would, with this process's environment."""

import json
import sys

from ray.serve._private.common import RequestProtocol
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

SERVICER = "ray.serve.generated.serve_pb2_grpc.add_RayServeAPIServiceServicer_to_server"


def main(host, http_port, grpc_port, http_replica, grpc_replica):
    assert RAY_SERVE_ENABLE_HA_PROXY
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=http_port),
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[SERVICER]),
        has_received_routes=True,
        has_received_servers=True,
    )
    http = BackendConfig(
        name="http-app",
        path_prefix="/",
        app_name="btray",
        servers=[ServerConfig("one", "127.0.0.1", http_replica)],
    )
    grpc = BackendConfig(
        name="grpc-app",
        path_prefix="",
        app_name="btray",
        servers=[ServerConfig("one", "127.0.0.1", grpc_replica)],
        protocol=RequestProtocol.GRPC,
    )
    api = HAProxyApi(config, {"http-app": http, "grpc-app": grpc})
    api._generate_config_file_internal()
    told = {
        "config": api.config_file_path,
        "socket": config.socket_path,
        "stats": config.stats_port,
        "metrics": config.metrics_port,
    }
    sys.stdout.write(json.dumps(told) + "\n")


main(sys.argv[1], *map(int, sys.argv[2:]))
