"""Whether a training is the experiment that its recipe describes. Runs on the driver.

In: the settings, with the recipe's name, and the store. Out: nothing, UserError where it would start from other
weights than the recipe's without being asked to, or notes about what else differs.
"""

from collections.abc import Sequence

from chexspark.config import TrainConfig
from chexspark.errors import UserError, listed
from chexspark.findings import find
from chexspark.models.imagenet import IMAGENET, RANDOM, published_of, words_of
from chexspark.recipe_files import Expected, read_expected


def check_start(config: TrainConfig) -> None:
    """Raise UserError where the recipe starts from weights, and none are given, not even ``none``."""
    if not config.recipe or config.weights:
        return
    expected, name = read_expected(config.recipe).weights, f"--recipe={config.recipe}"
    if expected == IMAGENET and published_of(config.model):
        raise UserError(
            f"{name} starts from ImageNet's weights: give --weights=FILE, the path of {words_of(config.model)}, "
            f"--weights={IMAGENET} where it was given before, or --weights={RANDOM} to start from random ones"
        )
    if expected == "run":
        raise UserError(
            f"{name} goes on from an earlier training: give --weights=RUN, or --weights={RANDOM} to start from random weights"
        )


def differences(
    config: TrainConfig, size: int, findings: Sequence[str], stored: int | None = None
) -> list[str]:
    """What of the store is not as the recipe expects it, in words.

    `size`: of the images that the network takes, pixels; `stored`: of those in the store, if that is not the same.
    """
    expected = read_expected(config.recipe) if config.recipe else Expected()
    name, found = f"--recipe={config.recipe}", []
    if expected.image_size not in (None, size):
        could = f" (--size={expected.image_size} reduces them)" * (
            expected.image_size < (stored or size)
        )
        found.append(
            f"{name} is for images of {expected.image_size} pixels, and these have {size}{could}"
        )
    lacking = [each for each in expected.findings if find(each, findings) is None]
    more = [each for each in findings if find(each, expected.findings) is None]
    if expected.findings and (lacking or more):
        parts = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(more)} too"] * bool(
            more
        )
        found.append(
            f"{name} is for {len(expected.findings)} findings, and this store {' and '.join(parts)}"
        )
    return found
