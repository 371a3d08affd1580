"""btray: classifiers of brain tumours in MRI slices, on Ray. Research use only."""

from btray.version import __version__

__all__ = ["__version__"]
