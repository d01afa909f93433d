"""Class activation maps of a network, without a store."""

import numpy as np

from chexspark.evaluation import maps
from chexspark.evaluation.inference import Model
from chexspark.evaluation.localisation import enlarge, points_at

SIZE, SIDE = 128, 4  # pixels of the images, cells of the maps


def test_maps_of_amoebanet_d_are_its_logits_and_point_at_their_largest_cell(monkeypatch):
    import tf_keras as keras

    from chexspark.models import amoebanet_d

    keras.utils.set_random_seed(0)
    model = amoebanet_d.build(SIZE, 3, normal_cells=1, filters=16)
    monkeypatch.setattr(maps, "load_keras", lambda *_: model)
    mapper = maps.load_mapper(
        Model("/amoebanet-d", "its digest", ("A", "B", "C"), "amoebanet-d-4-256", SIZE), "CPU:0"
    )
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE), np.uint8)
    found = mapper(images)
    assert found.maps.shape == (4, 3, SIDE, SIDE)
    logits = model(images[..., None], training=False).numpy()
    bias = model.get_layer("logits").bias.numpy()
    np.testing.assert_allclose(found.maps.mean((2, 3)) + bias, logits, rtol=1e-4)
    cell, places = SIZE / SIDE, set()
    for activation in found.maps.reshape(-1, SIDE, SIDE):
        row, column = np.unravel_index(np.argmax(activation), activation.shape)
        inner = ((column + 0.2) * cell, (row + 0.2) * cell, 0.6 * cell, 0.6 * cell)
        assert points_at(enlarge(activation, SIZE, SIZE), [inner])
        places.add((row, column))
    assert any({row, column} & {0, SIDE - 1} for row, column in places), "one at the border"


def test_maps_of_convnext_are_its_logits_through_the_normalisation_of_the_averages(monkeypatch):
    import tf_keras as keras

    from chexspark.models import build_model

    keras.utils.set_random_seed(0)
    model = build_model("convnext_tiny", 64, 3)
    random = np.random.default_rng(0)
    for layer in model.layers:
        changed = [w + random.normal(0, 0.1, w.shape) for w in layer.get_weights()]
        layer.set_weights(changed)
    monkeypatch.setattr(maps, "load_keras", lambda *_: model)
    mapper = maps.load_mapper(
        Model("/next", "its digest", ("A", "B", "C"), "convnext_tiny", 64), "CPU:0"
    )
    images = random.integers(0, 256, (3, 64, 64), np.uint8)
    found = mapper(images)
    assert found.maps.shape == (3, 3, 2, 2) and found.maps.std((2, 3)).min() > 1e-3
    logits = model(images[..., None], training=False).numpy()
    bias = model.get_layer("logits").bias.numpy()
    np.testing.assert_allclose(found.maps.mean((2, 3)) + bias, logits, rtol=1e-3, atol=1e-3)


def test_a_network_without_pooling_has_no_maps(monkeypatch):
    import tf_keras as keras

    image = keras.Input((SIZE, SIZE, 1), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(2, name="logits")(flat))
    monkeypatch.setattr(maps, "load_keras", lambda *_: model)
    found = maps.load_mapper(Model("/flat", "its digest", ("A", "B"), "vgg16", SIZE), "CPU:0")
    assert isinstance(found, maps.NoMaps) and "global average pooling" in found.reason
