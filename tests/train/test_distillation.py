from pathlib import Path

import pytest
import torch
from ray.train import TrainingFailedError

from btray.errors import UserError
from btray.train.trainer import TEACHER, fit, resume

SETTINGS = {
    "train.epochs": 2,
    "train.checkpoint_every": 2,
    "train.mixup": 0.4,
    "train.accumulation": 2,
    "train.distillation": 0.7,
}


@pytest.fixture(scope="module")
def teacher(cluster, config_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return fit(config_in(folder, "teacher", **{"train.epochs": 6})).bundle


def scores(history):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


@pytest.mark.cluster
def test_a_distillation_goes_on_within_an_epoch_as_if_undisturbed(
    teacher, config_in, make_config, within_killer, tmp_path
):
    settings = SETTINGS | {"train.teacher": teacher.uri}
    straight = fit(config_in(tmp_path / "straight", **settings))
    provenance = straight.bundle.card.provenance
    assert provenance.teacher == f"{teacher.card.name} {teacher.version}"
    assert straight.bundle.card.train_config["train"]["distillation"] == 0.7
    assert "teacher" not in straight.bundle.card.train_config["train"]
    config = make_config("killed", **settings)
    display = within_killer(Path(config.run.storage), epoch=1, step=2)
    run = fit(config, display)
    assert len(display.attempts) == 2
    assert scores(run.history) == scores(straight.history)
    for name, weights in straight.bundle.weights.items():
        assert torch.equal(weights, run.bundle.weights[name]), name


@pytest.mark.cluster
def test_a_student_of_another_size_and_network_learns_from_its_teacher(teacher, make_config):
    """From the teacher's answers alone, without labels."""
    settings = {"train.epochs": 6, "train.distillation": 1.0, "train.teacher": teacher.uri}
    run = fit(make_config(**settings, **{"image.size": 48, "model.dropout": 0.0}))
    assert run.bundle.card.image.size == 48
    assert max(row["val_accuracy"] for row in run.history) > 0.8


@pytest.mark.cluster
def test_a_run_is_not_resumed_with_another_teacher(teacher, make_config, killer):
    settings = {"train.teacher": teacher.uri, "train.max_failures": 0, "train.epochs": 3}
    config = make_config("failed", **settings)
    with pytest.raises(TrainingFailedError):
        fit(config, killer(epoch=1))
    folder = Path(config.run.storage) / "failed"
    (folder / TEACHER).write_text("another")
    with pytest.raises(UserError, match="is not the bundle this run began with"):
        resume(str(folder))
