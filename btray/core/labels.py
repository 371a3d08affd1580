"""The four classes and the names under which public data sets store them."""

from collections.abc import Sequence
from typing import Final

CLASS_NAMES: Final = ("glioma", "meningioma", "notumor", "pituitary")
"""Class names in index order: the index is the position of the logit."""

_ALIASES: Final = {
    "gliomas": "glioma",
    "meningiomas": "meningioma",
    "no": "notumor",
    "none": "notumor",
    "normal": "notumor",
    "healthy": "notumor",
    "notumour": "notumor",
    "pituitaries": "pituitary",
    "pituitaryadenoma": "pituitary",
}


def canonical_label(name: str, class_names: Sequence[str] = CLASS_NAMES) -> str | None:
    """Return the class a name stands for (`No_Tumor` → `notumor`), or None.

    Case, spaces, hyphens, underscores and a trailing `tumor`/`tumour` are ignored.
    """
    key = _key(name)
    known = {_key(known): known for known in class_names}
    for candidate in (key, key.removesuffix("tumor"), key.removesuffix("tumour")):
        for wanted in (candidate, _ALIASES.get(candidate)):
            if wanted in known:
                return known[wanted]
    return None


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
