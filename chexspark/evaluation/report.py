"""A run in, ``RUN/report.html`` and ``RUN/model_card.md`` out. Runs on the driver, without Spark.

The page is one self-contained file: it loads nothing and runs nothing.
"""

import logging
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader

from chexspark.arguments import takes
from chexspark.config import ReportConfig
from chexspark.drawing import framed, spoken
from chexspark.errors import UserError, listed
from chexspark.evaluation import sections, tables
from chexspark.evaluation.sections import Evaluated
from chexspark.evaluation.studies import scored_rows
from chexspark.evaluation.tables import AGAIN, SplitFacts
from chexspark.evaluation.training_sections import Trained
from chexspark.findings import MEAN, is_mean
from chexspark.run.folder import (
    COMPARISON,
    EXAMPLES,
    LOCALISATION,
    METRICS,
    SUBGROUPS,
    RunFolder,
    model_and_digest,
    run_folder,
)
from chexspark.run.history import has_history, read_history
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import read_settings
from chexspark.run.tracking import tell_pages
from chexspark.storage import locate

log = logging.getLogger(__name__)

ORDER = ("test", "given", "val", "train")  # the report is of the first of these that was evaluated


class Report(str):
    """The path of a report, which a notebook shows as the page itself; `run`: the folder that it is about."""

    run: str

    def _repr_html_(self) -> str:
        """For a notebook: the page in a frame, which runs nothing."""
        return framed(locate(self).read_text())


@takes(ReportConfig, spark=False)
def report(config: ReportConfig) -> Report:
    """Write the report and the model card; return the path of the report, which a notebook shows as the page.

    Raises UserError when the run is not evaluated, or a table of it is damaged.
    """
    run, *others = (run_folder(name) for name in config.run)
    evaluated = read_evaluated(run, config.split)
    trained_here = training_run([run, *others], evaluated.facts)
    trained = read_trained(trained_here)
    compared = []
    for place in others:
        if place is trained_here:
            continue
        other = read_trained(place)
        if other is None:
            raise UserError(f"--run={place} has no history: give runs that chexspark train wrote")
        compared.append(other)
    pages = Environment(
        loader=PackageLoader("chexspark.evaluation", "."), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.tests["mean"] = is_mean
    pages.filters |= {
        "spoken": spoken, "figure": sections.figure, "probability": tables.probability_text, "listed": listed,
        "chance": lambda p: tables.p_text(p) or "–",
    }  # fmt: skip
    content = sections.contents(str(run), evaluated, trained, compared)
    page, template = run.report, pages.get_template("report.html.jinja")
    page.write_text(template.render(content))
    card = run.model_card
    words = pages.overlay(autoescape=False, finalize=without_html)
    words.filters = pages.filters | {"spoken": sections.for_markdown}
    card_text = words.get_template("model_card.md.jinja").render(content)
    card.write_text(card_text)
    # No image leaves for MLflow, nor its name.
    tell_pages(run, [(page, template.render(content | {"examples": []})), (card, card_text)])
    log.info("report: %s\nmodel card: %s", page, card)
    found = Report(page)
    found.run = str(run)
    return found


def without_html(value: Any) -> Any:
    """A value for Markdown, in which ``<`` begins HTML."""
    return value.replace("<", "&lt;") if isinstance(value, str) else value


def read_evaluated(run: RunFolder, split: str | None) -> Evaluated:
    """What evaluate wrote of a split. Raises UserError where there is nothing, or not that split."""
    done = [s for s, facts in tables.read_evaluation(run).items() if facts.get("metrics")]
    if not done and not has_history(run):
        raise UserError(f"--run={run} has no history: run chexspark train first")
    if not done:
        raise UserError(f"--run={run} has no metrics: run chexspark evaluate first")
    if split is not None and split not in done:
        raise UserError(
            f"--split={split} of --run={run} was not evaluated (there is {', '.join(done)}): run "
            f"chexspark evaluate --split={split}"
        )
    split = split or next(name for name in ORDER if name in done)
    facts = tables.read_evaluation(run)[split]
    predictions = scored_rows(tables.read_predictions(run, split, facts["findings"]), facts)
    metrics, subgroups = (tables.read_split(run, name, split) for name in (METRICS, SUBGROUPS))
    if predictions is None or metrics is None or subgroups is None:
        raise UserError(f"{run} has no tables of split {split}: {AGAIN}")
    named = [*facts["findings"], MEAN]
    further_means = metrics["finding"][len(named) :]
    if list(metrics["finding"][: len(named)]) != named or not all(map(is_mean, further_means)):
        raise UserError(
            f"{run.table(METRICS, split)} is damaged: it has not a row for each finding; {AGAIN}"
        )
    further = (tables.read_split(run, n, split) for n in (EXAMPLES, LOCALISATION, COMPARISON))
    return Evaluated(split, facts, predictions, metrics, subgroups, *further)


def training_run(given: Sequence[RunFolder], facts: SplitFacts) -> RunFolder | None:
    """The run that was trained for what was evaluated, if it is the first of those given, or one of them by
    the digest of its model. What the evaluation names is not opened: it may be anything."""
    if has_history(given[0]):
        return given[0]
    models = facts.get("models", [])
    if len(models) != 1:
        return None
    others = (run for run in given[1:] if has_history(run) and run.best_model.is_file())
    return next((run for run in others if model_and_digest(run)[1] == models[0]), None)


def read_trained(run: RunFolder | None) -> Trained | None:
    """What train wrote, or None."""
    if run is None or not has_history(run):
        return None
    _, settings = read_settings(run)
    return Trained(str(run), read_history(run), read_lineage(run), settings)
