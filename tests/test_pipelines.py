"""The suite of input pipelines: its rows, table and chart, and what a process of its own tells."""

import re
import sys
import types
from xml.etree import ElementTree

import pytest

from chexspark.benchmark import pipelines
from chexspark.benchmark.chart import FedBar, FedPanel, fed_chart
from chexspark.benchmark.pipelines import (
    BASE,
    NETWORKS,
    PIPELINES,
    PUBLISHED_GAINS,
    RECORDS,
    STEP_ALONE,
    measure_pipelines,
    pipelines_chart,
    pipelines_text,
    rows_of,
)
from chexspark.benchmark.results import measurements
from chexspark.benchmark.suite import Work
from chexspark.config import BenchmarkConfig
from chexspark.errors import RunFailedError, UserError


def turns_of(rates, waiting=0.25):
    """Turns in which every network has these rates, by pipeline."""
    return {
        (network, way): [{"images_per_second": r, "idle_share": waiting} for r in rates[way]]
        for network in NETWORKS
        for way in [*PIPELINES, STEP_ALONE]
    }


@pytest.fixture
def rows():
    rates = {way: [10.0, 20.0, 40.0] for way in [*PIPELINES, STEP_ALONE]}
    return rows_of(turns_of(rates | {RECORDS: [11.0, 21.0, 60.0], "chexspark": [30.0, 31.0, 32.0]}))


def test_a_gain_is_of_turns_of_the_same_round(rows):
    by_pipeline = {row["pipeline"]: row for row in rows if row["network"] == "resnet50"}
    assert len(rows) == len(NETWORKS) * (len(PIPELINES) + 1)
    assert by_pipeline[BASE]["gain"] == 0
    assert by_pipeline[RECORDS]["gain"] == pytest.approx(0.1)  # of 10, 5 and 50 %
    assert by_pipeline[RECORDS]["images_per_second"] == 21
    assert by_pipeline["chexspark"]["gain"] == pytest.approx(
        0.55
    )  # not 31 by 20 of the medians alone
    assert by_pipeline["chexspark"]["idle_share"] == 0.25
    assert [turn["images_per_second"] for turn in by_pipeline["chexspark"]["rounds"]] == [
        30,
        31,
        32,
    ]


def test_the_table_has_the_published_gain_beside_ours_and_says_whose_it_is(rows):
    text = pipelines_text(rows, "a title")
    assert all(text.count(name) >= len(NETWORKS) for name in PIPELINES.values())
    for network, name in NETWORKS.items():
        (line,) = re.findall(rf"^{name}.*?\n((?:.+\n)+)", text, re.M)
        published = re.findall(r"^(.*?)  .* ([+][0-9.]+%)  up to ([+][0-9.]+%)$", line, re.M)
        assert published == [(PIPELINES[RECORDS], "+10.0%", f"{PUBLISHED_GAINS[network]:+.1%}")]
    assert "+8.4%" in text and "+13.1%" in text and text.count("Dell EMC, SC19, of GPUs") == 2


def test_the_chart_has_every_bar_and_says_what_is_published(rows):
    chart = pipelines_chart(rows, "a title")
    words = ["".join(node.itertext()) for node in ElementTree.fromstring(chart).iter() if node.tag.endswith("}text")]  # fmt: skip
    for name in PIPELINES.values():
        assert words.count(name) == len(NETWORKS)
    assert "21.0, waits 25.0%" in words and "20.0 by itself" in words and "a title" in words
    assert any("published by Dell EMC" in word for word in words)


def test_what_waiting_costs_is_drawn_beyond_the_bar():
    def widths(idle_share):
        panel = FedPanel("a network", [FedBar(way, 10.0, idle_share) for way in "abc"], 20.0)
        shapes = re.findall(
            r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \nL [\d.]+ [\d.]+ \nL [\d.]+ [\d.]+ \nz\n" clip-path',
            fed_chart([panel], "a title", "published"),
        )
        return [float(right) - float(left) for left, right in shapes]

    trained, lost = widths(0.5)[:2]
    assert lost == pytest.approx(trained, rel=0.01)
    trained, lost = widths(0.2)[:2]
    assert lost == pytest.approx(trained / 4, rel=0.01)


def test_too_few_images_for_a_batch_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(pipelines, "make_store", lambda *_: None)
    monkeypatch.setattr(pipelines, "stored_labels", lambda _: dict.fromkeys(map(str, range(15))))
    config = BenchmarkConfig(suite="pipelines", out="out", images="/images")
    work = Work(types.SimpleNamespace(), True, tmp_path, config, (), 64, 64)
    with pytest.raises(UserError, match=r"^--images /images: ingest took 15 of 64 images"):
        measure_pipelines(work)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that a process of its own is to run; returns its name."""

    def write(code):
        (tmp_path / "told.py").write_text(
            "import sys\nfrom chexspark.benchmark.results import Results\n" + code
        )
        monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
        return "told"

    return write


def test_a_process_tells_its_measurements_and_what_libraries_print_is_none(module):
    name = module("r = Results()\nprint('noise')\nr.tell(n=int(sys.argv[1]))\nr.tell(e=1.5)\n")
    assert list(measurements(name, [7], {})) == [{"n": 7}, {"e": 1.5}]


def test_a_process_that_fails_is_told_with_its_last_words(module):
    name = module("Results().tell(n=1)\nsys.exit('out of ' + 'paper')\n")
    found = measurements(name, [], {"X": "y"})
    assert next(found) == {"n": 1}
    with pytest.raises(RunFailedError, match="the benchmark stopped:\nout of paper"):
        next(found)


def test_a_process_whose_measurements_are_no_longer_wanted_ends(module):
    name = module("import signal\nr = Results()\nr.tell(n=1)\nsignal.pause()\n")
    found = measurements(name, [], {})
    next(found)
    found.close()  # would wait for ever


def test_a_turn_takes_its_steps_after_one_that_is_not_timed():
    from chexspark.benchmark.fed_steps import train_fed

    trained = []
    steps = types.SimpleNamespace(train=trained.append)
    batches = iter([types.SimpleNamespace(weights=[1] * n + [0]) for n in (9, 1, 2, 3, 4)])
    fed = train_fed(steps, batches, 3)
    assert fed.images == 6 and 0 <= fed.waited <= fed.seconds
    assert [len(inputs.weights) for inputs in trained] == [10, 2, 3, 4]
    with pytest.raises(StopIteration):  # one is left, and the time is not over
        train_fed(steps, batches, 0, seconds=60.0)
