import ctypes
import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from btray.core import engine as engine_module
from btray.core.bundle import load_bundle
from btray.core.engine import default_cache, has_cuda, open_engine
from btray.core.images import ImageError, encode_png
from btray.core.layout import GRAPH, MANIFEST
from btray.core.onnx_export import NotExportableError, export_onnx
from btray.core.predictor import Predictor
from btray.core.reference import reference_bundle
from btray.data.sources.phantom import phantom_patient
from btray.errors import UserError

ANSWER_WITHOUT_TORCH = """
import sys
from btray.core.engine import open_engine
from btray.core.images import encode_png
import numpy as np
engine = open_engine(sys.argv[1], device="cpu")
pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
(answer,) = engine.predict([encode_png(pixels)])
print(answer.class_name, engine.version)
heavy = [name for name in ("torch", "timm", "onnx", "sklearn", "ray") if name in sys.modules]
assert not heavy, heavy
"""


def pixels(seed=0, side=40):
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def squares(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def cache(tiny_bundle, tmp_path_factory):
    """A cache with the export of the tiny bundle."""
    folder = tmp_path_factory.mktemp("exports")
    open_engine(tiny_bundle.uri, device="cpu", cache=folder)
    return folder


@pytest.fixture
def no_export(monkeypatch):
    """Fail when something is exported."""

    def refuse(*arguments):
        raise AssertionError("exported again")

    monkeypatch.setattr("btray.core.onnx_export._graph", refuse)


def test_on_a_cpu_onnx_answers_as_torch_does(tiny_bundle, cache):
    engine = open_engine(tiny_bundle.uri, device="cpu", cache=cache)
    assert engine.runtime.startswith("onnxruntime")
    assert (engine.uri, engine.version) == (tiny_bundle.uri, tiny_bundle.version)
    assert engine.card == tiny_bundle.card
    images = [encode_png(pixels(seed)) for seed in range(3)]
    predictor = Predictor(tiny_bundle, "cpu")
    for found, wanted in zip(engine.predict(images), predictor.predict(images), strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
        assert found.ood_score == pytest.approx(wanted.ood_score, rel=1e-3)


def test_an_image_is_prepared_as_for_torch(tiny_bundle, cache):
    engine, data = open_engine(tiny_bundle.uri, device="cpu", cache=cache), encode_png(pixels())
    np.testing.assert_array_equal(engine.prepare(data), Predictor(tiny_bundle, "cpu").prepare(data))
    with pytest.raises(ImageError):
        engine.prepare(b"no image")


def test_an_export_is_kept(tiny_bundle, cache, no_export):
    open_engine(tiny_bundle.uri, device="cpu", cache=cache)
    assert [path.name for path in cache.iterdir()] == [tiny_bundle.version]


def test_a_run_and_a_uri_stand_for_the_bundle(tiny_bundle, cache, no_export, tmp_path):
    shutil.copytree(tiny_bundle.uri, tmp_path / "bundle")
    for uri in (tmp_path, (tmp_path / "bundle").as_uri()):
        assert open_engine(uri, device="cpu", cache=cache).version == tiny_bundle.version


@pytest.mark.parametrize("damage", ["altered", "missing", "of other code", "no manifest"])
def test_a_damaged_or_stale_export_is_made_again(tiny_bundle, cache, tmp_path, damage):
    own = shutil.copytree(cache, tmp_path / "cache")
    folder = own / tiny_bundle.version
    good = (folder / GRAPH).read_bytes()
    if damage == "altered":
        (folder / GRAPH).write_bytes(good[:-1] + b"x")
    elif damage == "missing":
        (folder / GRAPH).unlink()
    elif damage == "of other code":
        fields = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(fields | {"recipe": "0"}))
    else:
        (folder / MANIFEST).unlink()
    engine = open_engine(tiny_bundle.uri, device="cpu", cache=own)
    assert engine.answers(squares(1))
    assert (folder / GRAPH).read_bytes() == good
    assert [path.name for path in own.iterdir()] == [tiny_bundle.version]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("btray.core.onnx_export._graph", None)
        open_engine(tiny_bundle.uri, device="cpu", cache=own)


def _open(arguments):
    uri, folder = arguments
    return open_engine(uri, device="cpu", cache=Path(folder)).outputs(squares(2)).logits


def test_processes_may_export_the_same_at_once(tiny_bundle, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_open, [(tiny_bundle.uri, str(tmp_path))] * 2, chunksize=1)
    np.testing.assert_array_equal(first, second)
    assert [path.name for path in tmp_path.iterdir()] == [tiny_bundle.version]


def test_an_export_that_another_process_put_there_meanwhile_is_used(
    tiny_bundle, cache, tmp_path, monkeypatch
):
    publish = engine_module._publish

    def late(partial, folder, card):
        shutil.copytree(cache / tiny_bundle.version, folder)
        publish(partial, folder, card)

    monkeypatch.setattr(engine_module, "_publish", late)
    assert open_engine(tiny_bundle.uri, device="cpu", cache=tmp_path).answers(squares(1))
    assert [path.name for path in tmp_path.iterdir()] == [tiny_bundle.version]


def test_no_place_for_the_export_is_the_users_mistake(tiny_bundle, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        open_engine(tiny_bundle.uri, device="cpu", cache=tmp_path / "file")


def test_the_cache_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "btray" / "onnx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "btray" / "onnx"


def test_an_onnx_bundle_is_opened_as_it_is(tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    engine = open_engine(tmp_path / "onnx", cache=tmp_path / "none")
    assert (engine.uri, engine.version) == (str(tmp_path / "onnx"), tiny_bundle.version)
    assert engine.answers(squares(2))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="computed on a CPU, not on cuda"):
        open_engine(tmp_path / "onnx", device="cuda")


def test_a_damaged_onnx_bundle_is_the_users_mistake(tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    (tmp_path / "onnx" / GRAPH).write_bytes(b"")
    with pytest.raises(UserError, match="no intact ONNX bundle"):
        open_engine(tmp_path / "onnx")


def test_where_there_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match="no bundle"):
        open_engine(tmp_path)


def test_a_network_without_a_graph_is_computed_by_torch(tiny_bundle, tmp_path, monkeypatch):
    def refuse(predictor):
        raise NotExportableError("no such operation")

    monkeypatch.setattr("btray.core.onnx_export._graph", refuse)
    threads = torch.get_num_threads()
    with pytest.warns(RuntimeWarning, match="no such operation; torch answers instead"):
        engine = open_engine(tiny_bundle.uri, device="cpu", cache=tmp_path)
    torch.set_num_threads(threads)
    assert engine.runtime.startswith("torch")
    assert engine.runtime.endswith("cpu float32")
    assert engine.answers(squares(1)) == Predictor(tiny_bundle, "cpu").answers(squares(1))


def test_an_answer_that_is_no_number_is_a_fault(make_bundle, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle")
    bundle.weights["head.bias"].fill_(torch.nan)
    monkeypatch.setattr("btray.core.onnx_export._difference", lambda *arguments: (0.0, 0.0))
    export_onnx(bundle, tmp_path / "onnx")
    with pytest.raises(RuntimeError, match="the network's answer is not a number"):
        open_engine(tmp_path / "onnx").answers(squares(1))


class Driver:
    """The part of NVIDIA's driver that counts GPUs."""

    def __init__(self, error=0, count=1):
        self.error, self.count = error, count

    def cuInit(self, flags):  # noqa: N802 - the driver's name
        return self.error

    def cuDeviceGetCount(self, pointer):  # noqa: N802 - the driver's name
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.count
        return 0


@pytest.mark.parametrize(
    ("driver", "visible", "found"),
    [
        (Driver(), None, True),
        (Driver(), "0", True),
        (Driver(), "", False),
        (Driver(), "-1", False),
        (Driver(count=0), None, False),
        (Driver(error=100), None, False),
        (None, None, False),
    ],
)
def test_a_gpu_is_found_by_its_driver(monkeypatch, driver, visible, found):
    def load(name):
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert has_cuda() is found


def test_a_gpu_that_torch_cannot_use_leaves_the_cpu(tiny_bundle, cache, monkeypatch):
    monkeypatch.setattr(engine_module, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_engine(tiny_bundle.uri, cache=cache).runtime.endswith("CPU")
    with pytest.raises(UserError, match="torch finds no GPU here"):
        open_engine(tiny_bundle.uri, device="cuda", cache=cache)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_answers_nearly_as_a_cpu_does(tiny_bundle):
    engine = open_engine(tiny_bundle.uri)
    assert engine.runtime.startswith("torch")
    assert engine.best_batch == 32
    images = squares(32)
    for found, wanted in zip(
        engine.answers(images), Predictor(tiny_bundle, "cpu").answers(images), strict=True
    ):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=0.02)


def test_answering_loads_no_torch(tiny_bundle, cache, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    shutil.copytree(cache, tmp_path / "btray" / "onnx")
    for uri in (tiny_bundle.uri, tmp_path / "onnx"):
        done = subprocess.run(
            [sys.executable, "-c", ANSWER_WITHOUT_TORCH, str(uri)],
            capture_output=True,
            text=True,
            env={"XDG_CACHE_HOME": str(tmp_path), "PATH": ""},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split()[1] == tiny_bundle.version


def test_the_shipped_bundle_answers_as_in_torch():
    images = [encode_png(one.image) for index in range(4) for one in phantom_patient(index, 0, 1)]
    engine = open_engine(reference_bundle(), device="cpu")
    predictor = Predictor(load_bundle(reference_bundle()), "cpu")
    for found, wanted in zip(engine.predict(images), predictor.predict(images), strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
        assert found.ood_score == pytest.approx(wanted.ood_score, rel=1e-3)
        assert found.class_name == wanted.class_name
