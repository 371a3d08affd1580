"""What a server is told: the arguments of the application in `serve_config.yaml`."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from btray.config import Section
from btray.serve.auth import AuthConfig

REFERENCE = "reference"
"""Stands for the bundle that ships in the package."""


class CanaryConfig(Section):
    """Another bundle that answers some of the requests."""

    bundle: str
    """Folder, URI, or models:/NAME@ALIAS."""
    percent: float = Field(gt=0, le=100)
    """Share of the requests that name no version, in percent."""


class ModelServed(Section):
    """A name under which bundles answer."""

    name: str = Field(default="btray", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """What clients call it."""
    bundle: str = REFERENCE
    """Folder, URI, models:/NAME@ALIAS, or `reference` for the one in the package."""
    versions: tuple[str, ...] = ()
    """Further bundles that answer when their version is asked for, loaded when they are."""
    canary: CanaryConfig | None = None
    """A bundle on trial with some of the requests."""
    shadow: str | None = None
    """A bundle that is asked too and whose answers are only compared."""

    @property
    def bundles(self) -> tuple[str, ...]:
        """All bundles under this name, the one that usually answers first."""
        canary = (self.canary.bundle,) if self.canary else ()
        shadow = (self.shadow,) if self.shadow else ()
        return (self.bundle, *canary, *shadow, *self.versions)


class EngineConfig(Section):
    """How a replica computes."""

    device: str | None = None
    """`cpu`, `cuda` …; by default a GPU where the replica has one."""
    threads: int = Field(default=1, ge=1)
    """Threads of one forward pass on a CPU: the cores of a replica."""
    max_batch: int | None = Field(default=None, ge=1, le=1024)
    """Most images in one forward pass; by default what suits the engine."""
    decoders: int = Field(default=1, ge=1, le=64)
    """Threads that decode the images of one batch; more than 1 pays beside a GPU."""
    loaded_bundles: int = Field(default=4, ge=1)
    """Bundles a replica keeps loaded; the one longest unused goes first."""


class LimitsConfig(Section):
    """What a request may cost."""

    body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Largest body of a request, in bytes; more is refused before it is read."""
    image_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Largest encoded image, in bytes."""
    images: int = Field(default=64, ge=1)
    """Most images in a request."""
    waiting: int = Field(default=128, ge=1)
    """Images that may wait in a replica; with more, requests are told to come again."""
    deadline_s: float = Field(default=30.0, gt=0, le=600)
    """Longest time until an answer, in seconds; a client may ask for less."""


class ReplicasConfig(Section):
    """How many replicas answer."""

    min: int = Field(default=1, ge=0)
    """With 0, the first request after a pause waits for a replica to start."""
    max: int = Field(default=1, ge=1)
    """Most replicas."""
    target_ongoing: float = Field(default=8.0, gt=0)
    """Requests in work a replica at which there are enough of them."""
    upscale_delay_s: float = Field(default=2.0, ge=0)
    """How long load must be high before replicas are added, in seconds."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """How long it must be low before replicas are taken away, in seconds."""
    cpus: float = Field(default=1.0, ge=0)
    """Logical CPUs a replica reserves."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs a replica reserves, such as 0.5."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels of the nodes that replicas run on; by default any."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ServeConfig(Section):
    """A server of classifiers."""

    models: tuple[ModelServed, ...] = Field(default=(ModelServed(),), min_length=1)
    """Names and their bundles; the first answers where no name is given."""
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    auth: AuthConfig = AuthConfig()
    tracking: str | None = None
    """The registry's MLflow store, for models:/…; by default what MLFLOW_TRACKING_URI names."""
    watch_s: float = Field(default=2.0, ge=0.1)
    """How often the registry's aliases are looked up, in seconds."""
    explain: bool = True
    """Whether `?explain=gradcam` is answered; it needs torch and time."""

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[ModelServed, ...]) -> tuple[ModelServed, ...]:
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            raise ValueError(f"two models of one name among {', '.join(names)}")
        return models
