import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from btray.core.layout import CARD, GRAPH, MANIFEST
from btray.core.onnx_bundle import OnnxBundle, OnnxEngine, is_onnx_bundle, load_onnx_bundle
from btray.core.onnx_export import export_onnx
from btray.errors import UserError


@pytest.fixture(scope="module")
def exported(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_onnx(tiny_bundle, folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "onnx")


def squares(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


def alter(folder, **changes):
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(fields | changes))


def test_a_folder_is_one_by_its_manifest(exported, tiny_bundle):
    assert is_onnx_bundle(str(exported))
    assert not is_onnx_bundle(tiny_bundle.uri)


@pytest.mark.parametrize("name", [CARD, GRAPH, MANIFEST])
def test_a_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        load_onnx_bundle(str(copy))


def test_an_altered_graph(copy):
    data = bytearray((copy / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / GRAPH).write_bytes(data)
    with pytest.raises(UserError, match=f"{GRAPH} was altered since it was written; export it"):
        load_onnx_bundle(str(copy))


def test_a_truncated_graph(copy):
    (copy / GRAPH).write_bytes((copy / GRAPH).read_bytes()[:-1])
    with pytest.raises(UserError, match="altered"):
        load_onnx_bundle(str(copy))


def test_the_card_of_another_bundle(copy, make_bundle, tmp_path):
    other = make_bundle(tmp_path / "other", name="other")
    shutil.copy(f"{other.uri}/{CARD}", copy / CARD)
    with pytest.raises(UserError, match="the card is of another bundle"):
        load_onnx_bundle(str(copy))


@pytest.mark.parametrize(
    "changes",
    [{"onnx_format": 2}, {"mood": "good"}, {"sha256": {}}, {"sha256": {"../../secret": "0"}}],
)
def test_a_manifest_that_cannot_be(copy, changes):
    alter(copy, **changes)
    with pytest.raises(UserError, match="no intact ONNX bundle") as caught:
        load_onnx_bundle(str(copy))
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_none(copy):
    (copy / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=MANIFEST):
        load_onnx_bundle(str(copy))


def test_a_file_that_is_no_graph_though_its_hash_is_right(copy):
    (copy / GRAPH).write_bytes(b"no graph")
    alter(copy, sha256={GRAPH: hashlib.sha256(b"no graph").hexdigest()})
    with pytest.raises(UserError, match="ONNX Runtime cannot load") as caught:
        OnnxEngine(load_onnx_bundle(str(copy)), str(copy))
    assert "\n" not in str(caught.value)


def test_a_graph_needs_a_thread(exported):
    with pytest.raises(ValueError, match="0 threads"):
        OnnxEngine(load_onnx_bundle(str(exported)), "memory", threads=0)


def test_it_says_what_computes(exported):
    engine = OnnxEngine(load_onnx_bundle(str(exported)), "memory", threads=2)
    assert engine.runtime.startswith("onnxruntime 1.")
    assert engine.runtime.endswith(" CPU")
    assert 1 <= engine.best_batch <= 8


def test_answers_do_not_depend_on_threads_or_batch(exported):
    bundle: OnnxBundle = load_onnx_bundle(str(exported))
    one, two = (OnnxEngine(bundle, "memory", threads).outputs(squares(4)) for threads in (1, 2))
    np.testing.assert_allclose(two.logits, one.logits, rtol=1e-4, atol=1e-4)
    alone = [OnnxEngine(bundle, "memory").outputs(square[None]).logits[0] for square in squares(4)]
    np.testing.assert_allclose(alone, one.logits, rtol=1e-4, atol=1e-4)


def test_squares_need_not_lie_side_by_side(exported):
    engine = OnnxEngine(load_onnx_bundle(str(exported)), "memory")
    turned = squares(2).transpose(0, 2, 1)
    np.testing.assert_array_equal(
        engine.outputs(turned).logits, engine.outputs(turned.copy()).logits
    )


def test_threads_may_share_an_engine(exported):
    engine, images = OnnxEngine(load_onnx_bundle(str(exported)), "memory"), squares(40)
    alone = [engine.outputs(image[None]).logits for image in images]
    start = threading.Barrier(8)

    def ask(part):
        start.wait()
        return [engine.outputs(image[None]).logits for image in images[part::8]]

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(ask, range(8)))
    for part, found in enumerate(parts):
        np.testing.assert_array_equal(found, alone[part::8])
