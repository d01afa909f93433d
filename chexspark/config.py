"""One frozen dataclass per stage. Runs anywhere.

The flags, their help and the signatures of the notebook functions are generated from the fields
below: a setting is written down once.
"""

from collections.abc import Callable
from dataclasses import dataclass

from chexspark.preparation import DEPTHS, FITS, LARGEST
from chexspark.settings import Frame, same_setting, setting

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "lars", "lamb")
SCHEDULES = ("constant", "plateau", "cosine", "cyclic")  # of the learning rate
# What label files and DICOM files may say of an image, and by which of it splits can be.
DICOM_FACTS = (
    "study",
    "series",
    "view",
    "sex",
    "age",
    "institution",
    "manufacturer",
    "device",
    "date",
)
SPLIT_FACTS = ("institution", "manufacturer", "device", "date")
SCALINGS = ("none", "linear", "sqrt")  # of the learning rate with the number of ranks

NETWORKS = (
    "the networks of your own that the runs were trained with, package.module:function: only what is named "
    "here is imported, whatever a run says"
)
VIEWS = ("flip", "crops", "scales")  # of an image, beside itself
AVERAGED = (
    "what is scored beside each image, and averaged with it, A,B,…: flip: the mirror image; crops: its corners and "
    "middle, enlarged; scales: 0.9 and 1.1 times its size; all three: 16 times the work"
)
PRIVATE = "make the folder that is written one that nobody else on this system can enter"


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Images and labels in, a store out."""

    images: tuple[str, ...] = setting(
        "folders (searched through), globs or archives (tar, zip) with PNG, JPEG or DICOM images",
        "input",
        path=True,
    )
    labels: tuple[str, ...] = setting(
        "a label file, or several, of a form that the header tells (NIH, CheXpert, MIMIC-CXR-JPG, PadChest, "
        "RSNA, VinDr-CXR, Open-i), or a plain one: image, patient, and a column per finding", "input",
        path=True)  # fmt: skip
    label_form: str | None = setting(
        "the form of the label file: the name of one of chexspark's own, or a YAML file that declares "
        "it; by default told by the header", "input", None)  # fmt: skip
    findings: tuple[str, ...] = setting(
        "the findings of the store, A,B,…, in this order; or columns: all columns of a plain label file "
        "that are no known fact; by default the form's, else NIH's 14, or those of the store that is added "
        "to", "input", (), listed=True)  # fmt: skip
    views: tuple[str, ...] = setting(
        "only images of these views, A,B,…: frontal, lateral, or as they are called there", "input", (),
        listed=True)  # fmt: skip
    dicom_columns: tuple[str, ...] = setting(
        "what is taken from DICOM files where the labels do not say it, A,B,…: " + ", ".join(DICOM_FACTS)
        + ", or all", "input", (), listed=True, choices=(*DICOM_FACTS, "all"))  # fmt: skip
    source: str | None = setting(
        "what the set of images is called, where several are put into one store; by default as the label "
        "form", "input", None)  # fmt: skip
    boxes: str | None = setting(
        "NIH's BBox_List CSV, or a label file with boxes; by default those of --labels, where it has some",
        "input", None, path=True)  # fmt: skip
    allow_missing: str = setting(
        "images: labels may lack an image; labels: images may lack a label; all: both, and unknown "
        "findings and duplicate names are left out", "input", "images",
        choices=("none", "images", "labels", "all"))  # fmt: skip
    max_bad: float = setting(
        "share of the images that may be refused before the job fails", "input", 0.05,
        minimum=0, maximum=1)  # fmt: skip
    out: str = setting("where the store is written", "output", path=True)
    private: bool = setting(PRIVATE, "output", False)
    size: int = setting("height and width of the stored images, pixels", "output", 320,
                        minimum=32, maximum=LARGEST)  # fmt: skip
    fit: str | None = setting(
        "how an image that is not square becomes one: pad: black around it; stretch: squashed; crop: its "
        "middle; by default that of the store that is added to, else stretch for NIH's labels and pad for "
        "others", "output", None, choices=FITS)  # fmt: skip
    bit_depth: int | None = setting(
        "bits of the detector whose images are 16-bit PNGs, 8 to 16; by default that of the store that is "
        "added to, else for each file the fewest of 8, 10, 12, 14 and 16 that hold its values", "output",
        None, minimum=DEPTHS[0], maximum=DEPTHS[-1])  # fmt: skip
    rows_per_group: int = setting("images per Parquet row group", "output", 64, minimum=1)
    append: bool = setting("add what is new to the store that is there", "output", False)
    split: str = setting(
        "by patient: random 70/10/20, or official after NIH's two lists or the label file's own column",
        "split", "random", choices=("random", "official"))  # fmt: skip
    split_by: str = setting(
        "what tells train from test, beside the patient: test is of other institutions, manufacturers or "
        "devices, or of a later date", "split", "patient", choices=("patient", *SPLIT_FACTS),
        only_with={"split": ("random",)})  # fmt: skip
    split_seed: int = setting(
        "seed of the random split, and of the validation part of the official one", "split", 0
    )
    split_lists: str | None = setting(
        "folder of train_val_list.txt and test_list.txt; by default where the labels are", "split",
        None, path=True, only_with={"split": ("official",)})  # fmt: skip
    split_file: str | None = setting(
        "a custom split of all images instead: a CSV with patient (or image) and split",
        "split",
        None,
        path=True,
        not_with=("split", "split_by", "split_lists", "split_seed"),
    )


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """A DataFrame of images and labels in, a store out."""

    image: str = setting(
        "column of the images: bytes of PNG, JPEG or DICOM files, Spark's image struct, or paths", "input",
        "image")  # fmt: skip
    labels: tuple[str, ...] = setting(
        "a column per finding, or one column with an array or vector of all: 1, 0, and -1, NaN or null for "
        "unknown", "input", listed=True)  # fmt: skip
    findings: tuple[str, ...] = setting(
        "the findings of the labels, in their order; by default the names of their columns, without label_",
        "input", (), listed=True)  # fmt: skip
    patient: str | None = setting(
        "column of the patient, texts or whole numbers; without it every row is a patient of its own",
        "input", None)  # fmt: skip
    name: str | None = setting(
        "column of what an image is called in the store; by default the end of its path, or what it and its "
        "patient are", "input", None)  # fmt: skip
    max_bad: float = same_setting(IngestConfig, "max_bad")
    out: str = same_setting(IngestConfig, "out")
    private: bool = same_setting(IngestConfig, "private")
    size: int = same_setting(IngestConfig, "size")
    fit: str | None = same_setting(
        IngestConfig, "fit",
        "how an image that is not square becomes one: pad: black around it, the default; stretch: squashed; "
        "crop: its middle")  # fmt: skip
    bit_depth: int | None = same_setting(
        IngestConfig, "bit_depth",
        "bits of the detector whose images are 16-bit PNGs, 8 to 16; by default for each file the fewest of 8, "
        "10, 12, 14 and 16 that hold its values")  # fmt: skip
    rows_per_group: int = same_setting(IngestConfig, "rows_per_group")
    validation: str | None = setting(
        "column that is true for the images of the validation split; the others are for training", "split",
        None, not_with=("validation_share", "split_seed"))  # fmt: skip
    validation_share: float = setting(
        "share of the patients that are for validation, by a hash of the patient", "split", 0.125,
        above=0, maximum=0.9)  # fmt: skip
    split_seed: int = same_setting(
        IngestConfig, "split_seed", "seed of the hash by which patients are chosen for validation"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A store in, a trained model out."""

    data: str = setting("the store that ingest wrote", "input and output", path=True)
    run: str = setting(
        "folder of this run: a new one, or that of a run to resume",
        "input and output",
        path=True,
    )
    private: bool = setting(PRIVATE, "input and output", False)
    model: str = setting(
        "the network, by its name; or one of your own, package.module:function, which takes the size of the "
        "images and the number of findings and returns a Keras model of logits", "model", "densenet121")  # fmt: skip
    size: int | None = setting(
        "height and width that images are reduced to before the network, pixels; by default those of the store, which "
        "may be larger", "model", None, minimum=32, maximum=LARGEST)  # fmt: skip
    weights: str | None = setting(
        "what to start from: imagenet, once its file was given; a file of Keras applications; another .keras or .h5 "
        "file of this network; for densenet121 a .pth, .pt or .safetensors file of PyTorch; a run, or its .keras file, "
        "of an earlier training; or none, which is random weights", "model", None, path=True,
        words=("imagenet", "none"))  # fmt: skip
    weights_findings: tuple[str, ...] = setting(
        "the findings of the outputs of --weights, A,B,,C,…, in order, blank where one has none, for a file of others "
        "that does not say them; then its last layer is taken too, by their names", "model", (), listed=True,
        empty=True)  # fmt: skip
    freeze_epochs: int = setting(
        "epochs at the start in which only the last layer is trained", "model", 0, minimum=0
    )
    recipe: str | None = setting(
        "a recipe by name, or a YAML file of settings; what is given beside it goes before it", "recipe", None)  # fmt: skip
    epochs: int = setting("times every training image is seen", "recipe", 10, minimum=1)
    batch_size: int = setting("images per rank and step", "recipe", 16, minimum=1)
    accumulate: int = setting(
        "parts that a rank's batch is worked through in, to save memory", "recipe", 1, minimum=1
    )
    optimizer: str = setting(
        "how weights follow gradients", "recipe", "adam",
        choices=OPTIMIZERS)  # fmt: skip
    weight_decay: float = setting(
        "of kernels; biases and normalisation are left alone; adamw and lamb: decoupled from the gradient, others: part "
        "of it", "recipe", 0.0, minimum=0)  # fmt: skip
    momentum: float = setting("of sgd (Nesterov's), rmsprop and lars", "recipe", 0.9,
                              minimum=0, maximum=1, only_with={"optimizer": ("sgd", "rmsprop", "lars")})  # fmt: skip
    clip_norm: float | None = setting(
        "longest gradient, over all weights together", "recipe", None, above=0
    )
    loss: str = setting(
        "weighted: rare classes weigh more, as in CheXNet; focal: hard images weigh more; asymmetric: hard negatives "
        "weigh more, and easy ones nothing", "recipe", "cross_entropy",
        choices=("cross_entropy", "weighted", "focal", "asymmetric"))  # fmt: skip
    focal_gamma: float = setting(
        "how much more", "recipe", 2.0, minimum=0, only_with={"loss": ("focal",)}
    )
    gamma_negative: float = setting("how much more, of negatives", "recipe", 4.0, minimum=0,
                                    only_with={"loss": ("asymmetric",)})  # fmt: skip
    gamma_positive: float = setting("how much more hard ones weigh, of positives", "recipe", 0.0, minimum=0,
                                    only_with={"loss": ("asymmetric",)})  # fmt: skip
    clip: float = setting(
        "the probability up to which negatives weigh nothing; it is taken off that of the others", "recipe", 0.05,
        minimum=0, maximum=0.5, only_with={"loss": ("asymmetric",)})  # fmt: skip
    label_smoothing: float = setting("0.1: train towards 0.05 and 0.95", "recipe", 0.0,
                                     minimum=0, maximum=0.5)  # fmt: skip
    ema: float | None = setting(
        "validate and keep a moving average of the weights, with this decay per step, and a lower one in the first steps", "recipe",
        None, above=0, maximum=0.99999)  # fmt: skip
    best_by: str = setting(
        "what of the validation split makes an epoch the best: the highest mean AUROC, or the lowest "
        "loss", "recipe", "auroc", choices=("auroc", "loss"))  # fmt: skip
    early_stop: int | None = setting(
        "stop after so many epochs without a better one", "recipe", None, minimum=1
    )
    learning_rate: float = setting(
        "at one rank, before scaling, warm-up and schedule", "schedule", 1e-3, above=0
    )
    learning_rate_from_weights: bool = setting(
        "take it from the run that --weights names: that of its best epoch", "schedule", False
    )
    head_rate: float = setting(
        "the last layer's learning rate, as a multiple of the others': 10, say, where only that starts fresh", "schedule",
        1.0, above=0)  # fmt: skip
    schedule: str = setting(
        "plateau: divided when validation loss stalls", "schedule", "plateau",
        choices=SCHEDULES)  # fmt: skip
    scale_learning_rate: str = setting(
        "multiply it by the number of ranks, or its root", "schedule", "none",
        choices=SCALINGS)  # fmt: skip
    warmup_epochs: float = setting(
        "in which the learning rate rises to where the schedule begins: its full height, or the trough "
        "of a cyclic one",
        "schedule",
        0.0,
        minimum=0,
    )
    cycle_epochs: float = setting("length of a cycle of the cyclic schedule", "schedule", 2.0,
                                  above=0, only_with={"schedule": ("cyclic",)})  # fmt: skip
    plateau_factor: float = setting(
        "the learning rate is multiplied by this when validation loss stalls", "schedule", 0.1,
        above=0, maximum=1, only_with={"schedule": ("plateau",)})  # fmt: skip
    plateau_patience: int = setting(
        "epochs without a lower validation loss before that happens",
        "schedule",
        1,
        minimum=1,
        only_with={"schedule": ("plateau",)},
    )
    seed: int = setting(
        "seed of the weights, of the order of images and of their changes", "recipe", 0, minimum=0
    )
    flip: bool = setting(
        "left and right change places in half of the images", "augmentation", False
    )
    shift: float = setting(
        "up to this share of the image's height and width", "augmentation", 0.0,
        minimum=0, maximum=0.5)  # fmt: skip
    scale: float = setting("0.1: from 0.9 to 1.1 times the size", "augmentation", 0.0,
                           minimum=0, maximum=0.5)  # fmt: skip
    rotation: float = setting("up to this many degrees, either way", "augmentation", 0.0,
                              minimum=0, maximum=180)  # fmt: skip
    shear: float = setting(
        "up to this many degrees, either way, by which upright lines lean", "augmentation", 0.0,
        minimum=0, maximum=45)  # fmt: skip
    crop: float = setting(
        "0.6: a rectangle of 0.6 to 1.0 of the image's area is cut out and enlarged; 1.0: none is", "augmentation",
        1.0, above=0, maximum=1)  # fmt: skip
    brightness: float = setting(
        "added or taken, up to this share of the range from black to white", "augmentation", 0.0,
        minimum=0, maximum=1)  # fmt: skip
    contrast: float = setting(
        "0.1: distances from the image's mean times 0.9 to 1.1", "augmentation", 0.0,
        minimum=0, maximum=1)  # fmt: skip
    tone: float = setting(
        "0.3: gray levels, from 0 to 1, to the power of 1/1.3 to 1.3", "augmentation", 0.0,
        minimum=0, maximum=3)  # fmt: skip
    callbacks: tuple[str, ...] = setting(
        "functions of your own, package.module:function, which the driver calls after every epoch", "callbacks",
        ())  # fmt: skip
    on_epoch: Callable | None = setting(
        "the same, a function; from Python only", "callbacks", None, function=True
    )
    registered_model: str | None = setting(
        "the registered model of MLflow that the best model becomes a version of; needs MLFLOW_TRACKING_URI, or an "
        "active run of MLflow", "tracking", None)  # fmt: skip
    precision: str = setting(
        "of the arithmetic; weights are float32 in all; auto: bfloat16 where the processors of all ranks have it in "
        "hardware, else float32", "speed", "auto",
        choices=("auto", "float32", "mixed_float16", "mixed_bfloat16"))  # fmt: skip
    xla: bool = setting("compile the network with XLA", "speed", False)
    compression: str = setting("of gradients on the wire", "speed", "none",
                               choices=("none", "fp16"))  # fmt: skip
    sync_batch_norm: bool = setting(
        "normalise over the batches of all ranks together", "speed", False
    )
    fusion_mb: int | None = setting(
        "Horovod's fusion buffer, MiB; by default none: gradients travel in messages of 4 MiB",
        "speed",
        None,
        minimum=1,
        only_with={"autotune": (False,)},
    )
    autotune: bool = setting("let Horovod look for its fastest settings", "speed", False)
    cache_mb: int = setting(
        "memory per rank to keep what was read of the store, for later epochs, MiB", "speed", 0,
        minimum=0)  # fmt: skip
    checkpoint_steps: int = setting(
        "a checkpoint after so many steps, and after every epoch; 0: only then", "survival", 500,
        minimum=0)  # fmt: skip
    max_restarts: int = setting(
        "times that a run is resumed after a rank died or stalled", "survival", 3, minimum=0
    )
    min_proc: int | None = setting(
        "resume with as few ranks as these where slots are gone; by default with all", "survival",
        None, minimum=1)  # fmt: skip
    stall_seconds: float = setting(
        "a rank that does nothing for so long is treated as dead; until its first step it has 900 or more",
        "survival",
        300.0,
        above=0,
    )
    deterministic: bool = setting(
        "the same weights bit for bit in every run; slower on GPUs", "survival", False
    )
    dry_run: bool = setting(
        "print what would run (steps, memory, learning rate) and start nothing", "cluster", False,
        formerly="plan")  # fmt: skip
    at: tuple[int, ...] = setting(
        "16,64,256: with --dry-run, how the training would go at so many ranks, from a minute's measurement of its step "
        "and its messages on the ranks that Spark has room for", "cluster", (), listed=True, minimum=1,
        only_with={"dry_run": (True,)})  # fmt: skip
    num_proc: int | None = setting(
        "ranks; by default as many as Spark has task slots", "cluster", None, minimum=1
    )
    wait_seconds: float = setting(
        "how long to wait, while Spark is alive, for executors, task slots and tasks to start",
        "cluster", 300.0, above=0)  # fmt: skip
    timings: bool = setting(
        "print the seconds of each stage, from the command to the model", "cluster", False
    )
    trace: int | None = setting(
        "record so many steps in RUN/trace: TensorFlow's profile and Horovod's timeline", "cluster", None,
        minimum=1)  # fmt: skip
    threads: int | None = setting(
        "threads per rank; by default the cores of a host shared among its ranks", "cluster", None,
        minimum=1)  # fmt: skip

    @property
    def policy(self) -> str:
        """Keras's, of the precision: float32 as long as nobody has asked the hosts what ``auto`` comes to."""
        return "float32" if self.precision == "auto" else self.precision


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A store and a space of settings in, trials of training and the best settings out."""

    data: str = same_setting(TrainConfig, "data")
    space: str = setting(
        "what is searched: a YAML file like a recipe, with lists and ranges {low, high, log, step} for values",
        "input and output", path=True)  # fmt: skip
    out: str = setting(
        "folder of the search: a new one, or that of a search to resume",
        "input and output",
        path=True,
    )
    private: bool = setting(PRIVATE, "input and output", False)
    trials: int = setting("how many there are to be in all", "search", 20, minimum=1)
    parallel: int = setting(
        "trials that run at once, each on ranks of its own", "search", 1, minimum=1
    )
    prune: bool = setting(
        "end a trial whose validation AUROC is below the median of those before it, after the same epoch", "search",
        True)  # fmt: skip
    seed: int = setting("seed of the choice of settings", "search", 0, minimum=0)
    num_proc: int | None = setting(
        "ranks of a trial; by default as many as Spark has task slots", "cluster", None, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A store and a run, or anybody's scores and labels, in; predictions and metrics out."""

    data: str | None = setting(
        "the store that ingest wrote", "input: a store and a run", None, path=True
    )
    run: tuple[str, ...] = setting(
        "the run that train wrote, where predictions and metrics go; several are an ensemble, whose "
        "probabilities are averaged, and need --out; with --predictions, the runs that gave them, so that "
        "their training patients are not among these", "input: a store and a run", (), path=True)  # fmt: skip
    model: tuple[str, ...] = setting(NETWORKS, "input: a store and a run", ())
    split: str = setting("which patients to score", "input: a store and a run", "test",
                         choices=("train", "val", "test"))  # fmt: skip
    tta: tuple[str, ...] = setting(
        AVERAGED, "input: a store and a run", (), listed=True, choices=VIEWS, formerly="flip"
    )
    fit_weights: bool = setting(
        "weigh the runs of an ensemble so that the cross-entropy of the validation split is lowest; by default all "
        "weigh the same", "input: a store and a run", False)  # fmt: skip
    batch_size: int = setting(
        "images per step of inference", "input: a store and a run", 32, minimum=1
    )
    predictions: str | Frame | None = setting(
        "scores that are there already, Parquet or CSV: image_index or Image Index, and a column per "
        "finding, with or without prob_; in a notebook also a DataFrame", "input: or scores", None,
        frame=True, path=True)  # fmt: skip
    labels: str | None = setting(
        "a label file of any form that ingest reads; not needed where the scores have label_ columns",
        "input: or scores", None, path=True)  # fmt: skip
    label_form: str | None = setting(
        "the form of the label file, as ingest takes it; by default told by the header",
        "input: or scores", None)  # fmt: skip
    validation_predictions: str | Frame | None = setting(
        "scores of other patients, from which thresholds and scaling are fitted", "input: or scores",
        None, frame=True, path=True)  # fmt: skip
    bootstrap: int = setting(
        "resamples of the patients for the 95 %% intervals", "evaluation", 2000, minimum=100
    )
    by: str = setting(
        "what is counted: images, or studies, whose images' scores are put together", "evaluation", "image",
        choices=("image", "study"))  # fmt: skip
    aggregate: str = setting(
        "a study's score: the mean or the largest of its images'", "evaluation", "mean",
        choices=("mean", "max"), only_with={"by": ("study",)})  # fmt: skip
    against: str | Frame | None = setting(
        "another evaluated run, or scores, to compare with on the same images", "evaluation", None,
        frame=True, path=True)  # fmt: skip
    out: str | None = setting("where to write; by default the run", "output", None, path=True)
    private: bool = setting(PRIVATE, "output", False)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A run in, one HTML file and a model card out."""

    run: tuple[str, ...] = setting(
        "the run that train and evaluate wrote, or the --out of evaluate, and then the run that was evaluated; "
        "further runs are drawn in the scaling chart", "input", path=True)  # fmt: skip
    split: str | None = setting(
        "the split to report; by default test, or what was evaluated", "input", None
    )


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Images without labels and a run in, probabilities out."""

    images: tuple[str, ...] = setting(
        "folders (searched through), globs or archives (tar, zip) with PNG, JPEG or DICOM images",
        "input",
        path=True,
    )
    run: tuple[str, ...] = setting(
        "the run that train wrote; several are an ensemble, whose probabilities are averaged",
        "input",
        path=True,
    )
    model: tuple[str, ...] = setting(NETWORKS, "input", ())
    tta: tuple[str, ...] = setting(
        AVERAGED, "input", (), listed=True, choices=VIEWS, formerly="flip"
    )
    batch_size: int = setting("images per step of inference", "input", 32, minimum=1)
    bit_depth: int | None = setting(
        "bits of the detector whose images are 16-bit PNGs, 8 to 16; by default as the run's store was made",
        "input", None, minimum=DEPTHS[0], maximum=DEPTHS[-1])  # fmt: skip
    out: str = setting(
        "Parquet folder to write, new or empty; what was refused goes beside it, to OUT-quarantine",
        "output", path=True)  # fmt: skip
    private: bool = setting(PRIVATE, "output", False)


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """A run and images in, pictures with class activation maps out."""

    run: str = setting("the run that train wrote", "input", path=True)
    model: tuple[str, ...] = setting(NETWORKS, "input", ())
    images: tuple[str, ...] = setting(
        "names of images in the store; without --data, image files, folders or globs", "input"
    )
    data: str | None = setting("the store that has the images", "input", None, path=True)
    bit_depth: int | None = setting(
        "bits of the detector whose image files are 16-bit PNGs, 8 to 16; by default as the run's store was "
        "made", "input", None, minimum=DEPTHS[0], maximum=DEPTHS[-1], not_with=("data",))  # fmt: skip
    findings: tuple[str, ...] = setting(
        "which findings to draw, A,B,…; by default the one with the highest probability, and those that "
        "the label names", "output", (), listed=True)  # fmt: skip
    out: str | None = setting("folder to write to; by default RUN/maps", "output", None, path=True)
    private: bool = setting(PRIVATE, "output", False)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run in, its best model in other formats out."""

    run: str = setting("the run that train wrote", "input", path=True)
    model: tuple[str, ...] = setting(NETWORKS, "input", ())
    data: str | None = setting(
        "the store whose images the exported models are verified on; by default synthetic X-rays",
        "input", None, path=True)  # fmt: skip
    formats: tuple[str, ...] = setting(
        "savedmodel, onnx", "output", ("savedmodel", "onnx"), choices=("savedmodel", "onnx")
    )
    out: str | None = setting(
        "folder to write to; by default RUN/export", "output", None, path=True
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A suite's name in, its measurements out."""

    suite: str = setting(
        "reader: storage to TensorFlow, beside the alternatives; train: the loop beside its bare step; "
        "start: a whole training job; scaling: whole trainings at several numbers of ranks; pipelines: training "
        "from several forms of images; distribution: ring, parameter server and Spark's shuffle", "benchmark",
        choices=("reader", "train", "start", "scaling", "pipelines", "distribution"))  # fmt: skip
    out: str = setting("folder for the table (JSON) and the chart (SVG) or page", "benchmark", path=True)  # fmt: skip
    images: str | None = setting(
        "local folder of full-size PNG X-rays; by default synthetic ones", "benchmark", None, path=True,
        only_with={"suite": ("reader", "pipelines")})  # fmt: skip
    data: str | None = setting(
        "a store to train on; by default one of synthetic images, which is written into the folder", "benchmark",
        None, path=True, only_with={"suite": ("scaling",)})  # fmt: skip
    ranks: tuple[int, ...] = setting(
        "1,2,4: the numbers of ranks that are measured; by default 1, 2, 4 … up to Spark's task slots", "benchmark",
        (), listed=True, minimum=1, only_with={"suite": ("scaling", "distribution")})  # fmt: skip
    model: str = setting(
        "the network, by its name", "benchmark", "densenet121",
        only_with={"suite": ("scaling", "distribution")})  # fmt: skip
    epochs: int = setting("of each training", "benchmark", 4, minimum=2,
                          only_with={"suite": ("scaling",)})  # fmt: skip
    batch_size: int = setting("images per rank and step", "benchmark", 16, minimum=1,
                              only_with={"suite": ("scaling", "distribution")})  # fmt: skip
    count: int | None = setting(
        "images; by default 4096 for reader, 1200 for scaling, 800 for start, else 128", "benchmark", None,
        minimum=64, not_with=("data",))  # fmt: skip
    size: int | None = setting(
        "pixels; by default 256 for reader, 224 for train and pipelines, else 64", "benchmark", None, minimum=32,
        not_with=("data",))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """NIH's download in, every figure of some recipes over several seeds out."""

    nih: str = setting(
        "the folder of NIH ChestX-ray14 as it is downloaded: images, labels and both lists", "input", path=True
    )  # fmt: skip
    weights: str | None = setting(
        "ImageNet weights to start from, as for train: a file, imagenet, or none", "input", None, path=True,
        words=("imagenet", "none"))  # fmt: skip
    out: str = setting("where everything is kept: store, runs, the page and its figures", "output", path=True)  # fmt: skip
    private: bool = setting(PRIVATE, "output", False)
    quick: bool = setting(
        "try everything on a part of the images, small, for two epochs, from random weights", "experiment", False
    )  # fmt: skip
    recipes: tuple[str, ...] = setting(
        "which recipes are trained, all at once, since they share a store; official-ensemble is four networks", "experiment", ("chexnet", "official-best"),
        listed=True, choices=("chexnet", "official-best", "official-ensemble"))  # fmt: skip
    seeds: int | None = setting(
        "trainings of each recipe; by default 3, of a try-out 2", "experiment", None, minimum=1)  # fmt: skip
    num_proc: int | None = setting(
        "ranks; by default as many as Spark has task slots", "cluster", None, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """A store and levers in, what each lever does to AUROC out."""

    data: str | None = setting(
        "the store that ingest wrote; without it, synthetic X-rays with a tenth of their labels turned over, and signs "
        "that are findings on one side only", "input", None, path=True)  # fmt: skip
    levers: str | None = setting(
        "a YAML file of settings of all trainings (base) and what each lever changes (levers); by default those of the "
        "best published runs", "input", None, path=True)  # fmt: skip
    out: str = setting("where everything is kept: runs, the page and its figures", "output", path=True)  # fmt: skip
    private: bool = setting(PRIVATE, "output", False)
    split: str = setting("whose AUROC is told", "experiment", "test", choices=("val", "test"))
    seeds: int = setting(
        "trainings with each lever, with the seeds 0, 1 and so on", "experiment", 5, minimum=2
    )
    num_proc: int | None = setting(
        "ranks; by default as many as Spark has task slots", "cluster", None, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """A synthetic release of chest phantoms out."""

    out: str = setting("folder to write to; must be new or empty", "output", path=True)
    images: int = setting("number of images", "output", 1200, minimum=1)
    size: int = setting("height and width of the images, pixels", "output", 64, minimum=32)
    seed: int = setting("the same seed gives the same release", "output", 0, minimum=0)
    label_noise: float = setting(
        "share of the labels of train_val_list.txt that are turned over, present for absent and absent for present",
        "output", 0.0, minimum=0, maximum=0.5)  # fmt: skip
    lookalikes: bool = setting(
        "signs that are findings on one side of the chest are drawn on the other too, where they are none", "output",
        False)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """A store and a cluster in, what would keep ranks from starting out."""

    data: str = setting("the store that ingest wrote", "input", path=True)
    run: str | None = setting("folder that a run is to be written to", "input", None, path=True)
    model: str | None = setting(
        "network whose need of memory is to be held against what is free; takes seconds more",
        "training", None)  # fmt: skip
    batch_size: int = setting("images per rank and step", "training", 16, minimum=1)
    num_proc: int | None = setting(
        "ranks; by default as many as Spark has task slots", "training", None, minimum=1
    )
    wait_seconds: float = setting(
        "how long to wait, while Spark is alive, for executors, task slots and tasks to start",
        "cluster", 300.0, above=0)  # fmt: skip
