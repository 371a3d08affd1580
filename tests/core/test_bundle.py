import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from btray.core import bundle as bundle_module
from btray.core.bundle import load_bundle, save_bundle
from btray.core.card import card_hash
from btray.core.layout import CARD, WEIGHTS
from btray.errors import UserError


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """The tiny bundle's folder, to be altered."""
    return Path(shutil.copytree(tiny_bundle.uri, tmp_path / "bundle"))


def read_card(folder):
    return json.loads((folder / CARD).read_text())


def write_card(folder, fields):
    """Write a card whose hashes are right, whatever else is wrong with it."""
    fields["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    fields["card_sha256"] = card_hash(fields)
    (folder / CARD).write_text(json.dumps(fields))


def refusal(action):
    """Return the one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip(make_bundle, tmp_path):
    saved = make_bundle(tmp_path / "deep" / "bundle", name="mine")
    opened = load_bundle(str(tmp_path / "deep" / "bundle"))
    assert opened.card == saved.card
    assert opened.card.name == "mine"
    assert opened.version == saved.version == opened.card.card_sha256[:12]
    weights = load_file(tmp_path / "deep" / "bundle" / WEIGHTS)
    assert opened.weights.keys() == weights.keys()
    assert all(torch.equal(opened.weights[name], weights[name]) for name in weights)


def test_only_the_two_files_are_there(tiny_bundle):
    assert sorted(path.name for path in Path(tiny_bundle.uri).iterdir()) == [CARD, WEIGHTS]


def test_the_same_content_is_the_same_version(make_bundle, tmp_path):
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    other = make_bundle(tmp_path / "c", name="other")
    assert first.version == second.version != other.version


def test_names_beyond_ascii(make_bundle, tmp_path):
    names = ("Gliom", "Größe", "腫瘍")
    make_bundle(tmp_path / "büro bundle", class_names=names)
    assert load_bundle(str(tmp_path / "büro bundle")).card.class_names == names


def test_the_network_has_the_weights_and_is_in_evaluation_mode(tiny_bundle):
    network = tiny_bundle.network()
    assert not any(module.training for module in network.modules())
    state = network.state_dict()
    assert all(torch.equal(state[name], tiny_bundle.weights[name]) for name in state)


def test_a_run_stands_for_its_bundle(make_bundle, tmp_path):
    saved = make_bundle(tmp_path / "run" / "bundle")
    assert load_bundle(str(tmp_path / "run")).version == saved.version


def test_a_uri_stands_for_its_folder(copy, tiny_bundle):
    assert load_bundle(copy.as_uri()).version == tiny_bundle.version


@pytest.mark.parametrize("place", ["", "missing", "file", "file/below"])
def test_where_there_is_no_bundle(tmp_path, place):
    (tmp_path / "file").touch()
    message = refusal(lambda: load_bundle(str(tmp_path / place)))
    assert message.startswith(f"{tmp_path / place}: no bundle (no {CARD})")


def test_an_altered_byte_of_the_weights(copy):
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    assert f"{copy / WEIGHTS}: altered" in refusal(lambda: load_bundle(str(copy)))


def test_truncated_weights(copy):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-100])
    assert f"{copy / WEIGHTS}: altered" in refusal(lambda: load_bundle(str(copy)))


def test_weights_truncated_before_they_were_hashed(copy):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-100])
    write_card(copy, read_card(copy))
    assert f"{copy / WEIGHTS}: not safetensors" in refusal(lambda: load_bundle(str(copy)))


def test_missing_weights(copy):
    (copy / WEIGHTS).unlink()
    assert f"{copy / WEIGHTS}: missing" in refusal(lambda: load_bundle(str(copy)))


def test_a_pickle_is_refused_and_not_run(copy, tmp_path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    (copy / WEIGHTS).write_bytes(pickle.dumps(Harm()))
    write_card(copy, read_card(copy))
    assert "not safetensors" in refusal(lambda: load_bundle(str(copy)))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("name", "better"), ("metrics", {"val_accuracy": 1.0}), ("extra", 1)]
)
def test_an_altered_card(copy, field, value):
    (copy / CARD).write_text(json.dumps(read_card(copy) | {field: value}))
    assert f"{copy / CARD}: altered" in refusal(lambda: load_bundle(str(copy)))


def test_altered_calibration(copy):
    fields = read_card(copy)
    fields["calibration"]["ood_threshold"] += 1e-9
    (copy / CARD).write_text(json.dumps(fields))
    assert f"{copy / CARD}: altered" in refusal(lambda: load_bundle(str(copy)))


def test_the_layout_of_the_card_does_not_matter(copy, tiny_bundle):
    (copy / CARD).write_text(json.dumps(read_card(copy), sort_keys=True))
    assert load_bundle(str(copy)).card == tiny_bundle.card


@pytest.mark.parametrize("version", [4, 0, "1", None, "1\n2"])
def test_another_format(copy, version):
    write_card(copy, read_card(copy) | {"format_version": version})
    assert f"bundle of format version {version!r}" in refusal(lambda: load_bundle(str(copy)))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "1", "[]", "{}", '"text"', "[" * 100_000, b"\xff\xfe"],
    ids=["empty", "cut", "null", "number", "list", "no fields", "text", "deep", "not UTF-8"],
)
def test_a_card_that_is_none(copy, text):
    (copy / CARD).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert f"{copy / CARD}: damaged" in refusal(lambda: load_bundle(str(copy)))


def test_an_unknown_key(copy):
    write_card(copy, read_card(copy) | {"mood": "good"})
    assert f"{copy / CARD}: mood: " in refusal(lambda: load_bundle(str(copy)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("calibration.temperature", 0),
        ("calibration.temperature", float("nan")),
        ("image.size", 4),
        ("model.dropout", "much"),
        ("provenance.epoch", None),
    ],
)
def test_an_impossible_field(copy, path, value):
    fields = read_card(copy)
    section, key = path.split(".")
    fields[section][key] = value
    write_card(copy, fields)
    assert f"{copy / CARD}: {path}: " in refusal(lambda: load_bundle(str(copy)))


def test_a_single_class(copy):
    write_card(copy, read_card(copy) | {"class_names": ["glioma"]})
    assert f"{copy / CARD}: class_names: " in refusal(lambda: load_bundle(str(copy)))


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b", "c", "d", "e"]])
def test_more_or_fewer_class_names_than_the_head_has(copy, names):
    write_card(copy, read_card(copy) | {"class_names": names})
    opened = load_bundle(str(copy))
    message = refusal(opened.network)
    assert f"{copy}: the weights are not of a btray_cnn with {len(names)} classes" in message
    assert "head.bias" in message


def test_weights_of_another_network(copy):
    weights = load_file(copy / WEIGHTS)
    del weights["head.bias"]
    save_file(weights, copy / WEIGHTS)
    write_card(copy, read_card(copy))
    assert "head.bias" in refusal(load_bundle(str(copy)).network)


def test_an_architecture_this_btray_does_not_know(copy):
    fields = read_card(copy)
    fields["model"]["name"] = "resnet-of-tomorrow"
    write_card(copy, fields)
    assert "resnet-of-tomorrow" in refusal(load_bundle(str(copy)).network)


@pytest.mark.parametrize("crash_in", ["save_file", "card_hash"])
@pytest.mark.parametrize("over_an_old_one", [False, True])
def test_a_crash_while_saving_leaves_no_bundle(
    tiny_bundle, copy, tmp_path, monkeypatch, crash_in, over_an_old_one
):
    def crash(*arguments):
        raise KeyboardInterrupt

    target = copy if over_an_old_one else tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, crash_in, crash)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(target, tiny_bundle.weights, tiny_bundle.card)
    assert "no bundle" in refusal(lambda: load_bundle(str(target)))


def test_a_crash_before_the_card_has_its_name_leaves_no_bundle(tiny_bundle, tmp_path, monkeypatch):
    def crash(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(tmp_path / "new", tiny_bundle.weights, tiny_bundle.card)
    assert "no bundle" in refusal(lambda: load_bundle(str(tmp_path / "new")))
    again = save_bundle(tmp_path / "new", tiny_bundle.weights, tiny_bundle.card)
    assert again.version == tiny_bundle.version
