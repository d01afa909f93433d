"""What the stored values of a DICOM image mean on a screen. Pure functions; runs in Spark tasks.

In: the words of gray pixels and the data set that describes them. Out: 8-bit gray, by DICOM's steps:
stored values without padding, Modality LUT or rescale, VOI LUT or window, or else the range of the
image's own values, and inversion, once. Source: DICOM PS3.3, C.7.5.1.1.2, C.7.6.3.1, C.11.1, C.11.2, C.11.6.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pydicom

DARK_IS_HIGH = "MONOCHROME1"
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # of a window
SHAPES = ("IDENTITY", "INVERSE")  # of the presentation
TABLE_BYTES = 2  # words of so many go through a table of all that there can be


def numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """The values of an attribute; none where it is absent or empty. Raises ValueError for no numbers."""
    value = dataset.get(keyword)
    if value is None:
        return []
    several = value if not isinstance(value, str | bytes) and hasattr(value, "__len__") else [value]
    try:
        found = [float(part) for part in several if part is not None and part != ""]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{keyword} is {value!r}, not a number") from error
    if not all(math.isfinite(part) for part in found):
        raise ValueError(f"{keyword} is {value}, not a number")
    return found


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The one value of an attribute, or None. Raises ValueError where it has several, or no number."""
    found = numbers(dataset, keyword)
    if len(found) > 1:
        raise ValueError(f"{keyword} has {len(found)} values, not one")
    return found[0] if found else None


def integer(dataset: pydicom.Dataset, keyword: str, default: int | None = None) -> int:
    """The one whole value of an attribute. Raises ValueError where there is none, and no `default`."""
    found = number(dataset, keyword)
    if found is not None:
        return int(found)
    if default is None:
        raise ValueError(f"DICOM without {keyword}")
    return default


def word(dataset: pydicom.Dataset, keyword: str, known: tuple[str, ...]) -> str:
    """One of the words that are known, of which the first is the default. Raises ValueError for others."""
    found = str(dataset.get(keyword) or "").strip().upper() or known[0]
    if found not in known:
        raise ValueError(f"{keyword} is {found}, not one of {', '.join(known)}")
    return found


def first_item(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
    """The first item of a sequence, or None where it is absent or empty."""
    return next(iter(dataset.get(keyword) or ()), None)


def frame_facts(dataset: pydicom.Dataset, macro: str) -> pydicom.Dataset:
    """Where the one frame's facts stand: in its functional groups (PS3.3, C.7.6.16), or in the data set."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        item = first_item(dataset, groups)
        found = first_item(item, macro) if item is not None else None
        if found is not None:
            return found
    return dataset


@dataclass(frozen=True)
class Values:
    """How a stored value lies in a word of `allocated` bits: in its lowest `bits`."""

    bits: int
    allocated: int
    signed: bool

    def of(self, words: np.ndarray) -> np.ndarray:
        """The values of words of any shape ``(…)``, whose higher bits may hold anything: int64."""
        return self.signed_of(words.astype(np.int64), self.bits)

    def signed_of(self, words: np.ndarray, bits: int) -> np.ndarray:
        """The lowest bits of int64 ``(…)``, as two's complement where values are signed."""
        values = words & ((1 << bits) - 1)
        return values - ((values >> (bits - 1)) << bits) if self.signed else values

    def are_between(self, words: np.ndarray, low: int, high: int) -> np.ndarray:
        """Which words ``(…)``, read by their values or whole, lie between two whole words, in any order."""
        whole = self.signed_of(words.astype(np.int64), self.allocated)
        low, high = sorted(self.signed_of(np.array([low, high]), self.allocated).tolist())
        values = self.of(words)
        return ((values >= low) & (values <= high)) | ((whole >= low) & (whole <= high))

    def ends(self) -> tuple[int, int]:
        """The smallest and the largest value that there can be."""
        first = -(1 << (self.bits - 1)) if self.signed else 0
        return first, first + (1 << self.bits) - 1


@dataclass(frozen=True)
class LookupTable:
    """A table of ``LUTDescriptor`` and ``LUTData``. `entries`: float64 (n,), for `first`, `first` + 1, …"""

    first: int
    entries: np.ndarray
    bits: int

    @classmethod
    def of(cls, item: pydicom.Dataset, little: bool, signed: bool) -> "LookupTable":
        """Read the item of a LUT sequence. `signed`: what goes in may be negative.

        Raises ValueError for one that does not hold what it says.
        """
        descriptor = [int(value) for value in numbers(item, "LUTDescriptor")]
        if len(descriptor) != 3:
            raise ValueError("LUTDescriptor has not three values")
        length, first, bits = descriptor
        length = length % 65536 or 65536
        first = first - 65536 if signed and first > 32767 else first
        data = item.get("LUTData")
        if isinstance(data, bytes):
            packed = bits <= 8 and len(data) == length + length % 2
            kind = "u1" if packed else "<u2" if little else ">u2"
            entries = np.frombuffer(data[: len(data) // 2 * 2], kind)
        else:
            entries = np.array([int(value) % 65536 for value in data or ()])
            if bits <= 8 and len(entries) == -(-length // 2) < length:  # two in a word
                entries = np.stack([entries & 255, entries >> 8], axis=1).ravel()
        entries = entries[:length].astype(np.float64)
        if len(entries) < length or not 0 < bits <= 16 or entries.max() >= 2**bits:
            raise ValueError(f"a LUT that does not hold {length} entries of {bits} bits")
        return cls(first, entries, bits)

    def through(self, values: np.ndarray) -> np.ndarray:
        """The entries of values of any shape ``(…)``; beyond its ends, those of its ends."""
        places = np.clip(np.round(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[places.astype(np.int64)]

    def share(self, values: np.ndarray) -> np.ndarray:
        """From black, 0, to white, 1, of the range of its output, of values of any shape ``(…)``."""
        return self.through(values) / (2**self.bits - 1)


@dataclass(frozen=True)
class Rescale:
    """A rescale from stored to modality values."""

    slope: float
    intercept: float

    def through(self, values: np.ndarray) -> np.ndarray:
        """The modality values of stored ones of any shape ``(…)``."""
        return values * self.slope + self.intercept


@dataclass(frozen=True)
class Window:
    """A window of a VOI LUT function (PS3.3, C.11.2.1.2 and C.11.2.1.3), in units of modality values."""

    center: float
    width: float
    function: str

    def is_usable(self) -> bool:
        """Whether it is one: a converter's zeros are none."""
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def share(self, values: np.ndarray) -> np.ndarray:
        """From black, 0, to white, 1, of modality values of any shape ``(…)``."""
        if self.function == "SIGMOID":
            power = np.clip(-4 * (values - self.center) / self.width, -700, 700)
            return 1 / (1 + np.exp(power))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (values > self.center - 0.5).astype(np.float64)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True)
class Range:
    """From the smallest to the largest modality value of an image."""

    low: float
    high: float

    def share(self, values: np.ndarray) -> np.ndarray:
        """From black, 0, to white, 1, of modality values of any shape ``(…)``; all equal are black."""
        return np.clip((values - self.low) / ((self.high - self.low) or 1), 0, 1)


@dataclass(frozen=True)
class Display:
    """The steps from words to gray. `voi`: None: the range of the image's own values.

    `padding`: the two words between which a word is no measurement.
    """

    values: Values
    padding: tuple[int, int] | None
    modality: LookupTable | Rescale
    voi: LookupTable | Window | None
    inverted: bool

    @classmethod
    def of(cls, dataset: pydicom.Dataset, values: Values) -> "Display":
        """What the data set says. Raises ValueError with the reason when it cannot be meant so."""
        modality = modality_of(dataset, values.signed)
        lowest = modality.through(np.array(values.ends())).min()
        return cls(
            values,
            padding_of(dataset),
            modality,
            voi_of(dataset, bool(lowest < 0)),
            word(dataset, "PresentationLUTShape", SHAPES) == "INVERSE"
            or str(dataset.PhotometricInterpretation).strip() == DARK_IS_HIGH,
        )

    def gray(self, words: np.ndarray) -> np.ndarray:
        """uint8 (height, width) of words (height, width), padding black.

        Raises ValueError where all is padding.
        """
        cells = words.astype(f"u{words.itemsize}")
        if words.itemsize > TABLE_BYTES:
            voi = self.voi or self.range_of(cells)
            return np.stack([self.shown(row, voi) for row in cells])
        every = np.arange(1 << (8 * words.itemsize)).astype(cells.dtype)
        there = np.zeros(len(every), bool)
        for row in cells:  # by rows: places in a table take eight bytes each
            there[row] = True
        own = self.range_of([every[there]])
        table = self.shown(every, self.voi or own)
        gray = np.empty(cells.shape, np.uint8)
        for row, out in zip(cells, gray, strict=True):
            out[:] = table[row]
        return gray

    def is_padding(self, words: np.ndarray) -> np.ndarray:
        """Which words of any shape ``(…)`` are no measurement."""
        if self.padding is None:
            return np.zeros(words.shape, bool)
        return self.values.are_between(words, *self.padding)

    def range_of(self, rows: Iterable[np.ndarray]) -> Range:
        """The range of words (n,) that are no padding. Raises ValueError where all are."""
        low, high = math.inf, -math.inf
        for row in rows:
            found = self.modality.through(self.values.of(row[~self.is_padding(row)]))
            if found.size:
                low, high = min(low, float(found.min())), max(high, float(found.max()))
        if low > high:
            raise ValueError("all pixels are padding")
        return Range(low, high)

    def shown(self, words: np.ndarray, voi: LookupTable | Window | Range) -> np.ndarray:
        """Gray values, uint8 (n,), of words (n,)."""
        share = voi.share(self.modality.through(self.values.of(words)))
        gray = np.round(255 * (1 - share if self.inverted else share)).astype(np.uint8)
        gray[self.is_padding(words)] = 0
        return gray


def padding_of(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """The words that PixelPaddingValue and PixelPaddingRangeLimit give, or None. Raises ValueError."""
    value = number(dataset, "PixelPaddingValue")
    limit = number(dataset, "PixelPaddingRangeLimit")
    return None if value is None else (int(value), int(value if limit is None else limit))


def modality_of(dataset: pydicom.Dataset, signed: bool) -> LookupTable | Rescale:
    """The Modality LUT, or the rescale; each part of it is optional. Raises ValueError."""
    item = first_item(dataset, "ModalityLUTSequence")
    if item is not None:
        return LookupTable.of(item, dataset.original_encoding[1] is not False, signed)
    facts = frame_facts(dataset, "PixelValueTransformationSequence")
    slope, intercept = number(facts, "RescaleSlope"), number(facts, "RescaleIntercept")
    if slope == 0:
        raise ValueError("RescaleSlope is 0")
    return Rescale(1 if slope is None else slope, intercept or 0)


def voi_of(dataset: pydicom.Dataset, signed: bool) -> LookupTable | Window | None:
    """The first VOI LUT, else the first window that is one, else None. Raises ValueError.

    `signed`: modality values may be negative.
    """
    facts = frame_facts(dataset, "FrameVOILUTSequence")
    item = first_item(facts, "VOILUTSequence")
    if item is not None:
        return LookupTable.of(item, dataset.original_encoding[1] is not False, signed)
    pairs = zip(numbers(facts, "WindowCenter"), numbers(facts, "WindowWidth"), strict=False)
    windows = [Window(*pair, word(facts, "VOILUTFunction", FUNCTIONS)) for pair in pairs]
    return next((window for window in windows if window.is_usable()), None)
