"""Debian's Prometheus with our configuration, beside the session's real cluster."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import ray
import yaml

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus"
    ),
]
DEPLOY = Path(__file__).parents[2] / "deploy"
ALWAYS = ("Object stores", "CPU of nodes", "Memory of nodes", "Free disk of nodes", "CPUs")
"""Panels of any cluster, whatever runs on it."""


class Prometheus:
    """A server that reads the cluster's metrics every second."""

    def __init__(self, folder: Path):
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], "1s")
        # The session's own, not the link to the last one's: other clusters are up beside it.
        found = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        files = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
        assert files == ["/tmp/ray/prom_metrics_service_discovery.json"]
        files[0] = str(found / Path(files[0]).name)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        options = ("config.file=prometheus.yml", "storage.tsdb.path=data")
        self.process = subprocess.Popen(
            ["prometheus", *(f"--{option}" for option in options),
             f"--web.listen-address={self.address}"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"),
        )  # fmt: skip

    def get(self, path, **parameters):
        """Return what it answers; raises HTTPError for a query it cannot evaluate."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def until(self, found, seconds=60):
        """Ask until there is something to be found."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if result := found():
                    return result
            except (urllib.error.URLError, ConnectionError):
                pass  # it is starting
            time.sleep(0.5)
        raise AssertionError("nothing found in time")


@pytest.fixture
def prometheus(cluster, tmp_path):
    server = Prometheus(tmp_path)
    yield server
    server.process.terminate()
    server.process.wait(timeout=20)


def test_targets_are_up_and_every_query_can_be_evaluated(prometheus):
    def all_up():
        targets = prometheus.get("targets")["activeTargets"]
        return targets and all(target["health"] == "up" for target in targets)

    def value(expression):
        return prometheus.get("query", query=expression)["result"]

    prometheus.until(all_up)
    prometheus.until(lambda: value("ray_node_disk_free"))
    for file in (DEPLOY / "grafana").glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                found = value(target["expr"])
                assert found or panel["title"] not in ALWAYS, (file.stem, panel["title"])
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            value(rule["expr"])
    loaded = prometheus.get("rules")["groups"]
    assert sum(len(group["rules"]) for group in loaded) == 15
    assert all(rule["health"] != "err" for group in loaded for rule in group["rules"])
