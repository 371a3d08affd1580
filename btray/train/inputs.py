"""What a run reads, checked before anything heavy is loaded or started."""

from collections.abc import Iterable

from btray.config import Config
from btray.data.dataset import Dataset
from btray.data.folds import IN_FOLDS
from btray.errors import UserError


def open_training_data(config: Config) -> Dataset:
    """Open the data set of a run and check that it can be trained on.

    Raises:
        UserError: no data set, an empty split, or fewer rows than one batch.

    """
    if config.data.dataset is None:
        raise UserError("data.dataset is not set; name a data set, such as --data data/phantom")
    dataset = Dataset.open(config.data.dataset)
    if config.data.fold is not None:
        dataset = dataset.with_fold(config.data.fold)
    for split in ("train", "validation"):
        if not dataset.count(split):
            raise UserError(f"{dataset.uri}: the {split} split is empty; import the data again")
    if dataset.count("train") < config.data.batch_size:
        raise UserError(
            f"{dataset.uri}: {dataset.count('train')} training images are fewer than "
            f"data.batch_size={config.data.batch_size}; lower it"
        )
    return dataset


def open_folds(config: Config, folds: int) -> Dataset:
    """Open the data set of a cross-validation and check that every fold can be trained on.

    Raises:
        UserError: other folds than asked for, or none, images that belong together in two of
            them or in one and in test; else as `open_training_data`.

    """
    if config.data.fold is not None:
        raise UserError("data.fold trains on one fold; leave it out, or leave out --folds")
    dataset = open_training_data(config)
    found = dataset.manifest.split.folds
    if found != folds:
        raise UserError(
            f"{dataset.uri}: it has {found or 'no'} folds, not {folds}; make them with "
            f"`btray data split {dataset.uri} --folds {folds} --out DIR`"
        )
    rows = dataset.table(["group_id", "split", "fold"]).to_pydict()
    check_groups(dataset.uri, rows["group_id"], rows["split"], rows["fold"])
    for fold in range(folds):
        open_training_data(with_fold(config, fold))
    return dataset


def with_fold(config: Config, fold: int) -> Config:
    """Return the configuration that holds out one fold."""
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})})


def check_groups(
    place: str, groups: Iterable[str], splits: Iterable[str], folds: Iterable[int | None]
) -> None:
    """Raise UserError when a group [rows] stands in two folds [rows], or in one and in test."""
    seen: dict[str, int | str] = {}
    for group, split, fold in zip(groups, splits, folds, strict=True):
        where = fold if split in IN_FOLDS else "test" if split == "test" else None
        if where is not None and seen.setdefault(group, where) != where:
            raise UserError(
                f"{place}: images that belong together stand in fold or split {seen[group]} and "
                f"in {where}; make the folds anew with `btray data split`"
            )
