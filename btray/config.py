"""The one typed tree of settings: files and `--set` are read here and nowhere else."""

import copy
import difflib
import re
import types
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from btray.errors import UserError


class Section(BaseModel):
    """A frozen part of the tree: unknown keys are refused, every field has a docstring."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ImageConfig(Section):
    """How encoded bytes become the network's input; travels in the bundle."""

    size: int = Field(default=128, ge=32, le=1024)
    """Side of the square input, in pixels."""
    crop: Literal["none", "head"] = "none"
    """`head` cuts the slice to the box of the head, so that black borders do not matter."""
    crop_margin: float = Field(default=0.05, ge=0, le=1)
    """Border left around the head, as a fraction of its box's longer side."""
    clip_percentiles: tuple[float, float] = (0.0, 100.0)
    """Percentiles of the pixels above 0 that become 0 and 255; (0, 100) leaves them alone."""
    clahe: float = Field(default=0.0, ge=0, le=1)
    """Clip limit of contrast-limited adaptive histogram equalisation; 0 turns it off."""
    fit: Literal["letterbox", "stretch"] = "letterbox"
    """`letterbox` keeps the aspect ratio and pads with black; `stretch` does not."""
    scaling: Literal["fixed", "zscore"] = "fixed"
    """`fixed` uses `mean` and `std`; `zscore` the mean and deviation of each square itself."""
    mean: float = Field(default=0.18, ge=0, le=1)
    """Mean subtracted after scaling to 0..1, in units of full scale."""
    std: float = Field(default=0.18, gt=0, le=1)
    """Divisor after the mean, in units of full scale."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        low, high = self.clip_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"clip_percentiles {low:g}, {high:g}: need 0 <= low < high <= 100")
        return self


class DataConfig(Section):
    """What is read and in which portions."""

    dataset: str | None = None
    """Data set made by `btray data import` or `btray data phantom`: folder or URI."""
    fold: int | None = Field(default=None, ge=0)
    """Fold of the data set that is validation, all other folds being train; null takes the
    splits as they are stored. `btray train --folds K` trains on all in turn."""
    batch_size: int = Field(default=32, ge=1)
    """Images in one optimizer step over all workers together."""
    balanced: bool = False
    """Draw every class equally often, rare ones' images repeatedly; the epoch stays as long."""
    evaluation_batch_size: int = Field(default=128, ge=1)
    """Images in one forward pass of a training worker during validation."""
    cache_limit: ByteSize | None = None
    """Most bytes of decoded images (rows x image.size²) that are kept in the object store, such
    as `2 GiB`; more are streamed through it to a file on every training node. By default three
    tenths of the smallest node's object store."""
    cache_dir: str | None = None
    """Folder for that file on each training node; by default the node's TMPDIR or /tmp."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels, such as `{btray.io/role: data}`, of the nodes that read and decode; by
    default all do."""


class AugmentConfig(Section):
    """Random changes of training batches; ranges are symmetric around 'no change'."""

    enabled: bool = True
    """False trains on the images as they are."""
    rotation: float = Field(default=15.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    translation: float = Field(default=0.08, ge=0, le=0.5)
    """Largest shift along each axis, as a fraction of the side."""
    scale: float = Field(default=0.12, ge=0, lt=0.9)
    """Largest relative change of size."""
    shear: float = Field(default=5.0, ge=0, le=45)
    """Largest shear, in degrees."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    brightness: float = Field(default=0.15, ge=0, le=1)
    """Largest relative change of intensity."""
    contrast: float = Field(default=0.25, ge=0, lt=1)
    """Largest relative change of contrast around the image's mean."""
    gamma: float = Field(default=0.25, ge=0, lt=1)
    """Largest relative change of the exponent applied to intensities."""
    noise: float = Field(default=0.03, ge=0, le=1)
    """Largest standard deviation of added Gaussian noise, as a fraction of full scale."""
    histogram: float = Field(default=0.0, ge=0, le=1)
    """Probability that grey values are matched to those of another image of the batch."""
    border: float = Field(default=0.0, ge=0, le=1)
    """Probability that the dark background is set to black."""
    resolution: float = Field(default=0.0, ge=0, le=7)
    """Largest loss of resolution, to half of the images: 1 is down to a half."""


class ModelConfig(Section):
    """Which network."""

    name: str = "btray_cnn"
    """An architecture timm knows (`resnet18`, `vgg16_bn` …) or our own `btray_cnn`."""
    pretrained: str | None = None
    """Weights to start from: `hub` (timm's), a .safetensors or .pth file, `package:NAME` of an
    installed package, or a bundle or run of btray; null starts at random."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Dropout before the classifier, as a probability."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth (Huang et al. 2016): largest probability that a residual block is left
    out; for the architectures that have it."""
    views: Literal[1, 2] = 1
    """Test-time augmentation: 2 answers with the mean logits of the image and its mirror image,
    in validation, evaluation and every prediction."""


def _workers(value: Any) -> Any:  # noqa: ANN401 - what pydantic has not looked at yet
    """Refuse what is neither a number of workers nor a range of two."""
    match = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", value) if isinstance(value, str) else None
    bounds = [int(bound) for bound in match.groups()] if match else [value]
    if not all(type(bound) is int and bound >= 1 for bound in bounds) or bounds[0] > bounds[-1]:
        raise ValueError("a number of at least 1, or a range such as 2..8")
    return value if len(set(bounds)) > 1 else bounds[0]


Workers = Annotated[int | str, BeforeValidator(_workers)]
"""A number of workers, or a range of them as text."""


class TrainConfig(Section):
    """Optimisation, workers and their recovery."""

    epochs: int = Field(default=30, ge=1)
    """Most passes over the training split."""
    optimizer: str = "adamw"
    """Any of timm's: adamw, sgd (with Nesterov momentum 0.9), lamb, adan, muon …"""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate for one optimizer step of `data.batch_size` images."""
    weight_decay: float = Field(default=0.02, ge=0)
    """Decoupled weight decay (AdamW) or L2 (SGD); not applied to biases and norms."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one below it; 1 for none."""
    schedule: Literal["cosine", "one_cycle", "step", "plateau"] = "cosine"
    """How the learning rate changes after, or with `one_cycle` including, the warm-up."""
    warmup_epochs: float = Field(default=0.5, ge=0)
    """Epochs of warm-up from zero; linear, for `one_cycle` half a cosine."""
    decay_epochs: float = Field(default=10.0, gt=0)
    """`step`: epochs between two decays; `plateau`: epochs without a better validation loss."""
    decay_factor: float = Field(default=0.1, gt=0, lt=1)
    """`step` and `plateau`: factor on the learning rate at each decay."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """`focal` (Lin et al. 2017) weighs hard images more."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Exponent of the focal loss."""
    mixup: float = Field(default=0.0, ge=0)
    """Parameter of the beta distribution of mixup (Zhang et al. 2018); 0 turns it off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Parameter of the beta distribution of CutMix (Yun et al. 2019); 0 turns it off."""
    accumulation: int = Field(default=1, ge=1)
    """Portions a worker's share of a batch is computed in, to save memory."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is validated and kept; 0 for none."""
    freeze_epochs: float = Field(default=0.0, ge=0)
    """Epochs, whole or in part, in which only the classifier learns, at the start."""
    freeze_patience: int = Field(default=0, ge=0)
    """Epochs without a lower validation loss that end this phase early; 0 does not."""
    freeze_batch_norm: bool = False
    """Keep the statistics, scale and shift of batch norm as they were at the start."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all workers rather than each worker's; on GPUs only."""
    compile: bool = False
    """Compile the network with torch.compile: pays on GPUs, and in long runs."""
    deterministic: bool = False
    """Only algorithms that give the same to the bit every time; slower on GPUs."""
    teacher: str | None = None
    """Bundle or run whose answers are learned beside the labels (Hinton et al. 2015): folder or
    URI; trained on the same data set."""
    distillation: float = Field(default=0.5, gt=0, le=1)
    """With a teacher: its weight in the loss; the labels have the rest."""
    distillation_temperature: float = Field(default=2.0, gt=0)
    """With a teacher: divisor of both networks' logits in its part of the loss."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Probability mass spread over all classes."""
    class_weights: bool = False
    """Weigh the loss by inverse class frequency of the training split."""
    gradient_clip: float = Field(default=5.0, ge=0)
    """Largest global norm of the gradient; 0 turns clipping off."""
    metric: Literal["macro_f1", "accuracy", "macro_auroc", "loss"] = "macro_f1"
    """Validation score by which the best checkpoint is chosen and training stops early."""
    patience: int = Field(default=10, ge=0)
    """Epochs without a better `train.metric` before stopping; 0 never stops early."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; `auto` is bfloat16 on GPUs that support it and on CPUs with matrix units
    for it (AMX) if no convolution is depthwise, else float32; `float16` needs a GPU."""
    workers: Workers = 1
    """Data-parallel training processes; `2..8` takes as many of them as the cluster has room
    for, fewer when a node is lost and more again when one joins."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPU cores (and intra-op threads) a worker; by default the machine's cores shared out."""
    gpu: Literal["auto", "always", "never"] = "auto"
    """`auto` gives every worker a GPU when the cluster has enough of them."""
    max_failures: int = Field(default=3, ge=0)
    """Times a lost worker, node or process is replaced and the last checkpoint resumed,
    pre-emptions included."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints within an epoch; 0 makes one at the end of each epoch only."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints with the best `train.metric` that are kept, besides the latest."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers; equal when their number is fixed."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        fewest, most = self.workers.split("..")
        return int(fewest), int(most)


class RunConfig(Section):
    """Where a run's checkpoints, log and bundle go."""

    storage: str = "runs"
    """Folder or URI (`s3://bucket/prefix`) that holds runs."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of this run inside `storage`; by default made of model, date and time."""


class TrackingConfig(Section):
    """Where MLflow keeps what is known of runs."""

    enabled: bool = True
    """False tells MLflow nothing."""
    uri: str | None = None
    """MLflow server (`https://mlflow.example.org`), `sqlite:///FILE` or a folder; null for what
    MLFLOW_TRACKING_URI names, or else SQLite and a folder in `run.storage`."""
    experiment: str = Field(default="btray", min_length=1)
    """MLflow's experiment that runs belong to."""


Tree = TypeVar("Tree", bound=Section)


class Config(Section):
    """A whole run."""

    seed: int = Field(default=0, ge=0)
    """Seeds weights, order, augmentation and dropout."""
    image: ImageConfig = ImageConfig()
    """How images become input."""
    data: DataConfig = DataConfig()
    """What is read."""
    augment: AugmentConfig = AugmentConfig()
    """How training batches are varied."""
    model: ModelConfig = ModelConfig()
    """Which network is trained."""
    train: TrainConfig = TrainConfig()
    """How it is trained, and by how many workers."""
    run: RunConfig = RunConfig()
    """Where the outcome is kept."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs are recorded for comparison."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fewest, most = self.train.worker_range
        if fewest == most and self.data.batch_size % most:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} does not divide evenly over "
                f"train.workers={self.train.workers}; make it a multiple"
            )
        if self.data.batch_size < most:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} leaves some of "
                f"train.workers={self.train.workers} without an image; make it larger"
            )
        if self.train.warmup_epochs >= self.train.epochs and self.train.warmup_epochs > 0:
            raise ValueError(
                f"train.warmup_epochs={self.train.warmup_epochs:g} leaves nothing of "
                f"train.epochs={self.train.epochs}; make it smaller"
            )
        return self


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or none), apply `section.field=value` overrides, and validate.

    Raises:
        UserError: unreadable file, unknown key (nearest valid name given), wrong type
            or impossible combination, each with the path of the field.

    """
    return resolve_config(read_tree(path), overrides)


def read_tree(path: str | Path | None) -> dict[str, Any]:
    """Return what a YAML file (or none) sets; raises UserError when it cannot be read."""
    return parse_yaml(_read(Path(path)), str(path)) if path is not None else {}


def resolve_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Apply overrides to a copy of a raw tree and validate it; raises as `load_config` does."""
    return resolve_as(Config, tree, overrides)


def resolve_as(kind: type[Tree], tree: dict[str, Any], overrides: Sequence[str] = ()) -> Tree:
    """Do the same for a tree that has more sections than a run's."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply_override(tree, override)
    _refuse_unknown(tree, kind, "", field_paths(kind))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(
            "configuration: " + "; ".join(_describe(e) for e in error.errors())
        ) from None


def dump_config(config: BaseModel) -> str:
    """Return the whole resolved tree as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Return the mapping a YAML text holds; `origin` names it in errors.

    Raises:
        UserError: not YAML, a key given twice, or not a mapping.

    """
    try:
        tree = _load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: a configuration is a mapping of sections, not {_kind(tree)}")
    return tree


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and takes dates for text (a run's name)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _OverrideLoader(_Loader):
    """YAML 1.1 reads a bare `1e-3` as text; people mean the number."""


_OverrideLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _load_yaml(text: str, loader: type[_Loader] = _Loader) -> Any:  # noqa: ANN401 - any value
    """Return what a YAML text holds; every fault in it is a `yaml.YAMLError`."""
    try:
        return yaml.load(text, loader)  # noqa: S506 - a safe loader
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__})") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"--set {override}: write it as section.field=value")
    try:
        value = _load_yaml(text, _OverrideLoader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    for key in keys[:-1]:
        branch = tree.setdefault(key, {})
        if not isinstance(branch, dict):
            raise UserError(f"--set {override}: {key} is a value, not a section")
        tree = branch
    tree[keys[-1]] = value


def _refuse_unknown(
    tree: Mapping[str, Any], section: type[BaseModel], prefix: str, known: Sequence[str]
) -> None:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in section.model_fields:
            raise UserError(f"configuration: unknown key {path}{nearest_path(path, known)}")
        branch = _section(section.model_fields[key].annotation)
        if branch is not None and isinstance(value, Mapping):
            _refuse_unknown(value, branch, f"{path}.", known)


def _section(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any annotation
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    for choice in choices or (annotation,):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def field_paths(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted path of the tree, sections included."""
    paths = []
    for key, field in section.model_fields.items():
        paths.append(f"{prefix}{key}")
        branch = _section(field.annotation)
        if branch is not None:
            paths += field_paths(branch, f"{prefix}{key}.")
    return paths


def nearest_path(path: str, candidates: Sequence[str]) -> str:
    """Return a hint which of some paths was meant, or where to find them."""
    close = difflib.get_close_matches(path, candidates, n=1, cutoff=0.6)
    if not close:
        leaf = path.rpartition(".")[2]
        close = [c for c in candidates if c.rpartition(".")[2] == leaf]
    if not close:
        leaves = {c.rpartition(".")[2]: c for c in candidates}
        match = difflib.get_close_matches(path.rpartition(".")[2], leaves, n=1, cutoff=0.6)
        close = [leaves[m] for m in match]
    return f"; did you mean {close[0]}?" if close else "; `btray config show` lists the keys"


def _describe(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if not where:
        return str(message)
    return f"{where}: {message[0].lower()}{message[1:]} (got {error['input']!r})"


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"
