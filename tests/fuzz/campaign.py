"""A campaign of spoiled files, in a process of its own: `python campaign.py images|archives FIRST NUMBER`.

The mutant of a number is always the same. Out, on the last line: JSON, counts by kind. What a mutant may
never do is counted: end the job, take more than 1 GB or 10 s, be believed. Those who did are named.
"""

import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict

import cv2
import numpy as np
from mutations import ANY, CONSISTENT, mutations
from twins import archives, dicoms, pictures

from chexspark.ingestion.archives import archive_members
from chexspark.ingestion.dicom import decode_apart
from chexspark.ingestion.image_errors import BadImageError
from chexspark.ingestion.images import decode, prepare
from chexspark.preparation import Preparation

MOST_MEMORY, MOST_SECONDS = 1_000_000, 10  # kB, s
MOST_ADDRESSES = 8 << 30  # bytes; beyond it an allocation fails, so that the machine lives on
HOW = Preparation(SIDE := 48)
NEVER = ("ended", "over 1 GB", "over 10 s", "believed", "twin refused")
Counts = dict[str, Counter]


def peak() -> int:
    """The most memory that this process has had, kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Watch:
    """What one mutant takes: entered before it, left after it."""

    def __init__(self, counts: Counter, name: str, base: int) -> None:
        self.counts, self.name, self.base = counts, name, base

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, kind, error, _) -> bool:
        self.counts["mutants"] += 1
        faults = {
            "ended": error is not None,
            "over 1 GB": peak() - self.base > MOST_MEMORY,
            "over 10 s": time.monotonic() - self.began > MOST_SECONDS,
        }
        for fault in (fault for fault, there in faults.items() if there):
            self.counts[fault] += 1
            print(f"{fault}: {self.name}", file=sys.stderr)
        if error is not None:
            traceback.print_exception(error)
        return isinstance(error, Exception)


def spoil_images(first: int, number: int) -> Counts:
    """So many images, from one on. The kinds take turns."""
    twins = pictures() | dicoms()
    counts: Counts = defaultdict(Counter)
    clean = {kind: prepare(twin.content, HOW).pixels for kind, twin in twins.items()}
    for kind, twin in twins.items():
        gray = decode(twin.content)[0]
        counts[kind]["twin refused"] += not np.allclose(gray, twin.gray, rtol=0, atol=twin.off)
    base = peak()
    for index in range(first, first + number):
        kind = list(twins)[index % len(twins)]
        random = np.random.Generator(np.random.PCG64(index))
        ways = mutations(kind)
        way = ways[int(random.integers(len(ways)))]
        mutant = way(twins[kind].content, random)
        with Watch(counts[kind], f"{kind} {way.__name__} {index}", base):
            try:
                pixels = prepare(mutant, HOW).pixels
            except BadImageError:
                counts[kind]["refused"] += 1
                continue
            if np.array_equal(pixels, clean[kind]):
                counts[kind]["as its twin"] += 1
            elif way in CONSISTENT or not kind.startswith("PNG"):
                counts[kind]["another image"] += 1
            else:
                counts[kind]["believed"] += 1
                print(f"believed: {kind} {way.__name__} {index}", file=sys.stderr)
    for kind, twin in twins.items():
        counts[kind]["twin refused"] += not np.array_equal(
            prepare(twin.content, HOW).pixels, clean[kind]
        )
    return counts


def members_of(path: str) -> dict[str, np.ndarray]:
    """The stored pixels of the images in an archive, by path."""
    found = {}
    for path_in, _, content in archive_members(path):
        try:
            if isinstance(content, BadImageError):
                raise content
            found[path_in] = prepare(content, HOW).pixels
        except BadImageError:
            pass
    return found


def spoil_archives(first: int, number: int) -> Counts:
    """So many archives, from one on. Their PNGs have checksums: none is stored but with its own pixels."""
    images = pictures()
    files = {f"images/{i}.png": twin.content for i, (kind, twin) in enumerate(images.items())
             if kind.startswith("PNG")}  # fmt: skip
    whole = archives(files | {"notes.txt": b"no image"})
    counts: Counts = defaultdict(Counter)
    own = {name: prepare(content, HOW).pixels for name, content in files.items()}
    known = {pixels.tobytes() for pixels in own.values()}
    with tempfile.TemporaryDirectory() as folder:

        def stored(end: str, content: bytes) -> dict[str, np.ndarray]:
            path = f"{folder}/archive.{end}"
            with open(path, "wb") as file:
                file.write(content)
            return members_of(path)

        for end, content in whole.items():
            found = {name: pixels.tobytes() for name, pixels in stored(end, content).items()}
            counts[end]["twin refused"] += found != {n: p.tobytes() for n, p in own.items()}
        base = peak()
        for index in range(first, first + number):
            end = list(whole)[index % len(whole)]
            random = np.random.Generator(np.random.PCG64([index, 1]))
            way = ANY[int(random.integers(len(ANY)))]
            mutant = way(whole[end], random)
            with Watch(counts[end], f"{end} {way.__name__} {index}", base):
                found = stored(end, mutant)
                counts[end]["images"] += len(found)
                counts[end]["believed"] += sum(p.tobytes() not in known for p in found.values())
    return counts


def main() -> None:
    """Run what the command line says."""
    what, first, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    spoil = {"images": spoil_images, "archives": spoil_archives}[what]
    counts = spoil(first, number)
    decode_apart.end()
    # What is decoded apart is measured when its processes have ended, all together.
    if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > MOST_MEMORY:
        counts["apart"]["over 1 GB"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
