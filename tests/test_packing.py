"""Many tensors as one, and back."""

import numpy as np
import pytest

SHAPES = [(3, 3, 1, 64), (14,), (), (16,), (1024, 14), (5, 7)]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_what_is_packed_comes_back(kind):
    import tensorflow as tf

    from chexspark.training.packing import WIDTH, pack, unpack

    random = np.random.default_rng(0)
    values = [random.normal(size=shape).astype(kind) for shape in SHAPES]
    packed = tf.function(pack)([tf.constant(value) for value in values])
    rows = sum(-(-value.size // WIDTH) for value in values)
    assert packed.shape == (rows, WIDTH) and packed.dtype == kind
    total = sum(float(np.abs(value.astype(np.float64)).sum()) for value in values)
    np.testing.assert_allclose(np.abs(packed.numpy().astype(np.float64)).sum(), total)
    back = tf.function(unpack)(packed, SHAPES)
    for found, value in zip(back, values, strict=True):
        np.testing.assert_array_equal(found.numpy(), value)
        assert found.shape == value.shape


def test_messages_are_of_one_type_and_no_longer_than_they_may_be(monkeypatch):
    import tensorflow as tf

    from chexspark.training import horovod_ring

    monkeypatch.setattr(horovod_ring, "MESSAGE_BYTES", 40)
    made = [("float32", 4), ("int64", 1), ("float32", 5), ("float32", 2), ("float32", 100)]
    variables = [tf.Variable(tf.zeros(number, kind)) for kind, number in made]
    found = [[v.shape[0] for v in message] for message in horovod_ring.messages_of(variables)]
    assert found == [[4, 5], [2], [100], [1]]
    assert horovod_ring.messages_of([]) == []
