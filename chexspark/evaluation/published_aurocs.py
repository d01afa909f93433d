"""Published AUROCs on NIH ChestX-ray14, to stand beside. Runs anywhere.

Figures on different splits are not comparable: each source says which split it used. Random splits are drawn anew by
everyone, so that NIH's official test list is the only one that several have in common.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from chexspark.findings import FINDINGS, MEAN


@dataclass(frozen=True)
class Published:
    """One source's AUROCs, in the order of `FINDINGS`; none per finding where it gives only a mean."""

    name: str
    split: str
    aurocs: tuple[float, ...]
    mean: float | None
    interval: tuple[float, float] | None = None  # of the mean, 95 %
    official: bool = False  # whether it is of NIH's official test list

    def of(self, finding: str) -> float | None:
        """The AUROC of a finding of that name, or of `MEAN`; None where the source has none."""
        if finding == MEAN:
            return self.mean
        if finding not in FINDINGS or not self.aurocs:
            return None
        return self.aurocs[FINDINGS.index(finding)]


OFFICIAL_IMAGES = 25_596  # of NIH's official test list


def are_published(findings: Iterable[str]) -> bool:
    """Whether the findings are exactly those of the published results, NIH's 14."""
    return set(findings) == set(FINDINGS)


def published_beside(findings: Iterable[str]) -> tuple[Published, ...]:
    """The sources with a figure to stand beside these findings.

    A mean is of NIH's 14: it stands only beside a mean over the same.
    """
    findings = set(findings)
    same = are_published(findings)
    sources = [p if same else dataclasses.replace(p, mean=None, interval=None) for p in PUBLISHED]
    return tuple(p for p in sources if any(p.of(f) is not None for f in (*findings, MEAN)))


OFFICIAL = f"official, {OFFICIAL_IMAGES:,} test images"
PUBLISHED = (
    Published(
        "Wang 2017", "official (as CheXNet quotes it)",
        (.716, .807, .784, .609, .706, .671, .633, .806, .708, .835, .815, .769, .708, .767), .738,
        official=True),
    Published(
        "Yao 2017", "own random (as CheXNet quotes it)",
        (.772, .904, .859, .695, .792, .717, .713, .841, .788, .882, .829, .767, .765, .914), .803),
    Published(
        "CheXNet v3, Rajpurkar 2017", "random by patient, 70/10/20",
        (.8094, .9248, .8638, .7345, .8676, .7802, .7680, .8887, .7901, .8878, .9371, .8047, .8062,
         .9164), .8414),
    Published(
        "Zech, reproduce-chexnet", "own, 22,433 test images",
        (.8180, .9090, .8827, .7156, .8377, .7756, .7617, .8776, .8002, .8945, .9316, .8251, .7889,
         .9175), .8383),
    Published(
        "arnoweng/CheXNet", "random by patient",
        (.8294, .9165, .8870, .7143, .8597, .7873, .7745, .8726, .8142, .8932, .9254, .8304, .7831,
         .9104), .8427),
    Published(
        "Dell EMC", "8,653 validation images, patients shared with training",
        (.816, .876, .890, .673, .823, .716, .833, .695, .799, .871, .893, .785, .751, .833), .804),
    Published("SURFsara DenseNet-121", "not stated", (), .819),
    Published("SURFsara ResNet-50", "not stated", (), .826),
    Published("SURFsara ResNet-59", "not stated", (), .838),
    Published("SURFsara AmoebaNet-D, 299 pixels", "not stated", (), .840),
    Published("SURFsara AmoebaNet-D, 480 pixels", "not stated", (), .842),
    Published("best single DenseNet-121 found", OFFICIAL, (), .811, (.804, .817), official=True),
    Published("Swin-T, same source", OFFICIAL, (), .818, official=True),
    Published("DenseNet-121, another source", OFFICIAL, (), .805, official=True),
    Published("CoAtNet-0, that source", OFFICIAL, (), .809, official=True),
    Published("ConvNeXt-S 384, a model card", OFFICIAL, (), .802, official=True),
    Published("Swin-B 384, that card", OFFICIAL, (), .807, official=True),
    Published("ensemble of ConvNeXt-S 384, Swin-B 384 and DenseNet 512, that card", OFFICIAL, (), .822, official=True),
)  # fmt: skip
