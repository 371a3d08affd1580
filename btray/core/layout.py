"""Names of a bundle's files: for those who need not load what is in them."""

from typing import Final

CARD: Final = "bundle.json"
WEIGHTS: Final = "model.safetensors"
FOLDER: Final = "bundle"
"""Name of a bundle's folder inside its run."""

GRAPH: Final = "model.onnx"
"""What an ONNX bundle has in place of the weights."""
DETECTOR: Final = "detector.safetensors"
MANIFEST: Final = "onnx.json"
"""Hashes of an ONNX bundle's files."""
