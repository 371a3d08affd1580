"""The application: what `serve_config.yaml` names and `btray serve` runs."""

from typing import TYPE_CHECKING, Any, Final

from ray import serve

from btray.serve.config import ServeConfig
from btray.serve.replica import MODELS, Classifier

if TYPE_CHECKING:
    from ray.serve import Application

NAME: Final = "btray"
SERVICERS: Final = (
    "btray.serve.proto.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server",
    "btray.serve.proto.classifier_pb2_grpc.add_ClassifierServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
"""What `grpc_options.grpc_servicer_functions` must name."""
_SPARE: Final = 64
"""Requests let in above the images that may wait: they are refused by us, in JSON."""


def build(args: ServeConfig) -> "Application":
    """Return the application.

    Its models become the deployment's `user_config`, which running replicas take up. In a file
    for `serve deploy` they are better written there at once: Ray Serve starts new replicas for
    whatever changes in `args`.
    """
    tree = args.model_dump(mode="json")
    models = tree.pop("models")
    application: Application = serve.deployment(
        name="Classifier",
        user_config={MODELS: models},
        max_ongoing_requests=args.limits.waiting + _SPARE,
        max_queued_requests=args.limits.waiting,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        graceful_shutdown_timeout_s=args.limits.deadline_s + 5,
        health_check_period_s=5,
        health_check_timeout_s=10,
        ray_actor_options=_resources(args),
        autoscaling_config=_autoscaling(args),
        logging_config={"encoding": "JSON", "enable_access_log": False},
    )(serve.ingress()(Classifier)).bind(tree)
    return application


def _resources(args: ServeConfig) -> dict[str, Any]:
    replicas = args.replicas
    options: dict[str, Any] = {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus}
    if replicas.labels:
        options["label_selector"] = replicas.labels
    return options


def _autoscaling(args: ServeConfig) -> dict[str, Any]:
    replicas = args.replicas
    return {
        "min_replicas": replicas.min,
        "max_replicas": replicas.max,
        "target_ongoing_requests": replicas.target_ongoing,
        "upscale_delay_s": replicas.upscale_delay_s,
        "downscale_delay_s": replicas.downscale_delay_s,
        "metrics_interval_s": 1.0,
        "look_back_period_s": 5.0,
    }
