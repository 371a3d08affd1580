"""Where in a slice an answer comes from: Grad-CAM, and measures of how far to believe it."""

import copy
import io
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor, nn

from btray.config import ImageConfig
from btray.core.answers import Prediction
from btray.core.calibration import calibrated
from btray.core.ensemble import Ensemble
from btray.core.head import foreground, head_box
from btray.core.images import ImageError
from btray.core.pages import NOTICE
from btray.core.predictor import Predictor
from btray.core.preprocess import resize
from btray.core.tensors import normalise, to_unit
from btray.errors import UserError

TOLERANCE: Final = 0.03
"""How far beside a mask a peak still hits, as a fraction of the image's longer side: the 15
pixels of Zhang et al. on their images of 500."""
_COLOURS: Final = "inferno"
"""Its lightness grows steadily, so it also reads without colour vision."""
_OPACITY: Final = 0.6
"""Of the hottest pixel's colour."""
_BLUR: Final = 0.05
"""Standard deviation of the blur that removes pixels, as a fraction of the side."""
_CELLS: Final = 7
"""Side of the grid a chance map is drawn on: that of the usual networks at 224 pixels."""

Heat = NDArray[np.float32]
"""How much each pixel speaks for a class [size, size], 0..1."""
Mask = NDArray[np.bool_]
"""Pixels of interest [height, width]."""


@dataclass(frozen=True)
class Explanation:
    """Where the network looked when it judged one class in one image."""

    class_name: str
    """The class that is explained."""
    probability: float
    """Calibrated probability of that class."""
    heat: Heat
    """Grad-CAM [size, size], float32, 0..1, the hottest pixel 1; aligned with `square`."""
    square: NDArray[np.uint8]
    """The prepared image [size, size]."""
    prediction: Prediction
    """The answer for the image, whichever class is explained."""

    @property
    def empty(self) -> bool:
        """True when nothing speaks for the class: the map is zero everywhere."""
        return not self.heat.any()


@dataclass(frozen=True)
class DeletionCurve:
    """A class's probability while more and more of the head is removed."""

    removed: NDArray[np.float64]
    """Fraction of the head's pixels that are removed [steps + 1], from 0 to 1."""
    probability: NDArray[np.float64]
    """Calibrated probability of the class [steps + 1]."""

    @property
    def auc(self) -> float:
        """Area under the curve, 0..1: the lower, the earlier what mattered was removed."""
        return float(np.trapezoid(self.probability, self.removed))


def explain(predictor: Predictor, data: bytes, class_name: str | None = None) -> Explanation:
    """Explain a class, by default the answer, in one encoded image.

    May be called from several threads at once, and beside predictions.

    Raises:
        ImageError: bytes that are no usable slice.
        UserError: a class the bundle does not know, or a network without feature maps.

    """
    if class_name is not None:
        _index(predictor, class_name)
    (prediction,) = predictor.predict([data])
    if isinstance(prediction, ImageError):
        raise prediction
    chosen, square = class_name or prediction.class_name, predictor.prepare(data)
    heat = grad_cam(predictor, square, chosen)
    return Explanation(chosen, prediction.probabilities[chosen], heat, square, prediction)


def grad_cam(predictor: Predictor, square: NDArray[np.uint8], class_name: str) -> Heat:
    """Return the Grad-CAM of a class's logit in a prepared image [size, size], scaled to 0..1.

    The channels of the last feature map, weighted by the mean gradient of the logit, added up
    and cut off at zero (Selvaraju et al. 2017; captum's), enlarged bilinearly. With two views it
    is the mean over the image and its mirror image, turned back; of an ensemble, the mean of the
    members' maps, each scaled to a peak of 1, by the weights of their votes. It is zero
    everywhere when nothing speaks for the class.

    The network is left as it is: hooks go on a twin that shares its tensors, and no gradient is
    kept. So other threads may use it meanwhile.

    Raises:
        UserError: a class the bundle does not know, or a network without feature maps.

    """
    card, target = predictor.bundle.card, _index(predictor, class_name)
    network = predictor.network
    members: list[tuple[nn.Module, float, int]] = [(network, 1.0, card.model.views)]
    if isinstance(network, Ensemble):
        members = list(zip(network.members, network.weights, network.views, strict=True))
    with torch.inference_mode(False), torch.enable_grad():
        image = to_unit(torch.from_numpy(square[None]).to(predictor.device))
        image = normalise(image, card.image)
        heat = torch.zeros_like(image[0, 0])
        for member, weight, views in members:
            heat += weight * _scaled(_map(_twin(member), image, target, views))
    return np.asarray(_scaled(heat).cpu().numpy())


def _index(predictor: Predictor, class_name: str) -> int:
    names = predictor.bundle.card.class_names
    if class_name not in names:
        raise UserError(f"no class is called {class_name!r}; this bundle has {', '.join(names)}")
    return names.index(class_name)


def _twin(network: nn.Module) -> nn.Module:
    """Return a copy with the very same tensors and hooks of its own, none at first."""
    tensors = chain(network.parameters(), network.buffers())
    memo: dict[int, object] = {id(tensor): tensor for tensor in tensors}
    # A prediction in another thread may be adding its hooks at this moment.
    for module in network.modules():
        memo |= {
            id(hooks): OrderedDict() for hooks in (module._forward_pre_hooks, module._forward_hooks)
        }
    return copy.deepcopy(network, memo)


def _map(network: nn.Module, image: Tensor, target: int, views: int) -> Tensor:
    """Return a network's Grad-CAM [size, size] of one normalised image [1, 1, size, size]."""
    from captum.attr import LayerAttribution, LayerGradCam  # seconds, with all of matplotlib

    layer = _last_feature_map(network, image)
    seen = torch.cat([image, image.flip(-1)][:views])
    maps: Tensor = LayerGradCam(network, layer).attribute(seen, target, relu_attributions=True)
    maps = LayerAttribution.interpolate(maps.detach(), tuple(image.shape[2:]), "bilinear")
    maps[1:] = maps[1:].flip(-1)
    return maps.mean(dim=(0, 1))


def _last_feature_map(network: nn.Module, image: Tensor) -> nn.Module:
    """Return the last layer with an output [batch, channels, height, width] of some extent.

    Raises:
        UserError: there is none, or a sequence of tokens follows on it, as in transformers.

    """
    found: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        if output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append(module)
        elif output.ndim == 3:
            found.clear()

    handles = [module.register_forward_hook(note) for module in network.modules()]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    if not found or getattr(network, "output_fmt", "NCHW") != "NCHW":
        raise UserError(
            f"{type(network).__name__} ends in no feature map, which Grad-CAM needs; "
            "explain a convolutional network"
        )
    return found[-1]


def _scaled(heat: Tensor) -> Tensor:
    """Scale to a maximum of 1, unless all is zero."""
    peak = heat.max()
    return heat / peak if peak > 0 else heat


def overlay(explanation: Explanation) -> bytes:
    """Return the heat over the grey prepared image as a PNG [size, size] in colour.

    What is explained stands in the file's text fields, not on the picture.
    """
    from matplotlib import colormaps

    colours = colormaps[_COLOURS](explanation.heat)[..., :3] * 255
    share = _OPACITY * explanation.heat[..., None]
    pixels = (1 - share) * explanation.square[..., None] + share * colours
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", f"Grad-CAM, {explanation.class_name} {explanation.probability:.4f}")
    text.add_text("Disclaimer", NOTICE)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def prepared_mask(mask: Mask, image: NDArray[np.uint8], config: ImageConfig) -> Mask:
    """Return a mask of an image, both [height, width], as it lies in the prepared square."""
    if config.crop == "head":
        mask = mask[head_box(image, config.crop_margin)]
    return resize(mask.astype(np.uint8) * 255, config) >= 128


def pointing_hit(heat: Heat, mask: Mask) -> bool:
    """Say whether the hottest pixel is in the mask, or no further from it than the tolerance.

    The pointing game (Zhang et al. 2016). A map that is zero everywhere misses.
    """
    return bool(heat.any() and _widened(mask).flat[heat.argmax()])


def pointing_chance(mask: Mask, head: Mask) -> float | None:
    """Return the share of the head's pixels that would hit; None without a head."""
    return float(_widened(mask)[head].mean()) if head.any() else None


def _widened(mask: Mask) -> Mask:
    if not mask.any():
        return mask
    return np.asarray(distance_transform_edt(~mask) <= TOLERANCE * max(mask.shape))


def deletion_curve(
    predictor: Predictor,
    square: NDArray[np.uint8],
    heat: Heat,
    class_name: str | None = None,
    steps: int = 20,
) -> DeletionCurve:
    """Remove the head's pixels from a prepared image [size, size], the hottest first.

    The deletion metric (Petsiuk et al. 2018), for the class given or else the answer. Removed
    pixels become those of a blurred image, which has no new edges. Only the head's pixels are
    removed, so that no map is better than chance by merely finding the head; compare with the
    curve of a `chance_map`. Pixels of equal heat go in the order of such a map.
    """
    head = np.flatnonzero(foreground(square))
    order = head[np.lexsort((-chance_map(len(square), 0).flat[head], -heat.flat[head]))]
    blurred = gaussian_filter(square.astype(np.float32), _BLUR * len(square))
    removed = np.linspace(0, 1, steps + 1)
    squares = np.repeat(square[None], steps + 1, axis=0)
    for altered, share in zip(squares, removed, strict=True):
        gone = order[: round(share * len(order))]
        altered.flat[gone] = np.rint(blurred).astype(np.uint8).flat[gone]
    rows = calibrated(predictor.logits(squares), predictor.bundle.card.calibration)
    column = _index(predictor, class_name) if class_name else int(rows[0].argmax())
    return DeletionCurve(removed, rows[:, column])


def chance_map(size: int, seed: int) -> Heat:
    """Return a map [size, size] that knows nothing, as smooth as a Grad-CAM, 0..1."""
    noise = np.random.default_rng(seed).random((_CELLS, _CELLS), dtype=np.float32)
    smooth = Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(smooth)
