"""The facts gathered from a cluster, and all checks of them."""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from btray.config import Config
from btray.core import files
from btray.doctor import checks
from btray.doctor.checks import Answer, Check, ClusterNode, Status
from btray.doctor.node import NodeFacts, Questions, look, remove_file, write_file
from btray.errors import UserError

_PATIENCE_S: Final = 90.0
"""How long nodes may take to answer, in seconds."""


def examine(config: Config) -> list[Check]:
    """Look at the cluster that a run with these settings would use, and at all it needs."""
    from btray.cluster import connect

    try:
        connect()
    except UserError as error:
        return [Check("cluster", Status.fail, str(error)), check_registry(config)]
    storage = files.absolute(config.run.storage)
    nodes = cluster_nodes()
    marker = f".btray-doctor-{secrets.token_hex(8)}"
    own_error = _leave(storage, marker)
    questions = Questions(storage, marker, _doors())
    try:
        answers = ask(nodes, questions)
        own = look(questions)
    finally:
        if not own_error:
            remove_file(storage, marker)
    return [*_judge(config, storage, own, nodes, answers), check_registry(config)]


def _leave(storage: str, marker: str) -> str:
    """Write the file that nodes look for; return what went wrong, or ''."""
    try:
        write_file(storage, marker, b"btray")
    except UserError as error:
        return str(error)
    except OSError as error:
        return files.reason(error)
    return ""


def _judge(
    config: Config,
    storage: str,
    own: NodeFacts,
    nodes: Sequence[ClusterNode],
    answers: Sequence[Answer],
) -> Iterator[Check]:
    yield checks.check_answers(answers)
    yield checks.check_versions(own, answers)
    yield checks.check_resources(nodes, _shortage(config))
    yield checks.check_gpus(answers, config.train.gpu == "always")
    yield _storage(storage, own, answers)
    yield checks.check_clocks(answers)
    yield checks.check_ports(answers)
    yield checks.check_neighbours(answers)
    yield checks.check_authentication(*_authentication())
    yield checks.check_disks(answers)
    yield checks.check_memory(answers)


def _storage(storage: str, own: NodeFacts, answers: Sequence[Answer]) -> Check:
    if own.storage_error:
        return Check("storage", Status.fail, f"{storage}: from here: {own.storage_error}")
    return checks.check_storage(storage, answers)


def cluster_nodes() -> list[ClusterNode]:
    """Return the live nodes of the connected cluster."""
    import ray

    return [
        ClusterNode(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            object_store=int(node["Resources"].get("object_store_memory", 0)),
            labels=node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _doors() -> tuple[tuple[str, int], ...]:
    """Return where the head and every node listen for the others."""
    import ray

    head, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    doors = [(head, int(port))]
    for node in ray.nodes():
        if node["Alive"]:
            host = node["NodeManagerAddress"]
            doors += [(host, node["NodeManagerPort"]), (host, node["ObjectManagerPort"])]
    return tuple(doors)


def ask(nodes: Sequence[ClusterNode], questions: Questions) -> list[Answer]:
    """Have every node answer, none waiting for another."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = time.time()
    waiting = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(questions): node
        for node in nodes
    }
    answers = []
    deadline = time.monotonic() + _PATIENCE_S
    while waiting and (left := deadline - time.monotonic()) > 0:
        done, _ = ray.wait(list(waiting), timeout=left)
        answers += [_answer(waiting.pop(one), one, asked) for one in done]
    silent = f"no answer within {_PATIENCE_S:.0f} s"
    return answers + [Answer(node, None, silent) for node in waiting.values()]


def _answer(node: ClusterNode, reference: Any, asked: float) -> Answer:  # noqa: ANN401 - an ObjectRef
    import ray
    from ray.exceptions import RayError

    try:
        return Answer(node, ray.get(reference), "", asked, time.time())
    except RayError as error:
        return Answer(node, None, str(error).strip().splitlines()[-1], asked, time.time())


def _authentication() -> tuple[bool, str]:
    """Say whether the cluster asks for a token, and where its dashboard listens."""
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    dashboard = ray.get_runtime_context().worker.node.address_info.get("webui_url") or ""
    return bool(is_token_auth_enabled()), dashboard


def _shortage(config: Config) -> str:
    """Return what a run lacks room for, or ''."""
    from btray.cluster import require_node
    from btray.train.plan import place

    try:
        require_node(config.data.node_labels)
        place(config.train)
    except UserError as error:
        return str(error)
    return ""


def check_registry(config: Config) -> Check:
    """MLflow's store answers, if there is one already."""
    from btray.registry.client import SQLITE, VARIABLE, answered, locate, open_client

    if not config.tracking.enabled:
        return Check("registry", Status.ok, "tracking is off")
    named = config.tracking.uri or os.environ.get(VARIABLE)
    if not named and "://" in config.run.storage:
        advice = "set tracking.uri to an MLflow server"
        return Check("registry", Status.warn, "a bucket can hold no SQLite: no tracking", advice)
    try:
        uri = locate(config.tracking.uri, config.run.storage)
        if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
            return Check("registry", Status.ok, f"{uri}: the first run makes it")
        client = open_client(uri)
        with answered(uri):
            client.search_experiments(max_results=1)
    except UserError as error:
        return Check("registry", Status.fail, str(error), "mend it, or set tracking.enabled=false")
    return Check("registry", Status.ok, f"{uri} answers")
