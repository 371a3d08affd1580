"""What a run reads, checked before anything heavy is loaded or started."""

from btray.config import Config
from btray.data.dataset import Dataset
from btray.errors import UserError


def open_training_data(config: Config) -> Dataset:
    """Open the data set of a run and check that it can be trained on.

    Raises:
        UserError: no data set, an empty split, or fewer rows than one batch.

    """
    if config.data.dataset is None:
        raise UserError("data.dataset is not set; name a data set, such as --data data/phantom")
    dataset = Dataset.open(config.data.dataset)
    for split in ("train", "validation"):
        if not dataset.count(split):
            raise UserError(f"{dataset.uri}: the {split} split is empty; import the data again")
    if dataset.count("train") < config.data.batch_size:
        raise UserError(
            f"{dataset.uri}: {dataset.count('train')} training images are fewer than "
            f"data.batch_size={config.data.batch_size}; lower it"
        )
    return dataset
