"""Flipped bits in the files of a checkpoint and of ``best/``: refused, or the clean values."""

import json

import numpy as np
import pytest
from spoiling import Tally, flipped, mutants

from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.preparation import Preparation
from chexspark.run.best import best_learning_rate, promote, save_best
from chexspark.run.checkpoint import latest, save
from chexspark.run.folder import RunFolder
from chexspark.storage import locate

STATE = {
    "epoch": 1, "step": 3, "steps": 9, "losses": 0.1 + 0.2, "finished": False, "best": [0.75, -0.5],
    "plateau": {"learning_rate": 1e-4, "factor": 0.1, "patience": 2, "lowest": 0.3, "stalled": 1},
    "history": [{"epoch": 0, "val_loss": 0.25, "best": True}], "seed": 7, "global_batch": 32,
    "world_size": 2, "learning_rate": 1e-3,
}  # fmt: skip


def test_flipped_bits_of_a_checkpoint(tmp_path):
    rng, tally = np.random.default_rng(4), Tally("checkpoints")
    arrays = [
        rng.standard_normal((5, 7)).astype(np.float32),
        np.array(7),
        np.zeros(0),
        rng.random(300),
    ]
    folder = locate(str(tmp_path))
    save(folder, 12, arrays, STATE)
    files = sorted(path for path in (tmp_path / "step-12").iterdir())
    assert [path.name for path in files] == ["arrays.npz", "state.json"]

    def judge(found) -> tuple[str, str]:
        if found is None:
            return "passed over", ""
        same = all(a.tobytes() == b.tobytes() and a.dtype == b.dtype and a.shape == b.shape
                   for a, b in zip(found.arrays(), arrays, strict=True))  # fmt: skip
        same &= {name: found.state.get(name) for name in STATE} == STATE
        return ("clean values", "") if same else ("believed", "other values")

    for number in range(mutants(150)):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, rng))
        tally.attempt(path.name, lambda: latest(folder), judge, note=f"number {number}")
        path.write_bytes(whole)
    assert judge(latest(folder)) == ("clean values", "")
    tally.finish()


@pytest.fixture(scope="module")
def best_run(tmp_path_factory):
    """A run whose ``best/`` is as training writes it, of a network that is small."""
    import tf_keras as keras

    run = RunFolder(locate(str(tmp_path_factory.mktemp("best") / "run")))
    logits = keras.layers.Dense(len(FINDINGS), name="logits")
    model = keras.Sequential([keras.layers.Input((8,)), logits])
    figures = {"epoch": 0, "learning_rate": 1e-3, "val_auroc": 0.75, "best": True}
    save_best(model, run, figures, FINDINGS, Preparation(32))
    promote(run)
    run.settings.write_text("layout_version: 2\nmodel: vgg16\n")
    lineage = {"store_fingerprint": "0", "image_size": 32, "findings": list(FINDINGS)}
    run.lineage.write_text(json.dumps(lineage))
    return run


def test_flipped_bits_of_a_best_model(best_run, monkeypatch):
    monkeypatch.setattr("chexspark.evaluation.runs.PROMOTION_SECONDS", 0)  # nobody trains meanwhile
    rng, tally = np.random.default_rng(5), Tally("best")
    right = best_model(best_run), best_learning_rate(best_run)

    def judge(found) -> tuple[str, str]:
        return ("clean values", "") if found == right else ("believed", f"{found}")

    places = [best_run.best_model, best_run.best_figures]
    for number in range(mutants(60)):
        place = places[number % 2]
        whole = place.read_bytes()
        with open(place.path, "wb") as file:
            file.write(flipped(whole, rng))
        tally.attempt(
            place.path.rsplit("/", 1)[1],
            lambda: (best_model(best_run), best_learning_rate(best_run)),
            judge,
            note=f"number {number}",
        )
        with open(place.path, "wb") as file:
            file.write(whole)
    tally.finish()
