"""Runs on a cluster whose nodes come and go, and with a bucket that is away for a while."""

import json
import threading

import boto3
import pytest
from moto.server import ThreadedMotoServer
from ray.train import TrainingFailedError

from btray.config import resolve_config
from btray.errors import UserError
from btray.train.trainer import fit, resume

pytestmark = pytest.mark.cluster


COMING_AND_GOING = """
import json, os, queue, subprocess, sys, threading, time
from contextlib import suppress
import ray
from ray.cluster_utils import Cluster
from btray.config import resolve_config
from btray.train import plan
from btray.train.trainer import Stopped, fit, open_board

plan.RESIZE_INTERVAL = 2.0
PATIENCE = 300  # seconds for a change: a machine may be slow
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = nodes.address
ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
head = ray.get_runtime_context().get_node_id()
spot = []


def join():
    spot.append(nodes.add_node(num_cpus=3))


def leave():
    nodes.remove_node(spot.pop(), allow_graceful=False)


def drain():
    '''As a spot node goes: told first, and then away.'''
    (new,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != head)
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address,
         "--node-id", new, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
         "--reason-message", "spot", "--deadline-remaining-seconds", "600"],
        check=True, capture_output=True)
    time.sleep(5)
    leave()


class News:
    '''Asks for a change when the run waits, and when an attempt has taken a step.'''

    def __init__(self):
        self.told, self.ready = [], True

    def show(self, update):
        kind = update["kind"]
        if kind == "attempt":
            self.ready = True
        if kind in {"waiting", "attempt", "step"}:
            fields = ("kind", "reason", "workers", "epoch", "step")
            self.told.append({key: update[key] for key in fields if key in update})
        if kind == "waiting" or (kind == "step" and self.ready):
            self.ready = False
            changes.put(kind)


changes, news = queue.Queue(), News()
config = resolve_config({}, [a for a in sys.argv[2:] if a != "--set"])
board = open_board(2)


def run():
    with suppress(Stopped):
        fit(config, news, True, board)


train = threading.Thread(target=run, daemon=True)
train.start()
for change in (join, drain, join, leave):  # only the main thread may start a node
    changes.get(timeout=PATIENCE)
    change()
changes.get(timeout=PATIENCE)
with open(sys.argv[1], "w") as file:  # Ray itself prints of lost processes
    json.dump(news.told, file)
ray.get(board.stop.remote())  # a run whose cluster goes first would connect to it again
train.join()
ray.shutdown()
nodes.shutdown()
os._exit(0)
"""


def attempts(news):
    """Workers and place of every attempt, and the last step told of before it."""
    found, last = [], (0, 0)
    for update in news:
        place = (update.get("epoch"), update.get("step"))
        if update["kind"] == "attempt":
            found.append((update["workers"], place, last))
        if update["kind"] == "step":
            last = place
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_waits_for_room_shrinks_moves_and_grows(run_python, phantom, tmp_path, train_options):
    settings = {"train.workers": "1..2", "train.cpus_per_worker": 2, "image.size": 96}
    settings |= {"train.epochs": 3000, "train.patience": 0}
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs"}
    file = tmp_path / "news.json"
    done = run_python("-c", COMING_AND_GOING, file, *train_options(**places, **settings))
    assert not done.returncode, done.stderr
    waiting, *news = json.loads(file.read_text())
    assert "does not fit the cluster's 2 CPUs" in waiting["reason"]
    first, drained, grown, lost = attempts(news)
    assert [workers for workers, _, _ in (first, drained, grown, lost)] == [2, 1, 2, 1]
    assert first[1] == (0, 0)
    assert drained[1] >= drained[2]  # not a step is lost
    for _, place, last in (grown, lost):
        assert place[0] >= last[0]  # what its epoch had


class Outage:
    """A display that shuts a bucket in the second epoch and opens it again after a while."""

    def __init__(self, close, open_again):
        self.close, self.open_again, self.timer = close, open_again, None
        self.attempts = 0

    def show(self, update):
        self.attempts += update["kind"] == "attempt"
        if update["kind"] == "step" and update["epoch"] == 1 and self.timer is None:
            self.close()
            self.timer = threading.Timer(6, self.open_again)
            self.timer.start()


@pytest.fixture
def bucket(tmp_path):
    """Start moto's server on a port; return it, and the run storage that is a bucket of it."""
    servers = []

    def start(port=0):
        servers.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port))
        servers[-1].start()
        host, port = servers[-1].get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="runs")
        query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        return servers[-1], f"'s3://runs/{tmp_path.name}{query}'"  # moto's memory is the process's

    yield start
    servers[-1].stop()


@pytest.fixture
def configs(phantom, train_options, tmp_path):
    """The configuration of a run in a bucket, and that of the same run in a folder."""

    def make(storage, **settings):
        for place in (storage, tmp_path / "runs"):
            tree = {"data.dataset": phantom, "run.storage": place, **settings}
            yield resolve_config({}, [part for part in train_options(**tree) if part != "--set"])

    return make


def losses(run):
    return [row["val_loss"] for row in run.history]


def test_an_outage_of_the_bucket_costs_no_checkpoint(cluster, bucket, configs):
    server, storage = bucket()
    _, port = server.get_host_and_port()
    config, undisturbed = configs(storage, **{"train.epochs": 40})
    display = Outage(server.stop, lambda: bucket(port))
    run = fit(config, display)
    display.timer.join()
    assert losses(run) == losses(fit(undisturbed))


class Expiry:
    """A display that has the credentials for a bucket expire in the second epoch."""

    def __init__(self, server):
        self.valid, self.run = True, None
        answer = server.app
        refusal = (
            b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"
        )

        def app(environ, start_response):
            if self.valid:
                return answer(environ, start_response)
            size = str(len(refusal))
            headers = [("Content-Type", "application/xml"), ("Content-Length", size)]
            start_response("400 Bad Request", headers)
            return [refusal]

        server.app = app

    def show(self, update):
        self.run = update.get("uri", self.run)
        if update["kind"] == "step" and update["epoch"] == 1:
            self.valid = False


def test_credentials_that_expire_end_a_run_and_cost_no_checkpoint(cluster, bucket, configs):
    server, storage = bucket()
    settings = {"train.epochs": 4, "train.max_failures": 1}
    config, undisturbed = configs(storage, **settings)
    expiry = Expiry(server._server)
    told = r"HTTP status 400|ExpiredToken"
    with pytest.raises((UserError, TrainingFailedError), match=told):
        fit(config, expiry)
    expiry.valid = True
    expiry.show = lambda update: None
    assert losses(resume(expiry.run)) == losses(fit(undisturbed))
