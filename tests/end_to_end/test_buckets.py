"""Data sets and runs in a bucket, behind a real S3 HTTP server on loopback."""

import boto3
import pytest
from moto.server import ThreadedMotoServer

from btray.config import resolve_config
from btray.core.bundle import load_bundle
from btray.data.dataset import Dataset
from btray.data.importer import run_import
from btray.data.resplit import SplitOptions, resplit
from btray.data.sources.phantom_source import PhantomSource
from btray.errors import UserError
from btray.evaluate.evaluate import evaluate_bundle
from btray.train.trainer import fit, resume

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def bucket(cluster):
    """The bucket's name and the query that leads pyarrow to the server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="archive")
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    yield lambda path: f"s3://archive/{path}{query}"
    server.stop()


@pytest.fixture(scope="module")
def stored(bucket):
    run_import(PhantomSource(160), bucket("phantom"))
    return bucket("phantom")


def test_train_and_evaluate_in_a_bucket(bucket, stored, train_options):
    places = {"data.dataset": f"'{stored}'", "run.storage": f"'{bucket('runs')}'"}
    settings = [part for part in train_options(**places) if part != "--set"]
    run = fit(resolve_config({}, settings))
    assert run.folder.uri == bucket("runs/run")
    bundle = load_bundle(bucket("runs/run"))
    assert bundle.version == run.bundle.version
    evaluation = evaluate_bundle(bundle, Dataset.open(stored), "test")
    assert evaluation.metrics["rows"] == Dataset.open(stored).count("test")
    with pytest.raises(UserError, match="finished"):
        resume(bucket("runs/run"))


def test_importing_again_changes_nothing(stored):
    assert run_import(PhantomSource(160), stored).unchanged


def test_splitting_anew_in_a_bucket_leaves_the_data_set_alone(bucket, stored):
    dataset, options = Dataset.open(stored), SplitOptions(folds=2, test=0.2)
    with pytest.raises(UserError, match="give --out"):
        resplit(dataset, None, options)
    made = resplit(dataset, bucket("folds"), options)
    assert Dataset.open(bucket("folds")).manifest == made
    assert Dataset.open(stored).manifest == dataset.manifest


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match="nobucket"):
        Dataset.open(bucket("x").replace("archive", "nobucket"))
