"""How pages of experiments are made. Pure functions; run on the driver, and need the report's extra."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

from chexspark.drawing import spoken
from chexspark.progress import duration


def render(template: str, filters: dict[str, Any], **values: Any) -> str:
    """HTML of a template beside this module, in the report's style; `filters` beside duration, spoken and auroc."""
    pages = Environment(
        loader=ChoiceLoader(
            [PackageLoader("chexspark.experiment", "."), PackageLoader("chexspark.evaluation", ".")]
        ),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"duration": duration, "spoken": spoken, "auroc": auroc_text, **filters}
    return pages.get_template(template).render(**values)


def auroc_text(value: float | None) -> str:
    """An AUROC, for people."""
    return "–" if value is None else f"{value:.4f}"
