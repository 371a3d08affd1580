"""The bundle that is shipped inside the package."""

from importlib import resources
from pathlib import Path

from btray.core.layout import CARD
from btray.errors import UserError


def reference_bundle() -> str:
    """Return the folder of the shipped reference bundle.

    Raises:
        UserError: this installation has none.

    """
    folder = Path(str(resources.files("btray"))) / "models" / "reference"
    if not (folder / CARD).is_file():
        raise UserError(
            "no reference bundle in this installation; give --bundle, such as runs/NAME/bundle"
        )
    return str(folder)
