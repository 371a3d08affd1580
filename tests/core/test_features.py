import functools
import threading

import pytest
import timm
import torch
from torch import nn

from btray.config import ModelConfig
from btray.core.ensemble import Ensemble
from btray.core.features import classifier_of, feature_count, predict_with_features, tamed
from btray.core.loop import Precision, predict_logits
from btray.core.zoo import create_model

PRECISION = Precision.choose("float32", torch.device("cpu"))
NETWORKS = {  # what the classifier is given, and the channels of the stage before the last
    "btray_cnn": (192, 128),
    "resnet10t": (512, 256),
    "mobilenetv3_small_100": (1024, 48),
    "tf_efficientnet_lite0": (1280, 112),
    "vit_tiny_patch16_224": (192, 192),
    "swin_tiny_patch4_window7_224": (768, 384),  # its channels are last
    "resnetv2_18": (512, 256),  # its classifier is a convolution
}


def images(count=3, size=64, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def network(name="btray_cnn", size=64):
    torch.manual_seed(0)
    return create_model(ModelConfig(name=name), 4, size).eval()


def hooks(model):
    layers = list(model.modules())
    return sum(len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_classifier_makes_the_logits_of_and_an_earlier_stage(name):
    model, (width, channels) = network(name), NETWORKS[name]
    logits, features = predict_with_features(model, [images()], PRECISION)
    assert (features.dtype, features.shape) == (torch.float32, (3, width + channels))
    assert feature_count(model) == width + channels
    assert features[:, :width].norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    assert features[:, width:].norm(dim=1).numpy() == pytest.approx(0.4, abs=1e-5)
    layer = classifier_of(model)
    last = features[:, :width].sign() * features[:, :width].abs() ** 4  # but for its length
    rest = logits - layer.bias.detach()
    again = last @ layer.weight.detach().flatten(1).T
    assert torch.cosine_similarity(again, rest).min() > 0.999


@pytest.mark.parametrize("views", [1, 2])
def test_the_earlier_stage_is_the_one_before_the_last(views):
    model, rows = network(), images()
    _, features = predict_with_features(model, [rows], PRECISION, views)
    sides = [rows, rows.flip(-1)][:views]
    with torch.no_grad():
        maps = torch.stack([model.blocks[:3](model.stem(side)) for side in sides])
    expected = 0.4 * tamed(maps.mean(dim=(0, 3, 4)))
    assert features[:, 192:].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_a_plain_prediction(name):
    batches = [images(2), images(1, seed=1)]
    logits, _ = predict_with_features(network(name), batches, PRECISION, 2)
    assert torch.equal(logits, predict_logits(network(name), batches, PRECISION, 2))


def test_rows_of_all_batches_are_kept_in_their_order():
    model, rows = network(), images(5)
    _, together = predict_with_features(model, [rows], PRECISION)
    _, apart = predict_with_features(model, rows.split(2), PRECISION)
    assert apart.numpy() == pytest.approx(together.numpy(), abs=1e-5)


def test_two_views_are_an_image_and_its_mirror_image():
    model, rows = network(), images()
    _, mean = predict_with_features(model, [rows], PRECISION, 2)
    _, mirrored = predict_with_features(model, [rows.flip(-1)], PRECISION, 2)
    _, one = predict_with_features(model, [rows], PRECISION, 1)
    assert mirrored.numpy() == pytest.approx(mean.numpy(), abs=1e-6)
    assert not torch.allclose(one, mean, atol=1e-6)


def test_maps_are_averaged_over_places():
    class Dense(nn.Module):
        """A classifier at every place, then the mean."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 4)

        def forward(self, rows):
            return self.head(rows.permute(0, 2, 3, 1)).mean(dim=(1, 2))

    class Two(Dense):
        """The same of an image and its negative."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 4)

        def forward(self, rows):
            return super().forward(torch.cat([rows, 1 - rows], dim=1))

    rows = images()
    assert predict_with_features(Dense(), [rows], PRECISION)[1].tolist() == [[1.0]] * 3
    _, features = predict_with_features(Two(), [rows], PRECISION)
    means = rows.mean(dim=(2, 3))
    expected = tamed(torch.cat([means, 1 - means], dim=1))
    assert features.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("views", [1, 2])
def test_bfloat16_is_read_as_float32(views):
    precision = Precision.choose("bfloat16", torch.device("cpu"))
    _, features = predict_with_features(network(), [images()], precision, views)
    assert features.dtype == torch.float32


def test_networks_without_one_classifier_have_logits_alone():
    model = network()
    without = timm.create_model("resnet10t", num_classes=0, in_chans=1).eval()
    for odd in (Ensemble([model, model], [0.5, 0.5], [1, 1]), without):
        logits, features = predict_with_features(odd, [images()], PRECISION)
        assert features is None
        assert len(logits) == 3


def test_no_batches_have_no_features():
    logits, features = predict_with_features(network(), [], PRECISION)
    assert (logits.numel(), features) == (0, None)


def test_a_network_is_left_as_it_was():
    model = network()
    predict_with_features(model, [images()], PRECISION)
    assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        predict_with_features(model, [torch.zeros(1, 7, 64, 64)], PRECISION)
    assert hooks(model) == 0


def test_two_threads_may_use_one_network():
    model, mine = network(), images(4)
    expected = predict_with_features(model, [mine], PRECISION, 2)[1]

    def batches(rows, others):
        yield rows
        others.wait(10)  # both threads have their hook on the network now
        yield rows

    meeting, found = threading.Barrier(2), {}

    def run(seed):
        rows = mine if seed == 0 else images(4, seed=seed)
        found[seed] = predict_with_features(model, batches(rows, meeting), PRECISION, 2)[1]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found[seed]) for seed in (0, 1)] == [8, 8]
    for half in found[0].split(4):
        assert half.numpy() == pytest.approx(expected.numpy(), abs=1e-6)
