"""The four classes and the names under which public data sets store them."""

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


def canonical_label(name: str) -> str | None:
    """Return the class a folder name stands for (`No_Tumor` → `notumor`), or None.

    Case, spaces, hyphens, underscores and a trailing `tumor`/`tumour` are ignored.
    """
    key = "".join(character for character in name.lower() if character.isalnum())
    for candidate in (key, key.removesuffix("tumor"), key.removesuffix("tumour")):
        if candidate in CLASS_NAMES:
            return candidate
        if candidate in _ALIASES:
            return _ALIASES[candidate]
    return None
