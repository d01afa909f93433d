"""The model of the best epoch: ``RUN/best``. Runs on rank 0; `settle` on the driver too.

In: a model and its row of the history. Out: ``model.keras`` and ``best.json``. They wait aside until
a checkpoint knows of their epoch, so that ``RUN/best`` is always of the history that is continued.

``model.keras`` is what Keras writes, a ZIP archive, with two members more, so that the file by itself says
what it is about: ``findings.json``, a list of the names of its outputs, and ``image.json``, how its images
are made: size, fit and bit_depth, and network_size where they are reduced to that. Keras passes over them.
"""

import dataclasses
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chexspark.errors import UserError
from chexspark.findings import names_fault
from chexspark.preparation import Preparation
from chexspark.run.folder import RunFolder
from chexspark.run.history import Row
from chexspark.run.lineage import check_network_size
from chexspark.storage import Location
from chexspark.text_files import RESTORE, is_whole, read_json, with_checksum

DIGEST = "model_sha256"  # in best.json
FINDINGS_MEMBER, IMAGE_MEMBER = "findings.json", "image.json"
NETWORK_SIZE = "network_size"  # in image.json, where images are reduced before the network
CONFIG = "config.json"  # of a .keras file
POLICIES = "keras.mixed_precision"  # the module of its mixed types
LONGEST_MEMBER = 1 << 20  # bytes that are read of a stranger's


def save_best(
    model: Any, run: RunFolder, figures: Row, findings: Sequence[str], preparation: Preparation,
    size: int | None = None,
) -> None:  # fmt: skip
    """Write the whole Keras `model` aside, then the figures of its epoch (its row of the history).

    Whatever arithmetic it was trained in, the file's is float32, as it is evaluated.

    `findings`: the names of the model's outputs, in their order; `preparation`: of its images; `size`: that they
    are reduced to before the network, pixels, if they are.
    """
    image: dict[str, Any] = dataclasses.asdict(preparation)
    if size not in (None, preparation.size):
        image[NETWORK_SIZE] = size
    run.waiting.make_directory()
    with tempfile.TemporaryDirectory(prefix="chexspark-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        make_float32(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(FINDINGS_MEMBER, json.dumps(list(findings)))
            archive.writestr(IMAGE_MEMBER, json.dumps(image))
        content = path.read_bytes()
        run.waiting_model.write_bytes(content)
    said = with_checksum({**figures, DIGEST: hashlib.sha256(content).hexdigest()})
    run.waiting_figures.write_text(json.dumps(said, indent=1) + "\n")


def make_float32(path: Path) -> None:
    """Rewrite a local ``.keras`` file whose layers compute in mixed types; the weights are float32 already."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(CONFIG))
        plain = in_float32(config)
        if plain == config:
            return
        aside = path.with_name("float32.keras")
        with zipfile.ZipFile(aside, "w") as written:
            for member in archive.infolist():
                is_config = member.filename == CONFIG
                written.writestr(member, json.dumps(plain) if is_config else archive.read(member))
    aside.replace(path)


def in_float32(config: Any) -> Any:
    """A model's config with float32 in the place of Keras's mixed policies."""
    if isinstance(config, dict):
        if config.get("class_name") == "Policy" and config.get("module") == POLICIES:
            return "float32"
        return {name: in_float32(value) for name, value in config.items()}
    return [in_float32(value) for value in config] if isinstance(config, list) else config


def model_findings(place: Location) -> tuple[str, ...] | None:
    """The names of a ``.keras`` file's outputs, in their order; None where the file does not say.

    Raises UserError for damage.
    """
    names = read_member(place, FINDINGS_MEMBER)
    if names is None:
        return None
    fault = names_fault(names) if isinstance(names, list) else "is no list"
    if fault:
        raise UserError(f"{place} is damaged: {FINDINGS_MEMBER} {fault}; copy it again")
    return tuple(names)


def model_preparation(place: Location) -> tuple[Preparation, int] | None:
    """How the images of a ``.keras`` file's model are made, and the size that its network takes; None where the file
    does not say.

    Raises UserError for damage.
    """
    facts = read_member(place, IMAGE_MEMBER)
    try:
        if facts is None:
            return None
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
        size = facts.pop(NETWORK_SIZE, facts.get("size"))
        preparation = Preparation.of(facts)
        check_network_size(size, preparation)
        return preparation, size
    except ValueError as error:
        raise UserError(f"{place} is damaged: {IMAGE_MEMBER}: {error}; copy it again") from error


def read_member(place: Location, name: str) -> Any:
    """A JSON member of a ``.keras`` file; None where it has none. Raises UserError for damage."""
    try:
        with place.filesystem.open_input_file(place.path) as file, zipfile.ZipFile(file) as archive:
            if name not in archive.namelist():
                return None
            with archive.open(name) as member:
                return json.loads(member.read(LONGEST_MEMBER))
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile) as error:
        fault = " ".join(str(error).split())
        raise UserError(f"{place} is damaged: {name} {fault}; copy it again") from error


def promote(run: RunFolder) -> None:
    """Put the model that waits, if there is one, into ``RUN/best``."""
    if run.waiting_figures.is_file():
        run.best.make_directory()
        # The model may be there already, after a death in between.
        if run.waiting_model.is_file():
            run.waiting_model.move_to(run.best_model)
        run.waiting_figures.move_to(run.best_figures)
        run.waiting.delete_directory()


def settle(run: RunFolder, history: list[Row]) -> None:
    """After a death: promote the model that waits if it is of this history, or delete it."""
    if run.waiting_figures.is_file():
        epoch = read_figures(run.waiting_figures).get("epoch")
        if any(row["epoch"] == epoch for row in history):
            promote(run)
    run.waiting.delete_directory()


def read_figures(place: Location) -> dict[str, Any]:
    """What a ``best.json`` says. Raises UserError for damage."""
    figures = read_json(place, str(place))
    if not is_whole(figures):
        raise UserError(f"{place} is damaged: its checksum does not fit; {RESTORE}")
    return figures


def best_digest(run: RunFolder) -> str | None:
    """The SHA-256 of ``model.keras`` as training wrote it; None for a run of before it was recorded.

    Raises UserError for damage.
    """
    if not run.best_figures.is_file():
        return None
    digest = read_figures(run.best_figures).get(DIGEST)
    if digest is not None and not isinstance(digest, str):
        raise UserError(f"{run.best_figures} is damaged: {DIGEST} is no text")
    return digest


def best_learning_rate(run: RunFolder) -> float | None:
    """The learning rate of the best epoch; None where there is none. Raises UserError for damage."""
    if not run.best_figures.is_file():
        return None
    figures = read_figures(run.best_figures)
    try:
        return float(figures["learning_rate"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{run.best_figures} is damaged: it has no learning_rate") from error
