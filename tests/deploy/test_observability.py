"""Alerts and dashboards: their form, and that they ask for metrics that Ray and btray have."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import ray
import yaml

CHECKOUT = Path(__file__).parents[2]
PROMETHEUS = CHECKOUT / "deploy" / "prometheus"
DASHBOARDS = sorted((CHECKOUT / "deploy" / "grafana").glob("*.json"))
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
METRIC = re.compile(r"\b(?:ray|autoscaler)_[a-z0-9_]+(?=[{\[)\s>/=]|$)")
LABELS = re.compile(r"\{[^}]*\}|\b(?:by|without)\s*\([^)]*\)")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus"
)


@cache
def known():
    """Return every word of Ray's and btray's installed source that may name a metric."""
    root = Path(ray.__file__).parent
    places = [
        *root.glob("dashboard/modules/metrics/dashboards/*.py"),
        *root.glob("dashboard/modules/reporter/*.py"),
        *root.glob("serve/_private/**/*.py"),
        *root.glob("data/_internal/**/*.py"),
        *root.glob("train/v2/_internal/metrics/*.py"),
        *root.glob("autoscaler/_private/prom_metrics.py"),
        *(CHECKOUT / "btray" / "serve").glob("*.py"),
    ]
    words = set()
    for place in places:
        words.update(re.findall(r"[a-z][a-z0-9_]+", place.read_text(encoding="utf-8")))
    return words


def is_known(metric):
    """Ray exports a metric as ray_NAME, a counter as ray_NAME_total, a histogram in parts."""
    bare = metric.removeprefix("ray_").removeprefix("autoscaler_")
    names = {metric, bare}
    names |= {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
    return bool(names & known())


def queries(dashboard):
    tree = json.loads(dashboard.read_text())
    return [target["expr"] for panel in tree["panels"] for target in panel["targets"]]


def metrics(expression):
    return set(METRIC.findall(LABELS.sub(" ", expression)))


def test_a_metric_nobody_has_is_found_out():
    assert metrics('sum by (ray_train_run_name) (rate(ray_x_total{ray_y="a"}[5m])) > 0') == {
        "ray_x_total"
    }
    assert not is_known("ray_serve_no_such_thing_total")


def test_there_is_a_dashboard_for_each_part():
    assert [path.stem for path in DASHBOARDS] == ["data", "serve", "train", "tune"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_metrics_that_exist(dashboard):
    asked = set().union(*map(metrics, queries(dashboard)))
    assert len(asked) >= 8
    assert not {metric for metric in asked if not is_known(metric)}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboards_panels_do_not_overlap(dashboard):
    tree = json.loads(dashboard.read_text())
    places = [tuple(panel["gridPos"].values()) for panel in tree["panels"]]
    assert len({(x, y) for _, _, x, y in places}) == len(places)
    assert all(x + w <= 24 for _, w, x, _ in places)
    assert len({panel["id"] for panel in tree["panels"]}) == len(places)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist_and_names_a_runbook(rule):
    expression = rule["expr"].replace("up{", "ray_node_cpu_count{")
    asked = metrics(expression)
    assert asked
    assert not {metric for metric in asked if not is_known(metric)}
    place, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.+)$", (CHECKOUT / place).read_text(), re.M)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


@needs_promtool
def test_promtool_accepts_the_rules_and_they_fire_when_they_should():
    for arguments in (
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ):
        done = subprocess.run(
            ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_can_read_every_query_of_the_dashboards(tmp_path):
    rules = [
        {"record": f"query:{number}", "expr": expression}
        for number, expression in enumerate(q for board in DASHBOARDS for q in queries(board))
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True
    )
    assert f"{len(rules)} rules found" in done.stdout, done.stdout + done.stderr


def test_the_pod_monitor_scrapes_ports_that_pods_have():
    monitor = yaml.safe_load((PROMETHEUS / "pod-monitor.yaml").read_text())
    ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    cluster = yaml.safe_load((CHECKOUT / "deploy/kuberay/base/cluster.yaml").read_text())
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert ports <= {port["name"] for port in head["ports"]}
