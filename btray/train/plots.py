"""Learning curves as a picture."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_history(history: list[dict[str, float]]) -> bytes:
    """Draw loss and validation scores over the epochs; return a PNG."""
    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for key, title in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [row[key] for row in history], label=title, marker=".")
    for key, title in (("val_accuracy", "accuracy"), ("val_macro_f1", "macro-F1")):
        scores.plot(epochs, [row[key] for row in history], label=title, marker=".")
    losses.set(title="loss", ylabel="cross-entropy")
    scores.set(title="validation", ylabel="score")
    for axes in (losses, scores):
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def plot_folds(histories: Sequence[list[dict[str, float]]]) -> bytes:
    """Draw validation loss and macro-F1 of every fold over its epochs; return a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("val_loss", "val_macro_f1"),
        ("validation loss", "validation macro-F1"),
        strict=True,
    ):
        for fold, history in enumerate(histories):
            epochs = [row["epoch"] + 1 for row in history]
            axes.plot(epochs, [row[key] for row in history], label=f"fold {fold}", marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
