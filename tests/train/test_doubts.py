import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from btray.data.dataset import Dataset
from btray.train.doubts import write_doubts
from btray.train.storage import RunFolder


@pytest.fixture
def folder(make_config):
    return RunFolder.create(make_config("doubts"))[0]


def answers_to(dataset, wrong=()):
    """Out-of-fold answers that are sure of every label, and of the next class for the wrong ones.

    The later of these are surer.
    """
    names = dataset.manifest.class_names
    rows = dataset.table(["sha256", "label"], "train")
    labels = np.array([names.index(label) for label in rows["label"].to_pylist()])
    shares = np.full((len(labels), len(names)), 0.02)
    shares[np.arange(len(labels)), labels] = 0.94
    for place, row in enumerate(wrong):
        shares[row] = 0.02 - 0.002 * place
        shares[row, (labels[row] + 1) % len(names)] = 1 - shares[row, 0] * (len(names) - 1)
    folds = pa.array(np.arange(len(labels)) % 5, pa.int16())
    return rows.append_column("fold", folds).append_column(
        "probabilities", pa.array(shares.tolist())
    )


def test_labels_that_are_probably_wrong_are_told_the_surest_first_and_drawn(folder, dataset_path):
    dataset = Dataset.open(str(dataset_path))
    answers = answers_to(dataset, wrong=(3, 41))
    assert write_doubts(dataset, answers, folder) == 2
    found = pyarrow.csv.read_csv(folder.local / "doubtful_labels.csv").to_pylist()
    rows, names = answers.to_pylist(), dataset.manifest.class_names
    for doubt, row in zip(found, (rows[41], rows[3]), strict=True):
        suggested = names[(names.index(row["label"]) + 1) % len(names)]
        assert doubt == {
            "sha256": row["sha256"],
            "fold": row["fold"],
            "label": row["label"],
            "suggested": suggested,
            "probability": row["probabilities"][names.index(row["label"])],
            "probability_suggested": row["probabilities"][names.index(suggested)],
        }
    with Image.open(folder.local / "doubtful_labels.png") as sheet:
        assert sheet.width > sheet.height


def test_where_no_label_is_doubted_there_is_a_header_and_no_picture(folder, dataset_path):
    dataset = Dataset.open(str(dataset_path))
    assert write_doubts(dataset, answers_to(dataset), folder) == 0
    (line,) = (folder.local / "doubtful_labels.csv").read_text().splitlines()
    assert line.startswith('"sha256","fold","label","suggested"')
    assert not (folder.local / "doubtful_labels.png").exists()
