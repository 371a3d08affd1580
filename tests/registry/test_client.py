import sqlite3

import pytest

from btray.errors import UserError
from btray.registry.client import experiment_id, locate, open_client


def test_the_store_is_what_was_given_or_the_environment_or_the_folder_of_runs(
    monkeypatch, tmp_path
):
    assert locate(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert locate("http://a:1/", "runs") == "http://a:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://b")
    assert locate(None, "runs") == "https://b"
    assert locate(str(tmp_path), "runs") == f"sqlite:///{tmp_path}/mlflow.db"
    assert locate("sqlite:///x.db", "runs") == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://user:hidden@host", "MLFLOW_TRACKING_PASSWORD"),
        ("s3://bucket/runs", "no place for MLflow's database"),
        ("http://[bad", "no place for MLflow's database"),
    ],
)
def test_no_stores(uri, message):
    with pytest.raises(UserError, match=message) as refused:
        locate(uri, "runs")
    assert "hidden" not in str(refused.value)


def test_troubles_of_a_database_are_one_line(tmp_path):
    path = tmp_path / "mlflow.db"
    with pytest.raises(UserError, match="no tracked runs or models there"):
        open_client(locate(str(tmp_path), ""))
    path.write_bytes(b"not SQLite at all" * 50)
    with pytest.raises(UserError, match=r"mlflow\.db: damaged"):
        open_client(locate(str(tmp_path), ""))
    path.unlink()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE t (x)")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"mlflow\.db: locked by another program"):
        open_client(locate(str(tmp_path), ""))
    holder.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        open_client(locate(str(tmp_path / "file" / "x"), ""), create=True)


def test_an_unknown_experiment_is_told_with_the_nearest(tmp_path):
    uri = locate(str(tmp_path), "")
    client = open_client(uri, create=True)
    assert experiment_id(client, uri, "tumours", create=True)
    with pytest.raises(UserError, match="no experiment 'tumour'; nearest: tumours"):
        experiment_id(client, uri, "tumour")
    client.delete_experiment(experiment_id(client, uri, "tumours"))
    with pytest.raises(UserError, match="was deleted"):
        experiment_id(client, uri, "tumours", create=True)
