"""The teacher of a distillation: a bundle that answers beside the network that learns."""

import torch
from torch import Tensor
from torch.nn import functional

from btray.config import ImageConfig
from btray.core.bundle import Bundle, load_bundle
from btray.core.loop import Precision, mean_of_views
from btray.errors import UserError


def load_teacher(
    uri: str, image: ImageConfig, class_names: tuple[str, ...], data_hash: str
) -> Bundle:
    """Open the teacher of a run and check that what it answers is about the same.

    Raises:
        UserError: no bundle; one of other classes, of images prepared in another way (but for
            their size), or trained on another data set.

    """
    bundle = load_bundle(uri)
    card = bundle.card
    if card.class_names != class_names:
        raise UserError(
            f"train.teacher: {uri} knows {', '.join(card.class_names)}; the data set has "
            f"{', '.join(class_names)}"
        )
    for name in ImageConfig.model_fields:
        own, theirs = getattr(image, name), getattr(card.image, name)
        if name != "size" and own != theirs:
            raise UserError(
                f"train.teacher: {uri} sees images with image.{name}={theirs}, this run has "
                f"{own}; make them the same"
            )
    if card.provenance.data_hash != data_hash:
        raise UserError(
            f"train.teacher: {uri} was trained on another data set or other splits: what is test "
            "here may have been trained on there; train the teacher on this data set"
        )
    return bundle


class Teacher:
    """A bundle's network on a training worker's device; it answers and never learns."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: Precision) -> None:
        self.size = bundle.card.image.size
        self.views = bundle.card.model.views
        self.precision = precision
        self.network = bundle.network(device).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes] of a training batch [batch, 1, size, size].

        They are of the very images the student sees, augmented and mixed, and over as many
        views as the teacher answers with. Another size is resized, with anti-aliasing.
        """
        if images.shape[-1] != self.size:
            images = functional.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        with self.precision.autocast():
            return mean_of_views(self.network, images, self.views)
