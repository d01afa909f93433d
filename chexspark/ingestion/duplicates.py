"""The same picture under two patients. Pure functions; runs on the driver.

In: of every stored image its name, patient, pixel digest and perceptual hash. Out: the pairs of
different patients whose pixels are equal, or nearly.

Of 221 NIH patients' 800 images, no two of different patients differ in fewer than 54 bits of 256 (of
313,708 pairs; half of them in 120 or more). Of 150 full-size images saved again as JPEG of quality 70
or 30, at other sizes, or brighter, all differ from the original in at most 6 bits, with more contrast
or another gamma in at most 20; with 1 % cropped from each side, three in four differ in at most 24.
"""

from collections import defaultdict
from itertools import combinations

import numpy as np

HASH_SIDE = 16  # of the square of frequencies whose signs are the hash
HASH_BITS = HASH_SIDE**2
NEAR_BITS = 24  # that may differ
LARGEST_BUCKET = 4000  # images alike in a band; beyond it the band tells nothing


def duplicate_pairs(
    names: list[str], patients: list[str], digests: list[int], hashes: list[str]
) -> list[dict[str, str]]:
    """Pairs ``{image, other, kind}`` of different patients, kind ``exact`` or ``near``, sorted.

    Of every image its name, its patient, the digest of its pixels and its perceptual hash, 64 digits in
    hex. Compared are the images that have one of 16 bands of the hash in common: near pairs of up to 15
    bits are all found, of 24 bits nearly all.
    """
    pairs: dict[tuple[int, int], str] = {}
    same: dict[int, list[int]] = defaultdict(list)
    for i, digest in enumerate(digests):
        same[digest].append(i)
    for equal in same.values():
        for i, j in combinations(equal, 2):
            pairs[i, j] = "exact"
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, HASH_BITS // 8)
    bits = np.unpackbits(packed, axis=1)
    for band in bands():
        keys = bits[:, band] @ (1 << np.arange(HASH_SIDE))
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(group) <= LARGEST_BUCKET:
                for a, b in zip(
                    *np.nonzero(np.triu(differing(bits[group]) <= NEAR_BITS, 1)), strict=True
                ):
                    i, j = sorted((int(group[a]), int(group[b])))
                    pairs.setdefault((i, j), "near")
    found = [
        {"image": min(names[i], names[j]), "other": max(names[i], names[j]), "kind": kind}
        for (i, j), kind in pairs.items()
        if patients[i] != patients[j]
    ]
    return sorted(found, key=lambda pair: (pair["kind"], pair["image"], pair["other"]))


def bands() -> np.ndarray:
    """The places of each band's bits in the hash, int64 (16, 16).

    A band is a diagonal of the square, so that each has high and low frequencies: the lowest alone are
    much the same in all chests.
    """
    row = np.arange(HASH_SIDE)
    return row * HASH_SIDE + (row + row[:, None]) % HASH_SIDE


def differing(bits: np.ndarray) -> np.ndarray:
    """How many bits differ between any two of `bits`, uint8 (images, 256): float32 (images, images)."""
    signs = bits.astype(np.float32) * 2 - 1
    return (bits.shape[1] - signs @ signs.T) / 2
