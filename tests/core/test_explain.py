import copy
import io
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from btray.config import ImageConfig, ModelConfig
from btray.core.bundle import Bundle, load_bundle
from btray.core.ensemble import Ensemble
from btray.core.explain import (
    DeletionCurve,
    chance_map,
    deletion_curve,
    explain,
    grad_cam,
    overlay,
    pointing_chance,
    pointing_hit,
    prepared_mask,
)
from btray.core.images import ImageError, encode_png
from btray.core.labels import CLASS_NAMES
from btray.core.predictor import Predictor
from btray.core.prepare import prepare
from btray.core.reference import reference_bundle
from btray.core.tensors import normalise, to_unit
from btray.core.weights import classifier_names
from btray.core.zoo import create_model
from btray.data.sources.phantom import phantom_patient
from btray.errors import UserError

NETWORKS = ["btray_cnn", "resnet18", "tf_efficientnet_lite0", "vgg11_bn", "mobilenetv3_small_050"]


def picture(seed, size=(64, 64)):
    """A disc brighter than its noisy background, at another place for every seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    middle = rng.uniform(0.3, 0.7, 2) * size
    disc = np.hypot(rows - middle[0], columns - middle[1]) < 0.2 * min(size)
    return (rng.integers(20, 90, size) + 130 * disc).astype(np.uint8)


def predictor_of(bundle, network, views=1, size=64):
    """A predictor with a bundle's card, but for the size and views, and another network."""
    model = bundle.card.model.model_copy(update={"views": views})
    card = bundle.card.model_copy(update={"model": model, "image": ImageConfig(size=size)})
    predictor = Predictor(Bundle(bundle.uri, card, bundle.weights), "cpu")
    predictor.network = network.eval()
    return predictor


def untrained(name, seed=0, size=64):
    torch.manual_seed(seed)
    if name.startswith("vgg"):  # with a classifier that does not take seconds to draw
        return timm.create_model(name, num_classes=len(CLASS_NAMES), in_chans=1, mlp_ratio=0.01)
    return create_model(ModelConfig(name=name), len(CLASS_NAMES), size)


@pytest.fixture(scope="module")
def compact(tiny_bundle):
    return predictor_of(tiny_bundle, untrained("btray_cnn"))


def raw_map(network, square, image, target):
    """Grad-CAM by hand, of networks whose last feature map is `forward_features`'s."""
    pixels = normalise(to_unit(torch.from_numpy(square[None].copy())), image)
    features = network.forward_features(pixels)
    head = getattr(network, "forward_head", lambda maps: network.head(maps.mean(dim=(2, 3))))
    (gradient,) = torch.autograd.grad(head(features)[0, target], features)
    combined = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True)
    size = square.shape
    enlarged = functional.interpolate(combined.relu().detach(), size, mode="bilinear")
    return enlarged[0, 0].numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_grad_cam_of_the_last_feature_map(tiny_bundle, name):
    predictor = predictor_of(tiny_bundle, untrained(name))
    square = picture(0)
    for target in (0, 3):
        expected = raw_map(predictor.network, square, predictor.bundle.card.image, target)
        heat = grad_cam(predictor, square, CLASS_NAMES[target])
        assert (heat.shape, heat.dtype) == (square.shape, np.float32)
        assert heat == pytest.approx(expected / (expected.max() or 1), abs=1e-4)


def test_two_views_are_averaged_before_they_are_scaled(tiny_bundle):
    network, square = untrained("btray_cnn"), picture(1)
    image = tiny_bundle.card.image
    there = raw_map(network.eval(), square, image, 2)
    back = raw_map(network, square[:, ::-1], image, 2)[:, ::-1]
    mean = (there + back) / 2
    heat = grad_cam(predictor_of(tiny_bundle, network, views=2), square, CLASS_NAMES[2])
    assert heat == pytest.approx(mean / mean.max(), abs=1e-4)
    assert np.abs(there - back).max() > 0.01 * mean.max()


def test_with_two_views_a_mirrored_image_has_the_mirrored_map(tiny_bundle):
    predictor = predictor_of(tiny_bundle, untrained("resnet18"), views=2)
    square = picture(2)
    heat = grad_cam(predictor, square, "glioma")
    mirrored = grad_cam(predictor, square[:, ::-1].copy(), "glioma")
    assert mirrored[:, ::-1] == pytest.approx(heat, abs=1e-4)


def test_an_ensemble_is_explained_by_the_weighted_mean_of_its_members(tiny_bundle):
    members = [untrained("btray_cnn"), untrained("resnet18", seed=1)]
    square, weights, views = picture(3), (0.3, 0.7), (1, 2)
    own = [
        weight * grad_cam(predictor_of(tiny_bundle, member, seen), square, "meningioma")
        for member, weight, seen in zip(members, weights, views, strict=True)
    ]
    together = predictor_of(tiny_bundle, Ensemble(members, weights, views))
    heat = grad_cam(together, square, "meningioma")
    assert heat == pytest.approx(sum(own) / sum(own).max(), abs=1e-5)


def test_the_answer_is_explained_unless_a_class_is_named(compact):
    data = encode_png(picture(4))
    (answer,) = compact.predict([data])
    for name in (None, *CLASS_NAMES):
        told = explain(compact, data, name)
        assert told.class_name == (name or answer.class_name)
        assert told.probability == answer.probabilities[told.class_name]
        assert told.prediction == answer
        assert (told.square == compact.prepare(data)).all()
        assert (told.heat == grad_cam(compact, told.square, told.class_name)).all()
        assert told.heat.min() >= 0
        assert told.heat.max() == (0 if told.empty else 1)
    assert not explain(compact, data).empty


def test_an_image_that_is_none(compact):
    with pytest.raises(ImageError, match="not an image"):
        explain(compact, b"no image")


def test_a_class_the_bundle_does_not_know(compact):
    with pytest.raises(UserError, match=r"'tumour'; this bundle has glioma, mening.*, pituitary"):
        explain(compact, encode_png(picture(0)), "tumour")


def test_a_transformer_has_no_feature_map(tiny_bundle):
    network = untrained("test_vit")
    with pytest.raises(UserError, match="VisionTransformer ends in no feature map"):
        grad_cam(predictor_of(tiny_bundle, network), picture(0), "glioma")


def test_maps_with_channels_last_are_not_taken_for_others(tiny_bundle):
    network = untrained("btray_cnn")
    network.output_fmt = "NHWC"  # as timm marks Swin transformers
    with pytest.raises(UserError, match="ends in no feature map"):
        grad_cam(predictor_of(tiny_bundle, network), picture(0), "glioma")


def test_the_network_is_left_as_it_was(compact):
    before = copy.deepcopy(compact.network.state_dict())
    grad_cam(compact, picture(5), "glioma")
    assert all(torch.equal(before[k], v) for k, v in compact.network.state_dict().items())
    for parameter in compact.network.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    for module in compact.network.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(compact, mode):
    expected = grad_cam(compact, picture(6), "glioma")
    with mode():
        assert (grad_cam(compact, picture(6), "glioma") == expected).all()


def test_it_works_on_frozen_weights(tiny_bundle, compact):
    frozen = copy.deepcopy(compact.network).requires_grad_(False)
    heat = grad_cam(predictor_of(tiny_bundle, frozen), picture(6), "glioma")
    assert (heat == grad_cam(compact, picture(6), "glioma")).all()


def test_threads_do_not_disturb_each_other_nor_predictions(compact):
    images = [encode_png(picture(seed)) for seed in range(6)]
    alone = [(explain(compact, data).heat, compact.predict([data])[0]) for data in images]

    def both(data):
        return explain(compact, data).heat, compact.predict([data])[0]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(both, images * 3))
    for (heat, answer), (expected, known) in zip(together, alone * 3, strict=True):
        assert heat == pytest.approx(expected, abs=1e-5)
        assert answer.probabilities == pytest.approx(known.probabilities, abs=1e-5)


def test_a_class_nothing_speaks_for_has_an_empty_map(tiny_bundle):
    network = untrained("btray_cnn")
    nn.init.zeros_(network.head.weight)
    told = explain(predictor_of(tiny_bundle, network), encode_png(picture(0)))
    assert told.empty
    pixels = np.asarray(Image.open(io.BytesIO(overlay(told))))
    assert (pixels == told.square[..., None]).all()


def test_the_overlay_is_grey_where_it_is_cold_and_coloured_where_it_is_hot(compact):
    told = explain(compact, encode_png(picture(7)), "glioma")
    heat = np.zeros_like(told.heat)
    heat[10, 20] = 1
    image = Image.open(io.BytesIO(overlay(replace(told, heat=heat))))
    assert image.format == "PNG"
    assert image.text["Title"] == f"Grad-CAM, glioma {told.probability:.4f}"
    assert "Research use only" in image.text["Disclaimer"]
    pixels = np.asarray(image)
    cold = np.ones(heat.shape, bool)
    cold[10, 20] = False
    assert (pixels[cold] == told.square[cold][:, None]).all()
    red, _, blue = pixels[10, 20].astype(int) - told.square[10, 20] * 0.4
    assert (red, blue) == pytest.approx((0.6 * 252, 0.6 * 164), abs=2)  # inferno's last colour


@pytest.mark.parametrize("crop", ["none", "head"])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_a_mask_is_prepared_as_its_image_is(crop, fit):
    pixels = np.zeros((90, 140), np.uint8)
    pixels[20:80, 30:120] = np.random.default_rng(0).integers(60, 120, (60, 90))
    mask = np.zeros(pixels.shape, bool)
    mask[30:60, 40:80] = True
    pixels[mask] = 250
    config = ImageConfig(size=64, crop=crop, fit=fit)
    there = prepare(encode_png(pixels), config) > 185
    own = prepared_mask(mask, pixels, config)
    assert own.shape == (64, 64)
    assert (own & there).sum() > 0.95 * (own | there).sum()


def spot(row, column, size=200):
    heat = np.zeros((size, size), np.float32)
    heat[row, column] = 1
    return heat


@pytest.mark.parametrize(
    ("row", "column", "hit"), [(100, 100, True), (100, 115, True), (100, 116, False)]
)
def test_a_peak_hits_the_mask_and_three_hundredths_around_it(row, column, hit):
    mask = np.zeros((200, 200), bool)
    mask[95:106, 90:110] = True
    assert pointing_hit(spot(row, column), mask) is hit


def test_an_empty_map_and_an_empty_mask_miss():
    mask = np.ones((20, 20), bool)
    assert not pointing_hit(np.zeros((20, 20), np.float32), mask)
    assert not pointing_hit(spot(3, 3, 20), ~mask)


def test_chance_is_the_share_of_the_heads_pixels_that_hit():
    mask, head = np.zeros((2, 40, 40), bool)
    mask[18:24, 5:20] = True
    head[10:30, 10:35] = True
    places = np.argwhere(head)
    hits = [pointing_hit(spot(row, column, 40), mask) for row, column in places]
    assert pointing_chance(mask, head) == pytest.approx(np.mean(hits))
    assert pointing_chance(mask, ~(head | ~head)) is None


class LooksAt(nn.Module):
    """Says glioma the more, the brighter the pixels of a box are."""

    def __init__(self, box):
        super().__init__()
        self.box = box

    def forward(self, images):
        score = images[:, 0, *self.box].mean(dim=(1, 2))
        return torch.stack([score, *[torch.zeros_like(score)] * 3], dim=1)


@pytest.fixture
def looking(tiny_bundle):
    """A predictor that looks at a bright box in a dim head; the square, and the true map."""
    square = np.zeros((64, 64), np.uint8)
    square[8:56, 8:56] = np.random.default_rng(0).integers(60, 70, (48, 48))
    box = (slice(20, 30), slice(36, 46))
    square[box] = 220
    heat = np.zeros((64, 64), np.float32)
    heat[box] = 1
    return predictor_of(tiny_bundle, LooksAt(box)), square, heat


def test_deletion_goes_from_the_image_to_one_without_the_head(looking):
    predictor, square, heat = looking
    before = square.copy()
    curve = deletion_curve(predictor, square, heat, steps=8)
    assert (square == before).all()
    assert curve.removed.tolist() == pytest.approx([step / 8 for step in range(9)])
    (answer,) = predictor.predict([encode_png(square)])
    assert answer.class_name == "glioma"
    assert curve.probability[0] == pytest.approx(answer.probabilities["glioma"], abs=1e-6)
    assert (np.diff(curve.probability) <= 1e-6).all()
    assert curve.probability[-1] < curve.probability[0] - 0.1


def test_the_true_map_is_deleted_sooner_than_chance_and_that_sooner_than_its_opposite(looking):
    predictor, square, heat = looking
    best = deletion_curve(predictor, square, heat).auc
    chance = [deletion_curve(predictor, square, chance_map(64, seed)).auc for seed in range(5)]
    worst = deletion_curve(predictor, square, 1 - heat).auc
    assert best < min(chance) <= max(chance) < worst


def test_another_class_can_be_followed(looking):
    predictor, square, heat = looking
    curve = deletion_curve(predictor, square, heat, "pituitary", steps=4)
    assert curve.probability[0] < curve.probability[-1]


def test_the_background_is_not_deleted(looking):
    predictor, square, _ = looking
    outside = spot(0, 0, 64)
    nothing = np.zeros_like(outside)
    same = deletion_curve(predictor, square, outside).probability
    assert (same == deletion_curve(predictor, square, nothing).probability).all()


def test_area_by_hand():
    assert DeletionCurve(np.array([0, 0.5, 1]), np.array([1, 0.5, 0.2])).auc == pytest.approx(0.55)


def test_chance_maps_differ_and_come_again():
    one, two, again = (chance_map(50, seed) for seed in (1, 2, 1))
    assert (one == again).all()
    assert not (one == two).any()
    assert one.shape == (50, 50)
    assert 0 <= one.min() < one.max() <= 1
    # As smooth as what is enlarged from a few cells: neighbours are nearly alike.
    assert np.abs(np.diff(one)).max() < 0.2


# Sanity checks (Adebayo et al. 2018) on the shipped bundle: a map that does not change when
# the network forgets what it has learned says nothing about what it has learned.

FORGOTTEN = 0.6
"""Largest mean rank correlation with the map of a network whose weights are shuffled."""


@pytest.fixture(scope="module")
def reference():
    return Predictor(load_bundle(reference_bundle()), "cpu")


@pytest.fixture(scope="module")
def phantoms(reference):
    """Prepared phantoms, one of every class, with the answers and their maps."""
    patients = (phantom_patient(index, 0, 1)[0] for index in range(4))
    return explained(reference, [encode_png(one.image) for one in patients])


@pytest.fixture(scope="module")
def slices(reference, real_slices):
    """Prepared real slices, one of every class, with the answers and their maps."""
    pick = random.Random(0)
    folders = [sorted((real_slices / "Training" / name).iterdir()) for name in CLASS_NAMES]
    return explained(reference, [pick.choice(folder).read_bytes() for folder in folders])


def explained(predictor, images):
    told = [explain(predictor, data) for data in images]
    return [(one.square, one.class_name, one.heat) for one in told]


def shuffled(predictor, part, seed):
    """The predictor with the values of each tensor in a random order, which keeps their scale."""
    other = copy.copy(predictor)
    other.network = copy.deepcopy(predictor.network)
    names = set(classifier_names(predictor.network))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in other.network.named_parameters():
            if part == "everything" or name in names:
                order = torch.randperm(tensor.numel(), generator=generator)
                tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return other


def likeness(one, other):
    """Rank correlation; an empty map is like none."""
    return spearmanr(one.ravel(), other.ravel()).statistic if one.any() and other.any() else 0.0


def likeness_after(predictor, part, examples):
    """Mean over examples and shuffles of a part of the weights."""
    found = []
    for seed in range(2):
        forgetful = shuffled(predictor, part, seed)
        found += [
            likeness(heat, grad_cam(forgetful, square, name)) for square, name, heat in examples
        ]
    return np.mean(found)


PARTS = ["classifier", "everything"]


@pytest.mark.parametrize("part", PARTS)
def test_maps_of_phantoms_change_with_the_weights(reference, phantoms, part):
    assert likeness_after(reference, part, phantoms) < FORGOTTEN


@pytest.mark.parametrize("part", PARTS)
def test_maps_of_real_slices_change_with_the_weights(reference, slices, part):
    assert likeness_after(reference, part, slices) < FORGOTTEN


def test_the_same_weights_have_the_same_map(reference, phantoms):
    again = Predictor(load_bundle(reference_bundle()), "cpu")
    for square, name, heat in phantoms:
        assert (grad_cam(again, square, name) == heat).all()


def test_classes_have_maps_of_their_own(reference, phantoms):
    found = []
    for square, name, heat in phantoms:
        other = CLASS_NAMES[CLASS_NAMES.index(name) - 1]
        found.append(likeness(heat, grad_cam(reference, square, other)))
    assert np.mean(found) < 0.8


def test_deletion_by_the_map_beats_chance_on_real_tumours(reference, real_slices):
    pick, gains = random.Random(0), []
    for name in ("glioma", "meningioma", "pituitary"):
        for file in pick.sample(sorted((real_slices / "Training" / name).iterdir()), 2):
            square = reference.prepare(file.read_bytes())
            heat = grad_cam(reference, square, name)
            own, chance = (
                deletion_curve(reference, square, which, name, steps=5).auc
                for which in (heat, chance_map(len(square), len(gains)))
            )
            gains.append(chance - own)
    assert np.mean(gains) > 0
