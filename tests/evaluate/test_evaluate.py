import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from btray.core.bundle import save_bundle
from btray.core.predictor import Predictor
from btray.data.decoding import _decode_table
from btray.errors import UserError
from btray.evaluate import evaluate
from btray.evaluate.evaluate import BATCH, evaluate_bundle, most_processes, score
from btray.evaluate.report import write_report


@pytest.fixture(scope="module")
def evaluation(cluster, bundle, dataset):
    return evaluate_bundle(bundle, dataset, "test")


@pytest.fixture
def here(monkeypatch):
    """Score in this process, without Ray; a number appended to the list cuts the rows there."""
    cut = []

    def scored(bundle, dataset, split, features):
        rows = dataset.table(["image", "label", "split", "sha256"], split)
        decoded = _decode_table(rows, bundle.card.image)
        yield score(decoded.slice(0, decoded.num_rows + sum(cut)), bundle, features)

    monkeypatch.setattr(evaluate, "_scored", scored)
    monkeypatch.setattr(evaluate.cluster, "connect", lambda: None)
    return cut


def reversed_bundle(bundle, folder):
    """The same network with its classes the other way round."""
    weights = dict(bundle.weights)
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    names = bundle.card.class_names[::-1]
    return save_bundle(folder, weights, bundle.card.model_copy(update={"class_names": names}))


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (127, 1), (256, 2), (984, 7)])
def test_a_further_process_is_worth_some_hundred_rows(rows, most):
    class Counted:
        def count(self, split):
            return rows if split == "test" else 0

    assert most_processes(Counted(), "test") == most


@pytest.mark.cluster
def test_every_row_is_scored_once(evaluation, dataset):
    rows = dataset.table(["sha256", "label"], "test").to_pylist()
    assert len(rows) > BATCH
    assert Counter(evaluation.sha256) == Counter(row["sha256"] for row in rows)
    assert evaluation.metrics["rows"] == len(rows) == dataset.count("test")
    counts = np.array(evaluation.metrics["confusion_matrix"]["counts"])
    assert counts.sum() == len(rows)


@pytest.mark.cluster
def test_every_row_keeps_its_label(evaluation, dataset):
    stored = dataset.table(["sha256", "label"], "test").to_pydict()
    truth = dict(zip(stored["sha256"], stored["label"], strict=True))
    names = [evaluation.class_names[label] for label in evaluation.labels]
    assert names == [truth[sha] for sha in evaluation.sha256]


@pytest.mark.cluster
def test_what_is_evaluated_is_what_is_served(evaluation, bundle, dataset):
    images = dataset.images("sha256", evaluation.sha256)
    predictor = Predictor(bundle, "cpu")
    served = predictor.predict([images[sha] for sha in evaluation.sha256])
    probabilities = np.array([list(answer.probabilities.values()) for answer in served])
    assert evaluation.probabilities == pytest.approx(probabilities, abs=1e-6)
    squares = np.stack([predictor.prepare(images[sha]) for sha in evaluation.sha256])
    assert evaluation.logits == pytest.approx(predictor.logits(squares), rel=1e-5, abs=1e-5)
    assert len(np.unique(evaluation.logits.round(3), axis=0)) > BATCH


@pytest.mark.cluster
def test_metrics_are_those_of_scikit_learn_on_the_predictions(
    evaluation, bundle, dataset, tmp_path
):
    write_report(evaluation, bundle, dataset, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    names = list(bundle.card.class_names)
    truth, said = rows["label"], rows["class"]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    macro = f1_score(truth, said, labels=names, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(macro, abs=1e-12)
    counts = confusion_matrix(truth, said, labels=names).tolist()
    assert metrics["confusion_matrix"] == {"class_names": names, "counts": counts}
    for name in names:
        area = roc_auc_score([label == name for label in truth], rows[f"p_{name}"])
        assert metrics["per_class"][name]["auroc"] == pytest.approx(area, abs=1e-12)


@pytest.mark.cluster
def test_a_second_run_gives_the_same_metrics(cluster, evaluation, bundle, dataset):
    told = []
    again = evaluate_bundle(bundle, dataset, "test", lambda *news: told.append(news))
    first = json.dumps(evaluation.metrics, sort_keys=True)
    assert json.dumps(again.metrics, sort_keys=True) == first
    assert again.sha256 == evaluation.sha256
    assert told[-1] == (dataset.count("test"), dataset.count("test"))


@pytest.mark.cluster
def test_classes_are_matched_by_name(here, evaluation, bundle, dataset, tmp_path):
    other = evaluate_bundle(reversed_bundle(bundle, tmp_path), dataset, "test")
    assert other.class_names == evaluation.class_names[::-1]
    assert (other.labels == 3 - evaluation.labels).all()
    assert other.metrics["accuracy"] == evaluation.metrics["accuracy"]
    for name, scores in evaluation.metrics["per_class"].items():
        assert other.metrics["per_class"][name] == pytest.approx(scores, abs=1e-12)


@pytest.mark.cluster
def test_the_metrics_say_of_what_they_are(evaluation, bundle, dataset):
    assert evaluation.metrics["split"] == "test"
    assert evaluation.metrics["model"] == {"name": "tiny", "version": bundle.version}
    assert evaluation.metrics["dataset"] == {
        "content_hash": dataset.manifest.content_hash,
        "source": dataset.manifest.source,
        "same_as_trained_on": True,
        "fold": None,
    }


@pytest.mark.parametrize("split", ["excluded", "holdout", ""])
def test_a_split_without_rows_is_refused(bundle, dataset, split):
    with pytest.raises(UserError, match=f"no rows in split '{split}'; it has test, train, val"):
        evaluate_bundle(bundle, dataset, split)


def test_a_class_the_bundle_does_not_know_is_refused(make_bundle, dataset, tmp_path):
    fewer = make_bundle(tmp_path, class_names=("glioma", "notumor", "pituitary"))
    with pytest.raises(UserError, match="not trained on: meningioma; it knows glioma, notumor"):
        evaluate_bundle(fewer, dataset, "test")


def test_a_class_without_rows_is_undefined(here, make_bundle, dataset, tmp_path):
    more = make_bundle(tmp_path, class_names=("ependymoma", *dataset.manifest.class_names))
    metrics = evaluate_bundle(more, dataset, "validation").metrics
    assert metrics["rows"] == dataset.count("validation")
    assert metrics["per_class"]["ependymoma"]["auroc"] is None
    assert metrics["macro_auroc"] is None


def test_another_data_set_than_trained_on_is_told(here, tiny_bundle, dataset):
    metrics = evaluate_bundle(tiny_bundle, dataset, "validation").metrics
    assert metrics["dataset"]["same_as_trained_on"] is False


def test_a_lost_row_is_an_error(here, bundle, dataset):
    here.append(-1)
    with pytest.raises(UserError, match=r"\(\d+ rows of \d+\)"):
        evaluate_bundle(bundle, dataset, "validation")


def test_a_block_without_rows_is_scored(bundle):
    schema = {"square": pa.binary(32 * 32), "label": pa.string(), "sha256": pa.string()}
    scored = score(pa.table({name: pa.array([], kind) for name, kind in schema.items()}), bundle)
    assert scored.num_rows == 0
    assert scored.column_names == ["sha256", "label", "logits", "strangeness", "features"]


def test_the_data_set_is_not_touched(dataset):
    names = sorted(path.name for path in Path(dataset.uri).iterdir())
    assert "manifest.json" in names
    assert not [name for name in names if name.startswith(".")]
