"""Secrets travel as references only."""

import os

import pytest

from btray.errors import UserError
from btray.jobs.secrets import VARIABLE, parse_references, parse_variables, resolve


def test_references_name_a_file_or_a_variable_of_the_nodes():
    given = ["AWS_SECRET_ACCESS_KEY=file:/run/secrets/aws", "TOKEN=env:NODE_TOKEN"]
    assert parse_references(given) == {
        "AWS_SECRET_ACCESS_KEY": "file:/run/secrets/aws",
        "TOKEN": "env:NODE_TOKEN",
    }


@pytest.mark.parametrize("text", ["KEY=hunter2", "KEY=file:relative", "KEY=env:A B", "=env:A"])
def test_a_value_in_place_of_a_reference_is_refused_and_not_repeated(text):
    with pytest.raises(UserError, match="a value itself is never sent") as refused:
        parse_references([text])
    assert "hunter2" not in str(refused.value)


def test_a_variable_that_sounds_secret_is_refused_and_not_repeated():
    assert parse_variables(["OMP_NUM_THREADS=2", "EMPTY="]) == {"OMP_NUM_THREADS": "2", "EMPTY": ""}
    with pytest.raises(UserError, match="--secret AWS_SECRET_ACCESS_KEY=file:/path") as refused:
        parse_variables(["AWS_SECRET_ACCESS_KEY=hunter2"])
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UserError, match="NAME=value"):
        parse_variables(["alone"])


def test_a_process_looks_its_secrets_up_where_it_runs(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("from the file\n")
    monkeypatch.setenv("NODE_TOKEN", "from the node")
    monkeypatch.setenv("BTRAY_TEST_KEY", "")
    monkeypatch.setenv("BTRAY_TEST_TOKEN", "")
    monkeypatch.setenv(
        VARIABLE,
        f'{{"BTRAY_TEST_KEY": "file:{tmp_path}/key", "BTRAY_TEST_TOKEN": "env:NODE_TOKEN"}}',
    )
    resolve()
    assert os.environ["BTRAY_TEST_KEY"] == "from the file"
    assert os.environ["BTRAY_TEST_TOKEN"] == "from the node"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [("file:/nowhere/key", "No such file"), ("env:BTRAY_NOT_SET", "no such variable")],
)
def test_what_is_not_on_the_node_is_one_line(monkeypatch, reference, reason):
    monkeypatch.setenv(VARIABLE, f'{{"KEY": "{reference}"}}')
    with pytest.raises(UserError, match=f"--secret KEY={reference}: {reason}.* on this node"):
        resolve()
