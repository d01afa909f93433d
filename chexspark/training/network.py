"""The model that is trained, with its compiled steps and what they remember. Runs on ranks.

In: the built model, its steps, the ring. Out: variables for checkpoints, the model to save, and a
learning rate and a trunk that are as the epoch wants them.
"""

from typing import Any

from chexspark.models.weights import train_trunk
from chexspark.training.step import Steps


class Network:
    """`saved`: the model as it is saved; `steps` train it, or a twin whose normalisation is synchronised."""

    def __init__(self, saved: Any, steps: Steps) -> None:
        self.saved, self.steps = saved, steps
        self.frozen = False  # the trunk is
        self.rate: float | None = None  # the optimizer's

    def variables(self) -> list:
        """All that training changes, in a fixed order."""
        steps = self.steps
        return [*steps.model.variables, *steps.optimizer.variables(), *steps.state]

    def freeze_trunk(self, frozen: bool) -> None:
        """Freeze or free the trunk; where that is a change, the steps are compiled anew."""
        if frozen != self.frozen:
            self.frozen = frozen
            train_trunk(self.steps.model, not frozen)
            self.steps.compile()

    def set_rate(self, rate: float) -> None:
        """Give the optimizer a learning rate."""
        if rate != self.rate:
            self.rate = rate
            self.steps.optimizer.learning_rate.assign(rate)

    def to_save(self) -> Any:
        """The Keras model with the weights of now."""
        if self.saved is not self.steps.model:
            self.saved.set_weights(self.steps.model.get_weights())
        return self.saved
