"""`btray serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from btray.errors import UserError


def serve(
    bundle: Annotated[
        str | None,
        typer.Argument(
            help="Bundle, run or models:/NAME@ALIAS; by default the shipped reference.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings (models, limits, auth …).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting, such as limits.images=8.", metavar="A.B=C"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 9000,
    replicas: Annotated[
        str | None, typer.Option(help="Replicas, or a range such as 1..4.", metavar="N|M..N")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="File of API keys (`btray keys`).")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tracking: Annotated[
        str | None, typer.Option(help="Registry of models:/…: an MLflow server or folder of runs.")
    ] = None,
) -> None:
    """Answer over HTTP and gRPC, with a web page, until SIGTERM or Ctrl-C."""
    from btray.config import read_tree, resolve_as
    from btray.serve.config import ServeConfig
    from btray.serve.server import Door, serving, wait_for_signal

    tree = read_tree(config)
    _apply(tree, bundle, replicas, keys, tracking)
    settings = resolve_as(ServeConfig, tree, overrides or ())
    if (tls_certificate is None) != (tls_key is None):
        raise UserError("--tls-certificate and --tls-key belong together")
    door = Door(host, http_port, grpc_port, tls_certificate, tls_key)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("starting …")
    with serving(settings, door) as plane:
        console.print(f"page and HTTP: {door.url}   gRPC: {host}:{grpc_port}   by {plane}")
        console.print("Research use only: not a medical device. Ctrl-C ends it.")
        wait_for_signal()
        console.print("answering what is in work, then leaving …")


def _apply(
    tree: dict[str, Any],
    bundle: str | None,
    replicas: str | None,
    keys: Path | None,
    tracking: str | None,
) -> None:
    """Write what options say into the tree of settings; raises UserError."""
    from btray.core.files import absolute

    if bundle is not None:
        if "models" in tree:
            raise UserError("give a bundle or --config with models, not both")
        registered = bundle.startswith("models:/")
        tree["models"] = [{"bundle": bundle if registered else absolute(bundle)}]
    if replicas is not None:
        low, _, high = replicas.partition("..")
        if not low.isdigit() or (high and not high.isdigit()):
            raise UserError(f"--replicas {replicas}: a number, or a range such as 1..4")
        tree.setdefault("replicas", {}).update(min=int(low), max=int(high or low))
    if keys is not None:
        tree.setdefault("auth", {})["keys_file"] = absolute(str(keys))
    tree["tracking"] = tracking or tree.get("tracking") or absolute("runs")
