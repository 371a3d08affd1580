"""A bundle in torch: how it is evaluated and explained, and how it is served on a GPU."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from btray.core.answers import Engine
from btray.core.bundle import Bundle
from btray.core.card import Card
from btray.core.features import predict_with_features
from btray.core.loop import Precision
from btray.core.tensors import normalise, to_unit

_BEST_BATCHES: Final = {"cpu": 8}
_BEST_BATCH: Final = 32
"""On a GPU, whose cores a single image leaves idle."""


class Predictor(Engine):
    """A bundle's network in torch on one device."""

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device | None = None,
        precision: str = "float32",
    ) -> None:
        """Load the network.

        Args:
            bundle: The bundle.
            device: Where it computes; by default a GPU if there is one.
            precision: float32, in which bundles are evaluated; bfloat16, in which a GPU is
                faster and answers within 0.02 of those probabilities; or auto, see `Precision`.

        Raises:
            UserError: the weights do not fit the network.

        """
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle, self.device = bundle, torch.device(device or default)
        self.uri, self.card, self.detector = bundle.uri, bundle.card, bundle.detector
        self.network = bundle.network(self.device)
        self.precision = Precision.choose(precision, self.device, self.network)
        dtype = str(self.precision.dtype).removeprefix("torch.")
        self.runtime = f"torch {torch.__version__} {self.device.type} {dtype}"
        self.best_batch = _BEST_BATCHES.get(self.device.type, _BEST_BATCH)

    def logits(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits [batch, classes] of prepared images [batch, size, size]."""
        return self.outputs(squares).logits

    def compute(
        self, squares: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return logits [n, classes] and features [n, features] of squares [n, size, size]."""
        images = torch.from_numpy(squares).to(self.device)
        logits, features = network_outputs(self.network, images, self.card, self.precision)
        return logits.numpy(), None if features is None else features.numpy()


def network_outputs(
    network: nn.Module, squares: Tensor, card: Card, precision: Precision
) -> tuple[Tensor, Tensor | None]:
    """Return float32 logits and features on the CPU of uint8 squares [n, size, size].

    This is all that is computed on the way, and what an ONNX graph is made of.
    """
    batch = normalise(to_unit(squares), card.image)
    return predict_with_features(network, [batch], precision, card.model.views)
