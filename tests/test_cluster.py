import os
import socket
import subprocess
import sys
import time

import pytest
import ray
from ray._private.utils import publish_error_to_driver

from btray import cluster


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        code = (
            "from btray.cluster import connect\nfrom btray.errors import UserError\n"
            "try:\n    connect()\nexcept UserError as error:\n    print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"RAY_ADDRESS": address},
            capture_output=True,
            text=True,
        )
    assert done.stdout.startswith(f"RAY_ADDRESS={address}: no Ray cluster can be joined there (")
    assert done.stdout.count("\n") == 1


@pytest.mark.cluster
def test_connecting_twice_joins_the_same_cluster(cluster_address):
    cluster.connect()
    assert ray.get_runtime_context().gcs_address == cluster_address


@pytest.mark.cluster
def test_news_of_the_cluster_go_to_the_log_and_not_to_stdout(cluster, capfd, caplog):
    client = ray._private.worker.global_worker.gcs_client
    publish_error_to_driver("worker_died", "a worker was ended for want of memory", client)
    end = time.monotonic() + 60
    while "want of memory" not in caplog.text:
        assert time.monotonic() < end, "nothing was heard of it"
        time.sleep(0.05)
    assert capfd.readouterr().out == ""


@pytest.mark.cluster
def test_a_local_cluster_has_cores_to_spare_for_reading(cluster_address):
    assert ray.cluster_resources()["CPU"] == cluster.local_cores() + cluster.DATA_CPUS
    assert cluster.usable_cores() == cluster.local_cores()


def test_log_lines_go_to_the_file_and_handlers_come_back(tmp_path, capsys):
    import logging

    logger = logging.getLogger("ray.train")
    before = list(logger.handlers)
    with cluster.log_to_file(tmp_path / "log"):
        logger.warning("a worker died")
    assert "WARNING ray.train: a worker died" in (tmp_path / "log").read_text()
    assert logger.handlers == before
    assert capsys.readouterr().err == ""
