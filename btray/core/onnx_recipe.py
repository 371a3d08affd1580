"""Which code made an ONNX graph: a cached one is used only by the code that would make the same."""

import hashlib
from importlib import metadata, resources
from typing import Final

_MODULES: Final = ("ensemble", "features", "loop", "onnx_export", "predictor", "tensors", "zoo")
"""Whatever has a say in what a graph computes from the same weights."""
_PACKAGES: Final = ("timm", "torch")


def recipe() -> str:
    """Return a hash of the modules and packages that turn a bundle into a graph."""
    found = hashlib.sha256()
    for module in _MODULES:
        found.update((resources.files("btray.core") / f"{module}.py").read_bytes())
    for package in _PACKAGES:
        found.update(f"{package} {metadata.version(package)}\n".encode())
    return found.hexdigest()
