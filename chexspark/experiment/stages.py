"""The stages of an experiment and how long each took, kept in a file. Runs on the driver.

In: a name and what to do. Out: what it returned. A stage that an earlier attempt has finished is known by what is there;
its seconds are kept from then.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from chexspark.storage import Location
from chexspark.text_files import read_json

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Stages:
    """`seconds`: of each stage, over all attempts, by name."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self.seconds: dict[str, float] = read_json(place, str(place)) if place.is_file() else {}

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Do a stage; its time counts, also where it fails."""
        log.info("%s", name)
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.place.write_text(json.dumps(self.seconds, indent=1) + "\n")
