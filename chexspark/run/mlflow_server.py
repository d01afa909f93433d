"""Whether a job is to tell MLflow of itself, and how MLflow is asked. Runs on the driver.

In: the environment, and the active run of the calling thread. Out: a `Server`, or None. It is asked briefly, and
whatever it answers, or does not, is a note: no job ends by it.
"""

import contextlib
import enum
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.user_code import told

log = logging.getLogger(__name__)

URI, RUN_ID = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"  # variables of MLflow's own
TOO_MANY = 429  # the status of an answer to who asks too often
SECONDS = 10  # that an answer may take


class Answer(enum.Enum):
    """What became of something that MLflow was asked for."""

    DONE = "done"
    REFUSED = "refused"  # it would be so again
    FAILED = "failed"  # another time it may not


class Server:
    """MLflow as a job reaches it: its client, made when it is first asked, and the user's own run, if any."""

    def __init__(self, users_run: str | None = None) -> None:
        self.users_run = users_run
        self.noted: set[str] = set()  # what a note has told already

    def ask(self, what: str, function: Callable[[Any], object], seconds: float = SECONDS) -> Answer:
        """Call a function with MLflow's client; of a failure say, once, that `what` did not get there.

        `seconds`: that the answer to one request may take, unless the environment says it.
        """
        try:
            with patience(seconds):
                from mlflow import MlflowClient

                function(MlflowClient())
        except Exception as error:  # of any kind: no job ends by it
            self.note(what, told(error))
            return Answer.REFUSED if is_refusal(error) else Answer.FAILED
        return Answer.DONE

    def note(self, what: str, why: str) -> None:
        """Say, once, that something did not get to MLflow."""
        if what not in self.noted:
            self.noted.add(what)
            log.warning("note: MLflow did not take %s: %s", what, why)


def find_server() -> Server | None:
    """The MLflow that the environment names, or of the calling thread's active run; None where there is neither.

    Where MLflow is named and not installed, a note says so.
    """
    active = active_run()
    if not active and not os.environ.get(URI):
        return None
    if importlib.util.find_spec("mlflow") is None:
        log.warning(
            "note: %s is set and MLflow is not installed: run pip install 'chexspark[mlflow]'", URI
        )
        return None
    return Server(active or os.environ.get(RUN_ID))


def active_run() -> str | None:
    """The id of the run that the user has begun in this thread, if any; MLflow is not imported for it."""
    begun = getattr(sys.modules.get("mlflow"), "active_run", lambda: None)()
    return begun.info.run_id if begun else None


def check_registered(name: str | None, server: Server | None) -> None:
    """Raise UserError for a name of a registered model that MLflow would not take, or without MLflow."""
    if name is None:
        return
    if not name.strip() or set(name) & set("/:"):
        raise UserError(
            f"--registered-model={name}: MLflow takes no empty name, and none with / or :"
        )
    check_extra("mlflow", "--registered-model")
    if server is None:
        raise UserError(
            f"--registered-model={name} needs MLflow: set {URI}, or begin a run, mlflow.start_run()"
        )


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside, MLflow waits so long for an answer, and asks twice; unless the environment says it."""
    ours = {"MLFLOW_HTTP_REQUEST_TIMEOUT": f"{seconds:.0f}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def is_refusal(error: Exception) -> bool:
    """Whether the same would fail again: MLflow has refused it, or it failed here."""
    status_of = getattr(error, "get_http_status_code", None)  # an exception of MLflow's has it
    return status_of is None or (400 <= status_of() < 500 and status_of() != TOO_MANY)
