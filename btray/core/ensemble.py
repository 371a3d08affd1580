"""Several networks that answer as one: the mean of their probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from btray.core.loop import mean_of_views


class Ensemble(nn.Module):
    """Networks of the same classes and input; the weights of their votes add up to 1."""

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float], views: Sequence[int]
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights, self.views = tuple(weights), tuple(views)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, 1, size, size]; see `mix_logits`."""
        pairs = zip(self.members, self.views, strict=True)
        logits = [mean_of_views(member, images, views) for member, views in pairs]
        return mix_logits(torch.stack(logits), self.weights)


def mix_logits(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the logits [batch, classes] of members' logits [members, batch, classes] together.

    Their softmax is the weighted mean of the members' probabilities, and their energy the
    weighted mean of the members' energies. Probabilities, not logits, are averaged
    (Lakshminarayanan et al. 2017), so that no member outvotes the others by the mere scale of
    its logits. The ensemble is calibrated as a whole, after pooling (Rahaman & Thiery 2021).
    """
    shares = torch.tensor(weights, dtype=logits.dtype, device=logits.device).view(-1, 1, 1)
    mean = torch.logsumexp(logits.log_softmax(dim=2) + shares.log(), dim=0)
    # The logarithm of probabilities alone has energy 0, whatever the image: the score of
    # strangeness lies in what a softmax leaves out.
    energy = (torch.logsumexp(logits, dim=2, keepdim=True) * shares).sum(dim=0)
    return mean + energy
