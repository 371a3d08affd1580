"""How much of the label is given away by style alone, and which style does it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

_FOLDS: Final = 5
_ITERATIONS: Final = 60
_STRONG: Final = 0.3
_WEAK: Final = 0.1


@dataclass(frozen=True)
class Shortcut:
    """How well labels are predicted without looking at the brain."""

    accuracy: float | None
    """Share of labels predicted right, of images of groups never trained on; None: too few."""
    balanced_accuracy: float | None
    """The mean of it over the classes."""
    chance: float
    """Share of the commonest label: the accuracy of always saying that."""
    features: dict[str, float]
    """What accuracy loses when a feature is shuffled among the images, largest first."""

    @property
    def gain(self) -> float:
        """Share of the way from chance to certainty, 0..1."""
        if self.accuracy is None or self.chance >= 1:
            return 0.0
        return max(0.0, (self.accuracy - self.chance) / (1 - self.chance))

    @property
    def verdict(self) -> str:
        """Say in a word how much style gives away: strong, moderate, weak, unknown."""
        if self.accuracy is None:
            return "unknown"
        return "strong" if self.strong else "moderate" if self.gain >= _WEAK else "weak"

    @property
    def strong(self) -> bool:
        """Whether a network could score well by style alone."""
        return self.gain >= _STRONG


def folds(labels: Sequence[str], groups: Sequence[str], most: int = _FOLDS) -> int:
    """Return how many folds there can be by group and stratified: `most`, fewer, or 0."""
    pairs = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    fewest = min(pairs.values(), default=0)
    return min(most, fewest) if len(pairs) > 1 and fewest > 1 else 0


def score_shortcut(
    features: NDArray[np.float32],
    names: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str],
    seed: int,
) -> Shortcut:
    """Predict labels [n] from features [n, features], cross-validated by group [n].

    Gradient-boosted trees; a feature's importance is by permutation of held-out images
    (Breiman 2001).
    """
    chance = max(Counter(labels).values(), default=0) / max(1, len(labels))
    count = folds(labels, groups)
    if not count:
        return Shortcut(None, None, chance, {})
    truth = np.asarray(labels)
    said = np.empty_like(truth)
    losses = np.zeros(len(names))
    generator = np.random.default_rng(seed)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for train, test in splitter.split(features, truth, groups):
        model = HistGradientBoostingClassifier(
            max_iter=_ITERATIONS, early_stopping=False, random_state=seed
        )
        model.fit(features[train], truth[train])
        said[test] = model.predict(features[test])
        right = np.count_nonzero(said[test] == truth[test])
        for column in range(len(names)):
            shuffled = features[test].copy()
            generator.shuffle(shuffled[:, column])
            losses[column] += right - np.count_nonzero(model.predict(shuffled) == truth[test])
    importance = {name: float(loss) for name, loss in zip(names, losses / len(truth), strict=True)}
    return Shortcut(
        accuracy=float((said == truth).mean()),
        balanced_accuracy=float(balanced_accuracy_score(truth, said)),
        chance=chance,
        features=dict(sorted(importance.items(), key=lambda pair: -pair[1])),
    )
