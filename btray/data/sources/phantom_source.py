"""The synthetic phantom as a source: a patient is an item, generated inside a worker."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from btray.data.sources.base import Item, Listing, Record
from btray.errors import UserError
from btray.version import __version__

MIN_IMAGES = 64
"""Fewer images do not give every class patients in every split."""


@dataclass(frozen=True)
class PhantomSource:
    """Synthetic slices of synthetic patients."""

    images: int
    """Slices over all patients."""
    seed: int = 0
    """Seed of the patients."""
    kind: str = "phantom"

    @property
    def place(self) -> str:
        """How messages call it."""
        return f"phantom of {self.images} images"

    def listing(self) -> Listing:
        """List the patients.

        Raises:
            UserError: too few images.

        """
        from btray.data.sources.phantom import phantom_plan

        if self.images < MIN_IMAGES:
            raise UserError(f"--images {self.images}: a phantom needs at least {MIN_IMAGES} images")
        items = [
            Item(f"patient-{patient:07d}", number=patient, images=slices)
            for patient, slices in phantom_plan(self.images)
        ]
        return Listing(tuple(sorted(items, key=lambda item: item.name)))

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash what determines the phantom: its size, its seed, btray's version."""
        plan = [(item.number, item.images) for item in items]
        return hashlib.sha256(f"{__version__} {self.seed} {plan}".encode()).hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Generate and encode the slices of one patient."""
        from btray.data.sources.phantom import encode_png, phantom_patient

        slices = phantom_patient(item.number, self.seed, item.images)
        for number, one in enumerate(slices):
            yield Record(
                name=f"{item.name}/slice-{number:03d}.png",
                data=encode_png(one.image),
                label=one.label,
                patient_id=one.patient_id,
                plane=one.plane,
                sequence=one.sequence,
            )
