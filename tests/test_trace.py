"""Some steps recorded."""

from chexspark.storage import locate
from chexspark.training.ring import Alone


def test_so_many_steps_are_recorded_once(tmp_path):
    import tensorflow as tf

    from chexspark.training.trace import FIRST, Trace

    place = locate(str(tmp_path / "run" / "trace"))
    recorded = []
    with Trace(2, place, Alone()) as trace:
        for number in range(1, 8):
            trace.before_step()
            recorded += [number] if trace.recording else []
            tf.reduce_sum(tf.ones(8)).numpy()
            trace.after_step()
    assert recorded == [FIRST, FIRST + 1]
    (profile,) = (tmp_path / "run" / "trace").rglob("*.xplane.pb")
    assert profile.parent.parent.name == "profile" and b"Sum" in profile.read_bytes()


def test_a_stop_between_keeps_what_there_is(tmp_path):
    from chexspark.training.trace import FIRST, Trace

    with Trace(1000, locate(str(tmp_path / "trace")), Alone()) as trace:
        for _ in range(FIRST):
            trace.before_step()
            trace.after_step()
        assert trace.recording
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_process_of_too_few_steps_says_that_nothing_was_recorded(tmp_path, caplog):
    from chexspark.training.trace import Trace

    with Trace(5, locate(str(tmp_path / "trace")), Alone()) as trace:
        trace.before_step()
        trace.after_step()
    assert "--trace: 1 steps were taken" in caplog.text and not (tmp_path / "trace").exists()
