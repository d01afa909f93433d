"""Which set of images a row of the store is of, where several are put together. Pure; runs on the driver.

The first set of a store keeps its names. Those of a further one begin with the set's: two sets may have a
patient 1 and an image ``1.png`` each, and these are others.
"""

from dataclasses import dataclass

from chexspark.store.manifest import Manifest


@dataclass(frozen=True)
class ImageSet:
    """A set of images. `prefix`: what its names of images and patients begin with in the store."""

    name: str
    prefix: str


def image_set(given: str | None, form_name: str, before: Manifest | None) -> ImageSet:
    """The set of an ingest: `given`, else that of the label form. `before`: the store that is added to."""
    name = (given or form_name).replace("/", "-")
    prefixes: dict[str, str] = before.sources.get("sets", {}) if before else {}
    return ImageSet(name, prefixes.get(name, f"{name}/" if prefixes else ""))


def set_note(this: ImageSet, before: Manifest | None) -> list[str]:
    """What is to be said of a set that is put beside others for the first time."""
    others = list(before.sources.get("sets", {})) if before else []
    if not others or this.name in others:
        return []
    return [
        f"images of {this.name} are put beside those of {', '.join(others)}: their names and patients begin "
        f"with {this.prefix} in the store (if they are of the same patients as one of these, give it as --source)"
    ]
