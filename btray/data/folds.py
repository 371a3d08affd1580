"""Cross-validation: a data set seen with one of its folds as validation, the others as train."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

IN_FOLDS: Final = ("train", "validation")
"""Only rows of these stored splits stand in a fold: test and excluded rows stay what they are,
also where a source's own folds have them."""


def splits_of_fold(splits: pa.ChunkedArray, folds: pa.ChunkedArray, fold: int) -> pa.ChunkedArray:
    """Return the splits [rows] when one fold is validation, from stored splits and folds [rows].

    Rows that have no fold, such as twins of rows in several of a source's own, are excluded.
    """
    member = pc.and_(pc.is_in(splits, pa.array(IN_FOLDS)), pc.is_valid(folds))
    held_out = pc.equal(pc.fill_null(folds, -1), fold)
    inside = pc.if_else(held_out, "validation", "train")
    outside = pc.if_else(pc.equal(splits, "test"), "test", "excluded")
    return pc.if_else(member, inside, outside)
