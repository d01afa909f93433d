"""RUN/best is of the history that goes on, whenever a rank dies."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from chexspark.errors import UserError
from chexspark.preparation import Preparation
from chexspark.run.best import model_findings, model_preparation, promote, save_best, settle
from chexspark.run.folder import run_folder
from chexspark.storage import Location
from chexspark.text_files import is_whole

NAMES = ["Lung Opacity", "Mass"]
HOW = Preparation(32, "pad", 12)


class Model:
    def __init__(self, content):
        self.content = content

    def save(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("content", self.content)


@pytest.fixture
def run(tmp_path):
    """A run whose best epoch is 0, and in which epoch 1 was better and waits."""
    run = run_folder(str(tmp_path / "run"))
    for epoch in (0, 1):
        if epoch:
            promote(run)
        figures = {"epoch": epoch, "val_auroc": 0.1 + 0.2}
        save_best(Model(f"weights {epoch}"), run, figures, NAMES, HOW)
    return run


def best(run):
    place = run.place / "best"
    with zipfile.ZipFile((place / "model.keras").path) as archive:
        content = archive.read("content").decode()
    figures = json.loads((place / "best.json").read_text())
    assert is_whole(figures) and figures.pop("checksum")
    assert (
        figures.pop("model_sha256")
        == hashlib.sha256((place / "model.keras").read_bytes()).hexdigest()
    )
    return content, figures


FIRST = ("weights 0", {"epoch": 0, "val_auroc": 0.1 + 0.2})
SECOND = ("weights 1", {"epoch": 1, "val_auroc": 0.1 + 0.2})


def test_a_model_is_promoted_once(run):
    assert best(run) == FIRST
    promote(run)
    promote(run)
    assert best(run) == SECOND and not run.waiting.exists()


def test_a_model_of_an_epoch_that_is_lost_is_deleted(run):
    settle(run, [{"epoch": 0}])
    assert best(run) == FIRST and not run.waiting.exists()


def test_a_model_of_an_epoch_that_is_known_is_promoted(run):
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == SECOND and not run.waiting.exists()


def test_a_model_that_was_not_written_whole_is_deleted(run):
    (run.waiting / "best.json").filesystem.delete_file((run.waiting / "best.json").path)
    promote(run)
    assert best(run) == FIRST
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == FIRST and not run.waiting.exists()


def test_a_death_between_the_two_files_is_made_good(run, monkeypatch):
    plain = Location.move_to

    def move_to(self, target):
        if target.path.endswith("best.json"):
            raise KeyboardInterrupt
        plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "move_to", move_to)
        with pytest.raises(KeyboardInterrupt):
            promote(run)
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == SECOND


def test_a_model_says_its_findings_and_keras_loads_it(tmp_path):
    import tf_keras as keras

    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    run = run_folder(str(tmp_path))
    save_best(model, run, {"epoch": 0}, NAMES, HOW)
    promote(run)
    assert model_findings(run.best_model) == tuple(NAMES)
    assert model_preparation(run.best_model) == (HOW, HOW.size)
    loaded = keras.models.load_model(run.best_model.path, safe_mode=True)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.save(run.best_model.path)
    assert model_findings(run.best_model) is None, "it does not say"
    assert model_preparation(run.best_model) is None


@pytest.mark.parametrize(
    "member", ["{", "[]", '{"size": 32, "fit": "fill"}', '{"size": "32"}', '{"size": 32, "x": 1}']
)
def test_a_model_whose_image_is_damaged_is_one_line(run, member):
    with zipfile.ZipFile(run.best_model.path, "w") as archive:
        archive.writestr("image.json", member)
    with pytest.raises(UserError, match=r"model.keras is damaged: image.json.*; copy it again$"):
        model_preparation(run.best_model)


@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        "mixed_float16",
        "float32",
    ],
)
@pytest.mark.slow
def test_a_saved_model_computes_in_float32_whatever_it_was_trained_in(policy, tmp_path):
    import tf_keras as keras

    from chexspark.models import build_model

    keras.mixed_precision.set_global_policy(policy)
    try:
        model = build_model("resnet59", 32, 2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    run = run_folder(str(tmp_path / "run"))
    save_best(model, run, {"epoch": 0}, ("A", "B"), HOW)
    loaded = keras.models.load_model(run.waiting_model.path, compile=False, safe_mode=True)
    plain = build_model("resnet59", 32, 2)
    plain.set_weights(model.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)
    np.testing.assert_array_equal(loaded(images).numpy(), plain(images).numpy())
    assert model_findings(run.waiting_model) == ("A", "B")
