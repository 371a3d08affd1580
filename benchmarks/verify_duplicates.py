"""Count pixel-identical images below a folder with Pillow alone: a check on btray's import.

Usage: python benchmarks/verify_duplicates.py SRC
"""

import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from PIL import Image


def main(source: str) -> None:
    """Print the groups, and one JSON object as the last line."""
    root = Path(source)
    groups: dict[tuple[tuple[int, int], str], list[Path]] = defaultdict(list)
    files = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    for path in files:
        with Image.open(path) as image:
            grey = image.convert("L")
        groups[grey.size, hashlib.sha256(grey.tobytes()).hexdigest()].append(path)
    several = sorted(paths for paths in groups.values() if len(paths) > 1)
    for paths in several:
        print(len(paths), *(path.relative_to(root).as_posix() for path in paths))
    conflicts = sum(len({path.parent.name for path in paths}) > 1 for paths in several)
    figures = {
        "files": len(files),
        "groups": len(several),
        "images": sum(map(len, several)),
        "label_conflicts": conflicts,
    }
    print(f"{figures['groups']} groups of pixel-identical images, {figures['images']} images")
    print(json.dumps(figures))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
