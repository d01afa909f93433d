"""Networks of the user's own: found without being run, sent along, trained, and named again to be evaluated."""

import hashlib
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyspark.sql import functions as F

from chexspark import evaluate, explain, export, predict, read_store, train
from chexspark.cluster.job import check_custom
from chexspark.config import TrainConfig
from chexspark.errors import RunFailedError, UserError
from chexspark.evaluation.inference import load_keras
from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.ml import ChestXrayClassifier, ChestXrayModel
from chexspark.models import LOGITS, build_model
from chexspark.models.cost import ToCount, counted_in_background
from chexspark.models.custom import fault_of, find_network
from chexspark.models.model_files import has_own_code
from chexspark.models.weights import fill_custom, load_weights
from chexspark.run.folder import run_folder
from chexspark.run.lineage import read_lineage
from chexspark.settings import build
from chexspark.store.manifest import read_manifest
from chexspark.user_code import find_code, load_function

SIZE = 32
NAME = "mynet:build"
NETWORK = """
    import tensorflow as tf
    import tf_keras as keras
    from pathlib import Path

    class Excite(keras.layers.Layer):  # with layers of its own
        def __init__(self, channels, **settings):
            super().__init__(**settings)
            self.channels, self.gate = channels, keras.layers.Dense(channels, "sigmoid")

        def call(self, features):
            return features * self.gate(tf.reduce_mean(features, [1, 2]))[:, None, None]

        def get_config(self):
            return {**super().get_config(), "channels": self.channels}

    def build(size, findings):
        image = keras.Input((size, size, 1))
        x = keras.layers.Rescaling(1 / 127.5, -1)(image)
        for channels in (8, 16):
            x = keras.layers.Conv2D(channels, 3, strides=2, use_bias=False)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(Excite(16)(x))
        return keras.Model(image, keras.layers.Dense(findings)(x))
"""


def write(folder, code=NETWORK, name="mynet.py"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(code))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the network in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


# Finding


def test_a_network_is_found_in_the_working_directory_and_not_run(folder):
    write(folder, "raise SystemExit('it ran')\ndef build(size, findings): ...")
    code = find_network(NAME)
    assert [path for path, _ in code.files] == ["mynet.py"] and len(code.digest) == 64
    assert "mynet" not in sys.modules and find_network("vgg16") is None


def test_all_of_a_package_is_sent_and_nothing_else(folder):
    for name in ("nets/__init__.py", "nets/chest/one.py", "nets/parts.py", "nets/.hidden/x.py", "other.py", "nets/data.bin"):  # fmt: skip
        write(folder, "", name)
    code = find_network("nets.chest.one:build")  # nets/chest has no __init__.py
    assert [path for path, _ in code.files] == ["nets/__init__.py", "nets/chest/one.py", "nets/parts.py"]  # fmt: skip
    write(folder, "x = 1", "nets/parts.py")
    assert find_network("nets.chest.one:build").digest != code.digest


def test_a_package_in_an_archive_is_the_same_code(folder, monkeypatch):
    """As ``--py-files`` brings it to the driver."""
    write(folder, "WIDTH = 7", "nets/parts.py")
    write(folder, "from nets.parts import WIDTH\ndef width(): return WIDTH", "nets/__init__.py")
    plain = find_code("--model", "nets:width")
    with zipfile.ZipFile(folder / "nets.zip", "w") as archive:
        for path, source in plain.files:
            archive.writestr(path, source)
    shutil.rmtree(folder / "nets")
    monkeypatch.syspath_prepend(str(folder / "nets.zip"))
    zipped = find_code("--model", "nets:width")
    assert zipped == plain
    shutil.move(folder / "nets.zip", folder / "gone.zip")
    assert load_function(zipped, "--model")() == 7


def test_an_edited_module_takes_the_place_of_the_one_before(folder):
    """In a notebook, and in the Python workers that Spark keeps."""
    found = []
    for width in (1, 2, 1):
        write(folder, f"from mine2.parts import WIDTH\ndef f(): return {width}, WIDTH", "mine2/a.py")  # fmt: skip
        write(folder, f"WIDTH = {width}", "mine2/parts.py")
        found.append(load_function(find_code("--model", "mine2.a:f"), "--model")())
    assert found == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize(
    "name, message",
    [
        ("vgg17", "is unknown; did you mean vgg16"),
        ("nowhere:build", "there is no module nowhere"),
        ("mynet.part:build", "mynet has no module mynet.part"),
        ("mynet:", "is no package.module:function"),
        ("../mynet:build", "is no package.module:function"),
        ("__main__:build", "file of its own"),
        ("sys:exit", "is no Python file"),
    ],
)
def test_a_name_that_leads_to_no_code_is_refused(folder, name, message):
    with pytest.raises(UserError, match=message) as raised:
        find_network(name)
    assert "\n" not in str(raised.value)


def test_a_package_too_large_to_send_is_refused(folder, monkeypatch):
    monkeypatch.setattr("chexspark.user_code.MOST_CODE", 10)
    with pytest.raises(UserError, match="too much to send"):
        find_network(NAME)


# What may be trained


def dense(keras, findings=3, **settings):
    return [keras.Input((SIZE, SIZE, 1)), keras.layers.Flatten(), keras.layers.Dense(findings, **settings)]  # fmt: skip


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda k: k.Sequential(dense(k)), None),
        (lambda k: k.Sequential([*dense(k), k.layers.Activation("linear")]), None),
        (lambda k: k.Sequential(dense(k, activation="sigmoid")), "ends in sigmoid: logits are needed"),
        (lambda k: k.Sequential([*dense(k), k.layers.Activation("sigmoid")]), "ends in sigmoid"),
        (lambda k: k.Sequential(dense(k, 4)), "returns .4,., but a logit for each of 3"),
        (lambda k: k.Sequential(dense(k, kernel_regularizer="l2")), "losses of its own"),
        (lambda k: k.Sequential(dense(k)[1:]), "not known before it runs"),
        (lambda k: k.Sequential([k.Input((SIZE, SIZE, 3)), *dense(k)[1:]]), r"takes .32, 32, 3., but .*gray_input"),
        (lambda k: k.Sequential([k.Input((64, 64, 1)), *dense(k)[1:]]), r"takes .64, 64, 1."),
        (lambda k: None, "returned NoneType"),
        (lambda k: __import__("keras").Sequential([]), "a model of Keras 3: import tf_keras"),
    ],
)  # fmt: skip
def test_only_a_keras_model_of_logits_is_trained(make, message):
    import re

    import tf_keras

    fault = fault_of(make(tf_keras), SIZE, 3)
    assert fault is None if message is None else re.search(message, fault), fault


def test_the_last_dense_layer_is_called_logits_and_layers_count_from_the_first(folder):
    code = find_network(NAME)
    names = [[layer.name for layer in build_model(NAME, SIZE, 5, code).layers] for _ in range(2)]
    assert names[0] == names[1] and names[0][-1] == LOGITS and "conv2d_1" in names[0]


@pytest.mark.parametrize(
    "source, message",
    [
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
        ("def built(size, findings): ...", "has no function build; did you mean built"),
        ("def build(size, findings): raise KeyError('x')", "failed: KeyError: 'x'"),
    ],
)
def test_what_the_code_does_wrong_is_one_line(folder, source, message):
    write(folder, source)
    with pytest.raises(UserError, match=f"--model mynet:build.*{message}") as raised:
        build_model(NAME, SIZE, 5, find_network(NAME))
    assert "\n" not in str(raised.value)


def test_a_model_that_does_not_come_back_is_told_before_spark_is_asked(folder):
    write(folder, NETWORK.replace("self.gate(", "keras.layers.Dense(16)("))
    with (
        counted_in_background(ToCount(NAME, SIZE, 5, 8, code=find_network(NAME))) as cost,
        pytest.raises(UserError, match="--model mynet:build: a saved model gives other logits"),
    ):
        cost()


def test_a_network_of_one_s_own_is_counted(folder):
    with counted_in_background(ToCount(NAME, SIZE, 5, 8, code=find_network(NAME))) as cost:
        found = cost()
    # Kernels of 9 and 9 × 8 inputs, γ and β, the gate's 16 × 16 + 16, the last layer's 16 × 5 + 5.
    assert found["trainable"] == 9 * 8 + 9 * 8 * 16 + 2 * (8 + 16) + 16 * 17 + 17 * 5
    assert found == cost()


# The whole way


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def run(spark, store, place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        out = str(place / "run")
        train(spark, data=store.path, run=out, model=NAME, epochs=1, batch_size=8, num_proc=2, threads=1)  # fmt: skip
    return run_folder(out)


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    write(place)
    return place


@pytest.mark.parametrize("settings", [{"head_rate": 10.0}, {"freeze_epochs": 1}])
def test_what_is_of_the_last_dense_layer_needs_one(settings):
    config = build(TrainConfig, {"data": "d", "run": "r", "model": NAME, **settings})
    check_custom(config, {"layers": [("conv2d", [[3, 3, 1, 2]]), (LOGITS, [[2, 3], [3]])]})
    name = "--" + next(iter(settings)).replace("_", "-")
    with pytest.raises(UserError, match=f"{name}: --model.{NAME} does not end in a dense layer"):
        check_custom(config, {"layers": [("conv2d", [[3, 3, 1, 2]])]})


def test_a_run_tells_the_name_and_the_digest_of_its_network(run, there):
    lineage = read_lineage(run)
    assert (lineage["network"], lineage["network_sha256"]) == (NAME, find_network(NAME).digest)
    assert yaml.safe_load(run.settings.read_text())["model"] == NAME


@pytest.mark.slow
def test_a_run_is_evaluated_when_its_network_is_named_again(spark, store, run, there, release):
    place = str(run)
    sys.modules.pop("mynet", None)
    for call in (
        lambda: evaluate(None, data=store.path, run=place),
        lambda: predict(None, images=str(release / "images"), run=place, out=str(there / "no")),
        lambda: explain(None, run=place, data=store.path, images="00000001_000.png"),
        lambda: export(None, run=place),
        lambda: ChestXrayModel.fromRun(place),
    ):
        with pytest.raises(UserError, match=f"name it again, (--model |model=){NAME}"):
            call()
    assert "mynet" not in sys.modules
    with pytest.raises(UserError, match="--model vgg16: --run was trained with mynet:build"):
        evaluate(None, data=store.path, run=place, model=[NAME, "vgg16"])
    found = evaluate(spark, data=store.path, run=place, model=NAME, bootstrap=100)
    table = found.predictions.toPandas().set_index("image_index")
    keras_model = ChestXrayModel.fromRun(place, model=NAME).getKerasModel()
    images = read_store(spark, store.path, "test").select("image_index", "image").toPandas()
    pixels = np.stack([np.frombuffer(b, np.uint8).reshape(SIZE, SIZE, 1) for b in images["image"]])
    expected = 1 / (1 + np.exp(-keras_model(pixels).numpy()[:, 0]))
    np.testing.assert_allclose(table.loc[images["image_index"], "prob_Atelectasis"], expected, atol=1e-5)  # fmt: skip
    assert run.table("examples").is_directory()  # it ends in global average pooling: it has maps
    predicted = predict(spark, images=str(release / "images"), run=place, model=NAME, out=str(there / "scores"))  # fmt: skip
    assert predicted.predictions.count() == 96
    assert export(spark, run=place, model=NAME, formats="savedmodel")


def test_changed_code_of_layers_of_one_s_own_is_refused(run, there):
    """What such a layer does is nowhere but in its code."""
    assert best_model(run, [NAME]).same_code
    write(there, NETWORK.replace('"sigmoid"', '"relu"'))
    with pytest.raises(UserError, match=r"--model mynet:build: its code has changed since .* layers of its own"):  # fmt: skip
        best_model(run, [NAME])


PLAIN = """
    import tf_keras as keras

    def build(size, findings):
        layers = [keras.layers.Flatten(), keras.layers.Dense(4, "relu"), keras.layers.Dense(findings)]
        return keras.Sequential([keras.Input((size, size, 1)), *layers])
"""


def test_changed_code_of_keras_s_layers_is_refused_where_it_builds_another_network(folder):
    def build(source):
        write(folder, source)
        return build_model(NAME, SIZE, 3, find_network(NAME))

    model = build(PLAIN)
    model.save(folder / "saved.keras")
    content = (folder / "saved.keras").read_bytes()
    given = content, hashlib.sha256(content).hexdigest(), "the run", NAME
    remarked = build(PLAIN + "\n    # a remark\n")
    fill_custom(remarked, *given, False)
    pairs = zip(model.get_weights(), remarked.get_weights(), strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs) and not has_own_code(content)
    with pytest.raises(RunFailedError, match=r"mynet:build has changed .* builds another network"):
        fill_custom(build(PLAIN.replace("relu", "tanh")), *given, False)
    with pytest.raises(RunFailedError, match="has changed since this job began"):
        fill_custom(remarked, content + b"x", *given[1:], True)
    fault = PLAIN.replace("Dense(4", "Dense(5")
    with pytest.raises(RunFailedError, match="the run does not fit the network of mynet:build"):
        fill_custom(build(fault), *given, True)
    build(PLAIN.replace("keras.layers.Flatten()", "keras.layers.Lambda(lambda x: x), keras.layers.Flatten()")).save(folder / "saved.keras")  # fmt: skip
    assert has_own_code((folder / "saved.keras").read_bytes())


def test_a_run_is_resumed_with_the_same_code_only(store, run, there, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(str(run), copy)
    (copy / "config.yaml").write_text(
        (copy / "config.yaml").read_text().replace("epochs: 1", "epochs: 2")
    )
    write(there, NETWORK + "\n    # a remark\n")
    with pytest.raises(UserError, match="was begun with other code of --model mynet:build"):
        train(None, data=store.path, run=str(copy), model=NAME, epochs=2, batch_size=8, threads=1)  # fmt: skip


def test_a_hostile_run_names_code_that_is_not_run(untrained_run, store, tmp_path, monkeypatch):
    run = untrained_run(3)
    (run / "config.yaml").write_text("layout_version: 2\nmodel: evil:build\n")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "open('ran', 'w')\ndef build(size, findings): ...", "evil.py")
    for model in ((), "vgg16", "mynet:build"):
        write(tmp_path)
        with pytest.raises(UserError, match="name it again, --model evil:build"):
            evaluate(None, data=store.path, run=run.path, model=model)
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_weights_of_an_own_network_go_by_layers(run, there):
    model = build_model(NAME, SIZE, len(FINDINGS), find_network(NAME))
    said = load_weights(model, NAME, str(run), FINDINGS)
    assert "logits of all 14 findings taken by name; fresh: excite" in said
    best = load_keras(best_model(run, [NAME]), "/CPU:0")
    for layer in ("conv2d_1", "batch_normalization", LOGITS):
        pairs = zip(*(m.get_layer(layer).get_weights() for m in (model, best)), strict=True)
        assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.slow
def test_the_estimator_takes_one_and_its_model_needs_it_named_again(spark, store, there, tmp_path):
    findings = read_manifest(store).findings
    picked = [findings[i] for i in (0, 4, 5, 8, 9)]
    frame = read_store(spark, store.path, "train").select(
        F.col("image_index").alias("name"), F.col("patient_id").alias("patient"),
        F.struct(
            F.lit("").alias("origin"), F.lit(SIZE).alias("height"), F.lit(SIZE).alias("width"),
            F.lit(1).alias("nChannels"), F.lit(0).alias("mode"), F.col("image").alias("data"),
        ).alias("image"),
        *(F.col(f"label_{f}").alias(f) for f in picked),
    )  # fmt: skip
    columns = {"imageCol": "image", "nameCol": "name", "patientCol": "patient"}
    model = ChestXrayClassifier(
        **columns, labelCols=picked, imageSize=SIZE, model=NAME, epochs=1, numProc=2, threads=1, batchSize=8,
        workDir=str(tmp_path / "work"), validationShare=0.3,
    ).fit(frame)  # fmt: skip
    first = model.transform(frame).orderBy("name").select("prob_" + picked[0]).toPandas()
    model.save(str(tmp_path / "saved"))
    loaded = ChestXrayModel.load(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="name it again"):
        loaded.transform(frame)
    again = loaded.setModel(NAME).transform(frame).orderBy("name").select(first.columns[0])
    np.testing.assert_array_equal(first, again.toPandas())
    assert ChestXrayModel.load(str(tmp_path / "saved"), model=NAME).thresholds == model.thresholds


ON_A_CLUSTER = """
import sys
from pyspark.sql import SparkSession
from chexspark import read_store
from chexspark.ml import ChestXrayClassifier, ChestXrayModel

store, work = sys.argv[1:]
spark = SparkSession.builder.getOrCreate()
findings = ["Mass", "Nodule", "Effusion", "Edema", "Hernia"]
frame = read_store(spark, store, "train").selectExpr(
    "image_index name", "patient_id patient", *(f"label_{f} {f}" for f in findings),
    "struct('' origin, height, width, 1 nChannels, 0 mode, image data) image",
)
model = ChestXrayClassifier(
    imageCol="image", nameCol="name", patientCol="patient", labelCols=findings, imageSize=32, model="nets.chest:build",
    epochs=1, numProc=2, threads=1, batchSize=8, workDir=work, validationShare=0.3,
).fit(frame)
model.save(work + "/saved")
try:
    ChestXrayModel.load(work + "/saved").transform(frame)
    raise SystemExit("it was taken without its network")
except Exception as error:
    assert "name it again" in str(error), error
again = ChestXrayModel.load(work + "/saved", model="nets.chest:build").transform(frame)
print(again.filter("prob_Mass > 0").count(), "scored")
"""


@pytest.mark.slow
def test_on_executors_that_have_neither_the_network_nor_what_it_imports(store, tmp_path):
    """Five findings, two ranks; both come by --py-files, and nothing lies in the working directory."""
    here, jobs = tmp_path / "here", Path(__file__).parent.parent / "jobs"
    here.mkdir()
    source = textwrap.dedent(NETWORK).replace("(8, 16)", "(WIDTH, 16)")
    with zipfile.ZipFile(tmp_path / "nets.zip", "w") as archive:
        archive.writestr("nets/chest.py", "from widths import WIDTH\n" + source)
        archive.writestr("nets/__init__.py", "")
    with zipfile.ZipFile(tmp_path / "widths.zip", "w") as archive:
        archive.writestr("widths.py", "WIDTH = 8\n")
    write(tmp_path, ON_A_CLUSTER, "estimator.py")

    def submit(*command):
        files = f"{tmp_path / 'nets.zip'},{tmp_path / 'widths.zip'}"
        words = ["spark-submit", "--master", "local-cluster[2,1,2048]", "--py-files", files]
        done = subprocess.run([*words, *map(str, command)], cwd=here, capture_output=True, text=True)  # fmt: skip
        return done.returncode, done.stdout + done.stderr[-3000:]

    run, named = tmp_path / "run", ("--model", "nets.chest:build")
    code, said = submit(
        jobs / "train.py", "--data", store.path, "--run", run, *named, "--epochs", 1, "--batch-size", 8,
        "--num-proc", 2, "--threads", 1,
    )  # fmt: skip
    assert code == 0, said
    given = ("--data", store.path, "--run", run, "--bootstrap", 100)
    code, said = submit(jobs / "evaluate.py", *given)
    assert code == 2 and "name it again, --model nets.chest:build" in said
    code, said = submit(jobs / "evaluate.py", *given, *named)
    assert code == 0, said
    code, said = submit(tmp_path / "estimator.py", store.path, tmp_path / "work")
    assert code == 0 and "68 scored" in said, said
