"""A split of a store that is to be scored. Runs on the driver.

In: a store, its manifest and a split's name. Out: its row groups and patients.
"""

from dataclasses import dataclass

from chexspark.storage import Location
from chexspark.store import row_groups
from chexspark.store.manifest import Manifest


@dataclass(frozen=True)
class StoreSplit:
    """One of the splits of a store."""

    store: Location
    manifest: Manifest
    name: str

    def __str__(self) -> str:
        return str(self.store / self.name)

    def other(self, name: str) -> "StoreSplit":
        """Another split of the same store."""
        return StoreSplit(self.store, self.manifest, name)

    @property
    def images(self) -> int:
        """How many images the split has."""
        return self.manifest.splits[self.name].images

    def row_groups(self) -> list[row_groups.RowGroup]:
        """All row groups of the split in the store's order."""
        return row_groups.row_groups(self.store, self.manifest, self.name)

    def patients(self) -> set[str]:
        """The patients that the split has images of. Raises DamagedStoreError."""
        return row_groups.patients_of_split(self.store, self.manifest, self.name)
