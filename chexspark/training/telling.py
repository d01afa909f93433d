"""What a rank says of its steps: to the driver, and on rank 0 to TensorBoard. Runs on ranks.

In: where the run stands, losses and rates. Out: events, and points of TensorBoard's curves.
"""

from chexspark.run.history import Row
from chexspark.run.moment import Moment
from chexspark.training.clock import Clock
from chexspark.training.events import Alive, Epoch, EventSender, Note, Starting, Step, Validating
from chexspark.training.tensorboard import TensorBoard

TENSORBOARD_STEPS = 10  # between two points of TensorBoard's curves


class Teller:
    """Speaks for one rank of a run of `epochs`."""

    def __init__(self, events: EventSender, rank: int, epochs: int) -> None:
        self.events, self.rank, self.epochs = events, rank, epochs
        self.board: TensorBoard | None = None

    def is_stopping(self) -> bool:
        """Whether the driver has asked to stop."""
        return self.events.stopping.is_set()

    def note(self, text: str) -> None:
        """Tell the user a line."""
        self.events.send(Note(text))

    def starting(self, what: str) -> None:
        """Tell the driver of what takes long before the first step."""
        self.events.send(Starting(what))

    def alive(self) -> None:
        """Tell the driver that this rank works."""
        self.events.send(Alive())

    def validating(self, epoch: int) -> None:
        """Tell the driver that an epoch's steps are done."""
        self.events.send(Validating(epoch))

    def step(self, at: Moment, loss: float, rate: float, clock: Clock) -> None:
        """Tell of the step ahead of `at`: from ranks but the first now and then."""
        steps, number = at.steps, at.step - 1
        if self.board and number % TENSORBOARD_STEPS == 0:
            self.board.step(
                at.epoch * steps + number,
                loss=loss,
                learning_rate=rate,
                images_per_second=clock.rate,
            )
        # The driver knows of each step in which rank 0 has been: where a run falls may tell why.
        if self.rank == 0 or clock.is_time_to_tell():
            clock.tells()
            left = (self.epochs - at.epoch) * steps - at.step
            self.events.send(
                Step(
                    epoch=at.epoch, epochs=self.epochs, step=at.step, steps=steps,
                    loss=at.mean_loss, learning_rate=rate, images_per_second=clock.rate,
                    seconds_left=left * clock.images / clock.rate,
                )
            )  # fmt: skip

    def epoch(self, row: Row, event: Epoch) -> None:
        """Tell of an epoch that is over; `row`: of the history."""
        if self.board:
            self.board.epoch(row)
        self.events.send(event)
