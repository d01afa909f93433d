"""A run in, ``RUN/report.html`` and ``RUN/model_card.md`` out. Runs on the driver, without Spark.

The page is one self-contained file: it loads nothing and runs nothing.
"""

from jinja2 import Environment, PackageLoader

from chexspark.arguments import takes
from chexspark.config import ReportConfig
from chexspark.errors import UserError
from chexspark.evaluation import plots, sections, tables
from chexspark.evaluation.sections import Evaluated, Trained
from chexspark.run.folder import METRICS, PREDICTIONS, SUBGROUPS, TABLES, RunFolder, run_folder
from chexspark.run.history import has_history, read_history
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import read_settings

ORDER = ("test", "given", "val", "train")  # the report is of the first of these that was evaluated


@takes(ReportConfig)
def report(spark, config: ReportConfig) -> str:
    """Write the report and the model card; return the path of the report. `spark` is not used.

    Raises UserError when the run is not evaluated.
    """
    run, *others = (run_folder(name) for name in config.run)
    evaluated = read_evaluated(run, config.split)
    trained = read_trained(training_run(run, evaluated.facts))
    compared = [read_trained(other) for other in others]
    for other, place in zip(compared, others, strict=True):
        if other is None:
            raise UserError(f"--run {place} has no history: give runs that chexspark train wrote")
    pages = Environment(
        loader=PackageLoader("chexspark.evaluation", "."), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"spoken": plots.spoken, "figure": sections.figure}
    pages.filters["chance"] = lambda p: tables.p_text(p) or "–"
    content = sections.contents(str(run), evaluated, trained, compared)
    place = run.report
    place.write_text(pages.get_template("report.html.jinja").render(content))
    card = run.model_card
    words = pages.overlay(autoescape=False)
    card.write_text(words.get_template("model_card.md.jinja").render(content))
    print(f"report: {place}\nmodel card: {card}")
    return str(place)


def read_evaluated(run: RunFolder, split: str | None) -> Evaluated:
    """What evaluate wrote of a split. Raises UserError where there is nothing, or not that split."""
    done = [s for s, facts in tables.read_evaluation(run).items() if facts.get("metrics")]
    if not done and not has_history(run):
        raise UserError(f"--run {run} has no history: run chexspark train first")
    if not done:
        raise UserError(f"--run {run} has no metrics: run chexspark evaluate first")
    if split is not None and split not in done:
        raise UserError(
            f"--split {split} of --run {run} was not evaluated (there is {', '.join(done)}): run "
            f"chexspark evaluate --split {split}"
        )
    split = split or next(name for name in ORDER if name in done)
    found = {name: tables.read_split(run, name, split) for name in TABLES}
    for name in (PREDICTIONS, METRICS, SUBGROUPS):
        if found[name] is None:
            raise UserError(f"{run.table(name)} has no split {split}: run chexspark evaluate again")
    return Evaluated(split, tables.read_evaluation(run)[split], **found)


def training_run(run: RunFolder, facts: dict) -> RunFolder | None:
    """The one run that was trained for what was evaluated, where it is in reach."""
    if has_history(run):
        return run
    runs = facts.get("runs", [])
    return run_folder(runs[0]) if len(runs) == 1 else None


def read_trained(run: RunFolder | None) -> Trained | None:
    """What train wrote, or None."""
    if run is None or not has_history(run):
        return None
    _, settings = read_settings(run)
    return Trained(str(run), read_history(run), read_lineage(run), settings)
