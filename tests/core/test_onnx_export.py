import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from btray.config import ImageConfig, ModelConfig
from btray.core import onnx_export
from btray.core.bundle import joined, load_bundle, save_bundle
from btray.core.card import Member
from btray.core.layout import CARD, DETECTOR, GRAPH, MANIFEST
from btray.core.onnx_bundle import OnnxEngine, load_onnx_bundle
from btray.core.onnx_export import NotExportableError, averages, export_onnx
from btray.core.predictor import Predictor
from btray.core.strange import fit_detector
from btray.core.zoo import create_model
from btray.errors import UserError

NETWORKS = {  # side of its images, scaling, views
    "btray_cnn": (64, "zscore", 2),
    "tf_efficientnet_lite0": (64, "fixed", 2),
    "resnet18": (64, "zscore", 1),
    "mobilenetv3_small_100": (64, "fixed", 2),
    "vit_tiny_patch16_224": (64, "fixed", 1),
}


def squares(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


def state(model, size, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = create_model(model, 4, size).state_dict()
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def bundle_of(name, card, folder):
    """An untrained network with a detector."""
    size, scaling, views = NETWORKS[name]
    model = ModelConfig(name=name, views=views)
    changes = {"model": model, "image": ImageConfig(size=size, scaling=scaling)}
    changed, weights = card.model_copy(update=changes), state(model, size)
    plain = Predictor(save_bundle(folder / "plain", weights, changed), "cpu")
    detector = fit_detector(plain.compute(squares(24, size, seed=9))[1])
    return save_bundle(folder / "bundle", weights, changed, detector)


def ensemble_of(card, folder):
    weights, members = [], []
    for number, name in enumerate(("btray_cnn", "resnet10t")):
        model = ModelConfig(name=name, views=number + 1)
        weights.append(state(model, 32))
        shared = {"fold": None, "metrics": {}, "run": None, "epoch": 0, "seed": 0}
        members.append(
            Member(name=name, version=name, weight=(0.75, 0.25)[number], model=model, **shared)
        )
    changed = card.model_copy(update={"members": tuple(members)})
    return save_bundle(folder / "ensemble", joined(weights), changed)


def assert_alike(bundle, folder):
    """The ONNX bundle answers as the bundle does, whatever the size of the batch."""
    size = bundle.card.image.size
    engine = OnnxEngine(export_onnx(bundle, folder), str(folder))
    predictor = Predictor(bundle, "cpu")
    for count in (1, 5):
        images = squares(count, size, seed=count)
        found, wanted = engine.answers(images), predictor.answers(images)
        for one, other in zip(found, wanted, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
            assert one.ood_score == pytest.approx(other.ood_score, rel=1e-3)
            assert one.prediction_set == other.prediction_set
    return engine


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_torch(tiny_bundle, tmp_path, name):
    bundle = bundle_of(name, tiny_bundle.card, tmp_path)
    engine = assert_alike(bundle, tmp_path / "onnx")
    said = engine.outputs(squares(2, NETWORKS[name][0]))
    assert (said.logits.dtype, said.logits.shape) == (np.float32, (2, 4))
    assert said.features.shape == (2, len(bundle.detector.centre))
    assert engine.deciles == tuple(bundle.detector.deciles)


def test_an_ensemble_answers_as_in_torch_and_has_no_features(tiny_bundle, tmp_path):
    engine = assert_alike(ensemble_of(tiny_bundle.card, tmp_path), tmp_path / "onnx")
    assert engine.outputs(squares(1, 32)).features is None


def test_the_folder_is_whole_and_the_card_the_very_same(tiny_bundle, tmp_path):
    written = export_onnx(tiny_bundle, tmp_path / "deep" / "onnx")
    folder = tmp_path / "deep" / "onnx"
    assert sorted(path.name for path in folder.iterdir()) == [CARD, GRAPH, MANIFEST]
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]
    assert (folder / CARD).read_bytes() == Path(tiny_bundle.uri, CARD).read_bytes()
    assert load_onnx_bundle(str(folder)) == written
    assert set(json.loads((folder / MANIFEST).read_text())["sha256"]) == {GRAPH}
    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("squares", "tensor(uint8)", ["n", 32, 32])
    assert [output.name for output in session.get_outputs()] == ["logits", "features"]


def test_a_detector_goes_along(tiny_bundle, tmp_path):
    bundle = bundle_of("btray_cnn", tiny_bundle.card, tmp_path)
    export_onnx(bundle, tmp_path / "onnx")
    assert (tmp_path / "onnx" / DETECTOR).is_file()
    found = load_onnx_bundle(str(tmp_path / "onnx")).detector
    assert found.threshold == bundle.detector.threshold
    np.testing.assert_array_equal(found.components, bundle.detector.components)


def test_a_folder_in_use_is_the_users_mistake(tiny_bundle, tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(UserError, match="already there"):
        export_onnx(tiny_bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_empty_folder_is_taken(tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path)
    assert load_onnx_bundle(str(tmp_path)).card == tiny_bundle.card


def test_a_crash_leaves_nothing(tiny_bundle, tmp_path, monkeypatch):
    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_export, "write_fields", crash)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(tiny_bundle, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_answers_otherwise_is_refused(tiny_bundle, tmp_path, monkeypatch):
    graph = onnx_export._graph

    def other(predictor):
        with torch.no_grad():
            predictor.network.head.bias[0] += 1
        made = graph(predictor)
        with torch.no_grad():
            predictor.network.head.bias[0] -= 1
        return made

    monkeypatch.setattr(onnx_export, "_graph", other)
    with pytest.raises(NotExportableError, match="does not answer as the network does"):
        export_onnx(tiny_bundle, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


class Sorted(nn.Module):
    """Has an operation that ONNX lacks."""

    def forward(self, images):
        return torch.linalg.eigvals(images[:, 0]).real[:, :4]


def test_a_network_without_a_graph_is_told_in_one_line(tiny_bundle, monkeypatch, capfd):
    predictor = Predictor(tiny_bundle, "cpu")
    predictor.network = Sorted()
    with pytest.raises(NotExportableError, match="no ONNX graph can be made") as caught:
        onnx_export._graph(predictor)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""  # rows of answers may go there


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 7), (7, 2), (5, 3), (6, 3), (1, 4)])
def test_averages_are_those_of_adaptive_pooling(inputs, outputs):
    rows = torch.rand(3, 2, inputs, 4, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.adaptive_avg_pool2d(rows, (outputs, 4))
    torch.testing.assert_close(averages(inputs, outputs) @ rows, expected)


class Pooling(nn.Module):
    """Pools a map to a side that is no divisor of its own, as VGG does with small images."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, stride=3)
        self.pool = nn.AdaptiveAvgPool2d((7, 5))

    def forward(self, images):
        return self.pool(self.convolution(images)).sum(dim=(2, 3))


def test_pooling_to_any_side_is_exported(tiny_bundle):
    predictor = Predictor(tiny_bundle, "cpu")
    predictor.network = Pooling().eval()
    graph = onnx_export._graph(predictor)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = squares(3, 32)
    (logits,) = session.run(None, {"squares": images})
    np.testing.assert_allclose(logits, predictor.compute(images)[0], rtol=1e-4, atol=1e-4)


def test_an_onnx_bundle_is_no_bundle_to_train_or_evaluate(tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    with pytest.raises(UserError, match="an ONNX bundle, which only answers"):
        load_bundle(str(tmp_path / "onnx"))


def test_a_copy_elsewhere_answers(tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    copy = shutil.copytree(tmp_path / "onnx", tmp_path / "büro copy")
    assert load_onnx_bundle(copy.as_uri()).card == tiny_bundle.card
