import json
import time
from contextlib import suppress

import pytest

from btray.config import resolve_config
from btray.core.files import join
from btray.errors import UserError
from btray.registry import tracker as module
from btray.registry.client import locate
from btray.registry.runs import Runs, changed, scores
from btray.registry.send import Sender, State, sender_of
from btray.registry.spool import EVENTS, Spool
from btray.registry.tracker import Tracker, parameters, record_evaluation
from btray.train.storage import RunFolder
from btray.train.trainer import Run

SECRET = "Doe_John"
EPOCHS = 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "SYSTEM", 0.2)


def make_config(tmp_path, uri=None, name="a"):
    return resolve_config(
        {
            "data": {"dataset": f"/data/{SECRET}"},
            "model": {"pretrained": f"/weights/{SECRET}.pth"},
            "run": {"storage": str(tmp_path / f"{SECRET}-runs"), "name": name},
            "tracking": {"uri": uri},
        }
    )


@pytest.fixture
def started(tmp_path):
    """A run's folder, a tracker of it and the lines it warned with."""

    def make(uri=None, name="a"):
        folder, config = RunFolder.create(make_config(tmp_path, uri, name))
        lines = []
        return folder, Tracker(config, "d" * 64, lines.append), lines

    return make


def epoch(number):
    metrics = {"epoch": number, "val_accuracy": number / 10, "val_macro_f1": 0.5, "val_loss": 1.0}
    return {"kind": "epoch", "epoch": number, "epochs": EPOCHS, "metrics": metrics}


def finish(tracker, folder, make_bundle):
    folder.write("curves.png", b"PNG")
    folder.write("history.json", b"[]")
    tracker.finish(Run(folder, make_bundle(folder.local / "bundle"), []))


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for five minutes")


def sent(folder):
    state = State.read(folder)  # None while it is written
    return 0 if state is None else state.sent


def spooled(folder):
    return [json.loads(line) for line in (folder.local / EVENTS).read_text().splitlines()]


def check_arrived(uri, bundle_version):
    runs = Runs(uri, "btray")
    run = runs.find("a")
    assert run.status == "FINISHED"
    assert runs.curve(run, "val_accuracy") == [(n + 1, n / 10) for n in range(EPOCHS)]
    assert run.params["train.epochs"] == "30"
    assert run.tags["btray.data_hash"] == "d" * 64
    assert run.tags["btray.bundle"] == bundle_version
    assert run.metrics["best_val_accuracy"] == 0.5
    assert len(runs.all()) == 1
    return run


def test_everything_is_in_the_embedded_store(started, make_bundle):
    folder, tracker, lines = started()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        tracker.show({"kind": "step"})
        for number in range(EPOCHS):
            tracker.show(epoch(number))
        wait_for(lambda: any("system/cpu" in str(event) for event in spooled(folder)))
        finish(tracker, folder, make_bundle)
    storage = folder.local.parent
    run = check_arrived(locate(None, str(storage)), make_bundle(storage / "again").version)
    artifacts = {p.name for p in (storage / "mlartifacts" / run.run_id).rglob("*") if p.is_file()}
    assert artifacts == {"curves.png", "history.json", "model.safetensors", "bundle.json"}
    assert "system/system_memory_usage_percentage" in run.metrics
    assert lines == []


def test_what_is_told_names_no_place(started, make_bundle):
    folder, tracker, _ = started()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        finish(tracker, folder, make_bundle)
    assert SECRET not in (folder.local / EVENTS).read_text()


def test_nothing_is_sent_before_the_first_step(started):
    folder, tracker, _ = started()
    tracker.show({"kind": "run", "uri": folder.uri})
    assert tracker._thread is None
    assert [event["kind"] for event in spooled(folder)] == ["start"]


@pytest.mark.timeout(900)
def test_a_server_that_is_killed_in_the_middle_has_everything_in_the_end(
    server, started, make_bundle
):
    folder, tracker, lines = started(server.uri)
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        tracker.show(epoch(0))
        wait_for(lambda: sent(folder) >= 2)
        server.kill()
        tracker.show(epoch(1))
        tracker.show(epoch(2))
        wait_for(lambda: lines)
        server.start()
        wait_for(lambda: sent(folder) >= 4)
        tracker.show(epoch(3))
        finish(tracker, folder, make_bundle)
    assert len(lines) == 1
    assert "training goes on" in lines[0]
    check_arrived(server.uri, make_bundle(folder.local / "bundle").version)


@pytest.mark.timeout(900)
def test_what_a_server_missed_to_the_end_is_synchronised(server, started, make_bundle):
    folder, tracker, lines = started(server.uri)
    server.kill()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        for number in range(EPOCHS):
            tracker.show(epoch(number))
        finish(tracker, folder, make_bundle)
    assert "no MLflow server answers" in lines[0]
    assert lines[-1].endswith(f"btray runs sync {folder.uri}")
    assert len(lines) == 2
    with pytest.raises(UserError, match="no MLflow server answers"):
        sender_of(folder, lines.append).send()
    server.start()
    assert sender_of(folder, lines.append).send() == len(spooled(folder))
    assert sender_of(folder, lines.append).send() == 0
    check_arrived(server.uri, make_bundle(folder.local / "bundle").version)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(started, tmp_path, make_bundle):
    folder, tracker, _ = started()
    with suppress(KeyboardInterrupt), tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        tracker.show(epoch(0))
        tracker.show(epoch(1))
        raise KeyboardInterrupt
    runs = Runs(locate(None, str(folder.local.parent)), "btray")
    assert runs.find("a").status == "KILLED"
    with Tracker(make_config(tmp_path), "d" * 64, print) as again:
        again.show({"kind": "run", "uri": folder.uri})
        for number in range(1, EPOCHS):  # the second epoch once more
            again.show(epoch(number))
        finish(again, folder, make_bundle)
    check_arrived(runs.uri, make_bundle(folder.local / "bundle").version)


def test_sending_twice_changes_nothing(started):
    folder, tracker, lines = started()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        for number in range(EPOCHS):
            tracker.show(epoch(number))
    runs = Runs(tracker.uri, "btray")
    before = runs.all()
    (folder.local / "tracking.json").unlink()
    assert Sender(Spool(folder), tracker.uri, "btray", lines.append).send() > EPOCHS
    assert runs.all() == before
    assert len(runs._client.get_metric_history(before[0].run_id, "val_loss")) == EPOCHS


def test_a_damaged_store_stops_no_training(started):
    folder, tracker, lines = started()
    (folder.local.parent / "mlflow.db").write_bytes(b"no database" * 100)
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        tracker.show(epoch(0))
    assert "mlflow.db: damaged" in lines[0]
    assert [event["kind"] for event in spooled(folder)] == ["start", "metrics", "status"]


def test_mlflow_missing_is_told_once(started, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow.tracking", None)
    folder, tracker, lines = started()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        tracker.show(epoch(0))
        wait_for(lambda: lines)
    assert len(lines) == 1
    assert "pip install" in lines[0]


def test_a_torn_line_is_dropped_and_a_damaged_one_told(tmp_path):
    folder, _ = RunFolder.create(make_config(tmp_path))
    path = folder.local / EVENTS
    path.write_text('{"kind": "tags", "time": 1, "tags": {}}\n{"kind": "me')
    spool = Spool(folder)
    spool.append("status", status="FAILED")
    assert [event["kind"] for event in Spool(folder).events] == ["tags", "status"]
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(UserError, match=r"tracking\.jsonl: line 1 is damaged"):
        Spool(folder)


def test_parameters_are_flat_and_without_places(tmp_path):
    found = parameters(make_config(tmp_path))
    assert found["model.pretrained"] == "file"
    assert found["augment.rotation"] == "15.0"
    assert not [name for name in found if name.startswith(("run.", "tracking.", "data.dataset"))]


def test_a_report_joins_the_run_of_its_bundle(started, make_bundle, make_evaluation, tmp_path):
    folder, tracker, lines = started()
    with tracker:
        tracker.show({"kind": "run", "uri": folder.uri})
        finish(tracker, folder, make_bundle)
    bundle = make_bundle(tmp_path / "elsewhere")
    report = make_evaluation(bundle, 20)
    metrics = json.loads((report / "metrics.json").read_text())
    names = ["metrics.json", "predictions.parquet"]
    assert record_evaluation(join(folder.uri, "bundle"), report, names, metrics, lines.append)
    assert not record_evaluation(bundle.uri, report, names, metrics, lines.append)
    run = Runs(tracker.uri, "btray").find("a")
    assert run.metrics["evaluation-test/accuracy"] == 0.9
    stored = folder.local.parent / "mlartifacts" / run.run_id / "artifacts" / "evaluation-test"
    assert (stored / "predictions.parquet").read_bytes() == (report / names[1]).read_bytes()
    assert lines == []


def test_runs_are_compared_by_what_differs(started):
    for name, rate in (("a", 1), ("b", 2)):
        folder, tracker, _ = started(name=name)
        with tracker:
            tracker.config = tracker.config.model_copy(update={"seed": rate})
            tracker.show({"kind": "run", "uri": folder.uri})
            tracker.show(epoch(rate))
    runs = Runs(tracker.uri, "btray")
    found = [runs.find("a"), runs.find("b")]
    assert changed(found) == {"seed": ["1", "2"]}
    assert scores(found)["latest_val_accuracy"] == [0.1, 0.2]
    with pytest.raises(UserError, match="no run 'aa'; nearest: a"):
        runs.find("aa")
