"""deploy/clusters/local.yaml, brought up by `ray up` on hosts of a network of their own."""

import json
import queue
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.hosts import Laptop, rack, why_not
from btray.data.importer import import_dataset
from btray.data.sources.phantom_source import PhantomSource

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"hosts: {why_not()}"),
    pytest.mark.timeout(1800),
]
PATIENCE = 600  # seconds for a change: a machine may be slow


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """A cluster of a head with one CPU, for the data, and two hosts with two each."""
    folder = tmp_path_factory.mktemp("hosts")
    with rack(folder, ("head", "one", "two")) as hosts:
        laptop = Laptop(folder, hosts, cpus=2, head_cpus=1)
        with laptop.cluster():
            yield laptop
        for host in hosts:  # a worker's ends when it has not found its head for a minute
            while "raylet" in host.run("cat /proc/[0-9]*/comm || true").stdout:
                time.sleep(1)


@pytest.fixture
def submit(laptop):
    """`btray submit` by the laptop's way to the private dashboard; stdout and stderr in one."""
    work = laptop.home / "work"
    work.mkdir(exist_ok=True)
    started = []
    with laptop.dashboard() as url:
        own = ("-m", "btray", "submit", "--address", url)

        def start(*arguments):
            process = subprocess.Popen(
                [sys.executable, *own, *map(str, arguments)], cwd=work, env=laptop.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def train(phantom, tmp_path, train_options):
    """The arguments of a run, and the folder that it will be in."""

    def arguments(name, **settings):
        places = {"data.dataset": phantom, "run.storage": tmp_path / "runs", "run.name": name}
        cores = {"train.cpus_per_worker": 1, "train.patience": 0}
        return [
            "train",
            *train_options(**{**places, **cores, **settings}),
        ], tmp_path / "runs" / name

    return arguments


def metrics(run):
    timed = "images_per_second"
    rows = json.loads((run / "history.json").read_text())
    return [{key: value for key, value in row.items() if key != timed} for row in rows]


def places(laptop, run):
    """Return the addresses of the workers of each attempt of a run, from Ray Train's own log."""
    found = []
    for log in (laptop.folder / "head" / "ray").glob("session_2*/logs/train/*sys-controller*.log"):
        for line in map(json.loads, log.read_text().splitlines()):
            if line.get("run_name") == run and "Started training worker group" in line["message"]:
                workers = line["message"].splitlines()[1:]
                found.append({worker.split("ip=")[1].split(",")[0] for worker in workers})
    return found


def test_the_same_command_gives_the_same_numbers_on_two_hosts(laptop, submit, train, run_python):
    settings = {"train.epochs": 3, "train.workers": 3, "train.cpus_per_worker": 1}
    settings |= {"data.batch_size": 24}
    on_hosts, hosts = train("hosts", **settings)
    done = submit(*on_hosts)
    said, _ = done.communicate()
    assert done.returncode == 0, said
    assert [len(hosts) for hosts in places(laptop, "hosts")] == [2]
    on_laptop, alone = train("alone", **settings)
    here = run_python("-m", "btray", *on_laptop)
    assert here.returncode == 0, here.stderr
    assert metrics(hosts) == metrics(alone)


class Lines:
    """What a process says, line by line, each waited for with patience."""

    def __init__(self, process):
        self.all, self._queue = [], queue.Queue()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process):
        for line in process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def until(self, part):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._queue.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                line = ""
            assert line, f"{part!r} was not said: {''.join(self.all)}"
            self.all.append(line)
            if part in line:
                return line


def test_a_run_outlives_the_loss_of_a_host_and_takes_it_back(laptop, submit, train, tmp_path):
    import_dataset(PhantomSource(400), str(tmp_path / "data"))
    settings = {"train.workers": "1..2", "train.cpus_per_worker": 2, "image.size": 64}
    settings |= {"data.dataset": tmp_path / "data", "data.batch_size": 32, "train.epochs": 1000}
    arguments, _ = train("elastic", **settings)
    said = Lines(submit(*arguments))
    said.until("epoch   2/")
    (before,) = places(laptop, "elastic")
    lost = next(host for host in laptop.workers if host.address in before)
    lost.connect(up=False)
    try:
        said.until("now 1 workers")
        said.until("epoch ")
    finally:
        lost.connect(up=True)  # the autoscaler finds it by SSH and starts Ray there again
    said.until("now 2 workers")
    while float(said.until("macro-F1").split("macro-F1")[1].split()[0]) < 0.9:
        pass  # it goes on learning
    _, alone, again = places(laptop, "elastic")
    assert (len(before), len(alone), len(again)) == (2, 1, 2)
    assert lost.address not in alone
    rows = [line.split() for line in said.all if line.startswith("epoch ")]
    epochs = [int(row[1].split("/")[0]) for row in rows]
    assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))
    assert len(epochs) - len(set(epochs)) <= 2  # a change costs no more than its last checkpoint
