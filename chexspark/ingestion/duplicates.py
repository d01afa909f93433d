"""The same picture under two patients. Pure functions; runs on the driver.

In: of every stored image its name, patient, pixel digest and perceptual hash. Out: the pairs of
different patients whose pixels are equal, or nearly.
"""

from collections import defaultdict
from itertools import combinations

import numpy as np

NEAR_BITS = 2  # of 64 that may differ
BANDS = 4  # of 16 bits; with at most 3 bits different, one band is equal
LARGEST_BUCKET = 200  # images alike in a band; beyond it the band tells nothing


def duplicate_pairs(
    names: list[str], patients: list[str], digests: list[int], hashes: list[int]
) -> list[dict[str, str]]:
    """Pairs ``{image, other, kind}`` of different patients, kind ``exact`` or ``near``, sorted.

    Of every image its name, its patient, the digest of its pixels and its perceptual hash of 64 bits.
    """
    pairs: dict[tuple[int, int], str] = {}
    same: dict[int, list[int]] = defaultdict(list)
    for i, digest in enumerate(digests):
        same[digest].append(i)
    for equal in same.values():
        for i, j in combinations(equal, 2):
            pairs[i, j] = "exact"
    bits = np.asarray(hashes, np.int64).view(np.uint64)
    for band in range(BANDS):
        keys = (bits >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(group) <= LARGEST_BUCKET:
                differ = bit_count(bits[group][:, None] ^ bits[group][None])
                for a, b in zip(*np.nonzero(np.triu(differ <= NEAR_BITS, 1)), strict=True):
                    i, j = sorted((int(group[a]), int(group[b])))
                    pairs.setdefault((i, j), "near")
    found = [
        {"image": min(names[i], names[j]), "other": max(names[i], names[j]), "kind": kind}
        for (i, j), kind in pairs.items()
        if patients[i] != patients[j]
    ]
    return sorted(found, key=lambda pair: (pair["kind"], pair["image"], pair["other"]))


def bit_count(values: np.ndarray) -> np.ndarray:
    """The number of set bits of each uint64, int64 of the same shape (…)."""
    parts = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)
    return np.unpackbits(parts, axis=-1).sum(-1)
