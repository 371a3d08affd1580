"""What a sweep is: a run's configuration with a section `tune` beside the others."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from btray.config import Config, Section, read_tree, resolve_as
from btray.errors import UserError


class TuneConfig(Section):
    """What is searched, how, and for how long."""

    space: dict[str, Any] = Field(default_factory=dict)
    """By path of the configuration: `loguniform(1e-4, 1e-2)`, `uniform(a, b)`, `quniform(a, b,
    step)`, `randint(a, b[, step])`, `lograndint(a, b)`, `choice([…])`, or `{space: …, when:
    {train.loss: focal}}` for what counts only then."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Known points, each a value for every path of the space, that are tried first."""
    warm_start: list[str] = Field(default_factory=list)
    """Folders of earlier sweeps of the same space and metric, from which `tpe` learns."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe`: multivariate tree-structured Parzen estimator (Bergstra et al. 2011, Falkner et al.
    2018); `random`; `grid`: every point of a finite space."""
    startup_trials: int = Field(default=8, ge=1)
    """Trials drawn at random before `tpe` models them."""
    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    """What ends trials early: ASHA (Li et al. 2020), HyperBand (Li et al. 2018; with `tpe` as in
    BOHB), the median rule (Golovin et al. 2017); `pbt` copies and perturbs instead (Jaderberg et
    al. 2017)."""
    trials: int = Field(default=32, ge=1)
    """Points tried at most; a grid has its own number."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs no trial is ended before."""
    reduction: int = Field(default=4, ge=2)
    """ASHA and HyperBand: of so many trials one goes on, for so many times the epochs."""
    perturb_epochs: int = Field(default=2, ge=1)
    """PBT: epochs between two looks who copies whom."""
    objectives: list[Literal["latency_ms", "parameters"]] = Field(default_factory=list)
    """What is to be small beside a good `train.metric`: the measured time of one image on the
    training device, or the network's number of parameters."""
    at_once: int | None = Field(default=None, ge=1)
    """Most trials beside each other; by default what the cluster has room for."""
    gpus_per_trial: float = Field(default=1.0, gt=0, le=1)
    """Part of a GPU a trial of one worker takes, where there are GPUs."""
    hours: float | None = Field(default=None, gt=0)
    """Wall time after which no trial goes on."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """GPU hours of all trials after which no trial goes on."""
    max_failures: int = Field(default=1, ge=0)
    """Times a trial that failed is taken up again before it is left."""
    refit: bool = False
    """Train the best point once more, on train and validation together and in one process, for
    all epochs: that is the bundle then, calibrated as the search's best checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scheduler == "pbt" and self.search != "random":
            raise ValueError("tune.scheduler=pbt makes its own points; set tune.search=random")
        if self.warm_start and self.search != "tpe":
            raise ValueError("tune.warm_start is what tpe learns from; set tune.search=tpe")
        if self.points and self.search == "grid":
            raise ValueError("tune.points: a grid has every point already; leave them out")
        return self


class SweepConfig(Config):
    """A whole sweep: `tune`, and the run every trial is but for its point."""

    tune: TuneConfig = TuneConfig()
    """What is searched, and how."""

    def base(self) -> Config:
        """Return the run without the search."""
        return Config.model_validate(self.model_dump(exclude={"tune"}))


def load_sweep(path: str | Path | None, overrides: list[str]) -> SweepConfig:
    """Read a sweep's YAML file, apply `section.field=value` overrides, and validate.

    Raises:
        UserError: as `load_config`, or no space to search.

    """
    config = resolve_as(SweepConfig, read_tree(path), overrides)
    if not config.tune.space:
        raise UserError(
            "tune.space: nothing to search; give a file with a section tune, such as "
            "configs/sweep.yaml"
        )
    return config
