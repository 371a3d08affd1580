"""Versions of models: registered, compared on the same test rows, promoted and taken back."""

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from btray.core import files
from btray.core.bootstrap import Difference, paired_bootstrap
from btray.core.layout import CARD, FOLDER, WEIGHTS
from btray.errors import CheckFailed, UserError
from btray.registry.client import answered, experiment_id, nearest, open_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from btray.core.bundle import Bundle

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
BUNDLE: Final = "btray.bundle"
"""Tag of runs and versions: the version of the bundle, a hash of its weights and settings."""
_PLACE: Final = "btray.artifacts"
"""Tag of a version: the folder among its run's artifacts with bundle and evaluation."""
_HISTORY: Final = "btray.champions"
"""Tag of a model: the versions that were champion, as JSON, the present one last."""
_METRICS: Final = "metrics.json"
_PREDICTIONS: Final = "predictions.parquet"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE: Final = re.compile(r"(?P<name>[^@:/]+)(?:@(?P<alias>[^@:/]+)|[:/](?P<version>\d+))?")
_KEPT: Final = 30
"""Former champions remembered."""


@dataclass(frozen=True)
class Version:
    """One registered bundle."""

    name: str
    number: str
    aliases: list[str]
    created: str
    """UTC, ISO 8601."""
    run_id: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Answers:
    """A version's answers to the test split, rows in the order of their hashes."""

    rows: list[tuple[str, str]]
    """SHA-256 and true class of every row."""
    said: list[str]
    """The class answered."""
    groups: list[str]
    """What is not independent of one another: the rows of one patient, near duplicates."""

    @property
    def test_hash(self) -> str:
        """Return what tells one test split from another."""
        return hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """A challenger against the champion on the same rows."""

    rows: int
    groups: int
    differences: dict[str, Difference]
    """Of `accuracy` and `macro_f1`, the challenger's less the champion's."""

    @property
    def worse(self) -> bool:
        """Say whether a whole interval lies below 0."""
        return any(difference.high < 0 for difference in self.differences.values())

    def __str__(self) -> str:
        told = (
            f"{name.replace('_', '-')} {d.value:+.4f} (95 % interval {d.low:+.4f} to {d.high:+.4f})"
            for name, d in self.differences.items()
        )
        return f"{', '.join(told)}; {self.rows} images in {self.groups} groups"


def parse_reference(text: str) -> tuple[str, str | None, str | None]:
    """Return the name, the alias and the version of `NAME`, `NAME@ALIAS` or `NAME:VERSION`.

    The prefix `models:/` and MLflow's `NAME/VERSION` are understood too.

    Raises:
        UserError: anything else.

    """
    bare = re.sub(r"^models:/{1,2}", "", text)
    match = _REFERENCE.fullmatch(bare)
    if match is None:
        raise UserError(f"{text}: no model; write NAME, NAME@ALIAS or NAME:VERSION")
    return match["name"], match["alias"], match["version"]


class Registry:
    """The models of one store."""

    def __init__(self, uri: str, experiment: str = "btray", create: bool = False) -> None:
        """Open the store; raises UserError if there is none, unless it may be made."""
        self.uri, self._experiment = uri, experiment
        self._client: MlflowClient = open_client(uri, create)

    def names(self) -> list[str]:
        """Return the names of all models."""
        found: list[str] = []
        token: str | None = None
        with answered(self.uri):
            while True:
                page = self._client.search_registered_models(page_token=token)
                found += [model.name for model in page]
                token = page.token
                if not token:
                    return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """Return a model's versions, the newest first; raises UserError if there is no model."""
        with answered(self.uri):
            aliases = self._model(name).aliases
            found: list[Any] = []
            token: str | None = None
            while True:
                page = self._client.search_model_versions(f"name='{name}'", page_token=token)
                found += page
                token = page.token
                if not token:
                    break
        found.sort(key=lambda version: -int(version.version))
        return [_version(version, aliases) for version in found]

    def get(self, name: str, alias: str | None = None, number: str | None = None) -> Version:
        """Return one version, by alias or number, the champion when neither is given.

        Raises:
            UserError: there is none; what there is is told.

        """
        known = self.versions(name)
        if number is not None:
            found = [version for version in known if version.number == number]
            wanted, there = f"version {number}", [version.number for version in known]
        else:
            alias = alias or CHAMPION
            found = [version for version in known if alias in version.aliases]
            wanted, there = f"{alias!r}", [a for version in known for a in version.aliases]
        if not found:
            raise UserError(
                f"{self.uri}: {name} has no {wanted}; {nearest(number or alias or '', there)}"
            )
        return found[0]

    def register(self, bundle: "Bundle", name: str, evaluation: Path | None) -> Version:
        """Store a bundle, and its evaluation, as a new version that is the challenger.

        Raises:
            UserError: no fit name, the very bundle is a version already, or an evaluation of
                another bundle or split.

        """
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r}: a model's name has letters, digits, '.', '_' and '-'")
        tags = {BUNDLE: bundle.version, "btray.data_hash": bundle.card.provenance.data_hash}
        if evaluation is not None:
            tags |= _evaluation_tags(bundle, evaluation)
        if name in self.names():
            self._refuse_twice(name, bundle.version)
        with answered(self.uri):
            run_id = self._run(bundle)
            tags[_PLACE] = f"registered/{bundle.version}"
            self._upload(run_id, tags[_PLACE], bundle, evaluation)
            if name not in self.names():
                self._client.create_registered_model(name)
            root = self._client.get_run(run_id).info.artifact_uri
            source = f"{root}/{tags[_PLACE]}/{FOLDER}"
            made = self._client.create_model_version(name, source, run_id, tags=tags)
            self._client.set_registered_model_alias(name, CHALLENGER, made.version)
        return self.get(name, number=str(made.version))

    def _refuse_twice(self, name: str, bundle: str) -> None:
        for version in self.versions(name):
            if version.tags.get(BUNDLE) == bundle:
                raise UserError(
                    f"{self.uri}: this bundle is version {version.number} of {name} already"
                )

    def _run(self, bundle: "Bundle") -> str:
        """Return the run a bundle comes from, or one made for a bundle that has none here."""
        experiment = experiment_id(self._client, self.uri, self._experiment, create=True)
        found = self._client.search_runs(
            [experiment], f"tags.`{BUNDLE}` = '{bundle.version}'", max_results=1
        )
        if found:
            return str(found[0].info.run_id)
        tags = {BUNDLE: bundle.version, "btray.data_hash": bundle.card.provenance.data_hash}
        run = self._client.create_run(experiment, tags=tags, run_name=f"register-{bundle.version}")
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _upload(self, run_id: str, place: str, bundle: "Bundle", evaluation: Path | None) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / FOLDER).mkdir()
            for name in (WEIGHTS, CARD):
                (folder / FOLDER / name).write_bytes(files.read(files.join(bundle.uri, name)))
            if evaluation is not None:
                (folder / "evaluation").mkdir()
                for name in (_METRICS, _PREDICTIONS):
                    shutil.copy(evaluation / name, folder / "evaluation" / name)
            self._client.log_artifacts(run_id, temporary, place)

    def promote(self, version: Version, force: bool = False) -> Comparison | None:
        """Make a version the champion; return how it compares with the one before.

        Raises:
            CheckFailed: without `force`: worse beyond noise, another test split, or no
                evaluation of one of them.
            UserError: it is the champion already, or the store does not answer.

        """
        champion = self._champion(version.name)
        if champion is not None and champion.number == version.number:
            raise UserError(f"{version.name}: version {version.number} is the champion already")
        comparison, objection = self._judge(version, champion)
        if objection is not None and not force:
            raise CheckFailed(f"{version.name}: version {version.number} not promoted: {objection}")
        now = _now()
        entry = {"version": version.number, "time": now, "forced": objection is not None}
        history = self._history(version.name)
        if champion is not None and (not history or history[-1]["version"] != champion.number):
            history.append({"version": champion.number})  # made champion by another program
        with answered(self.uri):
            self._remember(version.name, [*history, entry])
            self._tag(version, "btray.promoted", now)
            if objection is not None:
                self._tag(version, "btray.forced", objection)
            self._client.set_registered_model_alias(version.name, CHAMPION, version.number)
            if CHALLENGER in version.aliases:
                self._client.delete_registered_model_alias(version.name, CHALLENGER)
        return comparison

    def _champion(self, name: str) -> Version | None:
        found = [version for version in self.versions(name) if CHAMPION in version.aliases]
        return found[0] if found else None

    def _judge(
        self, version: Version, champion: Version | None
    ) -> tuple[Comparison | None, str | None]:
        """Return the comparison, where there can be one, and what speaks against promotion."""
        for one in (version, champion):
            if one is not None and "btray.test_hash" not in one.tags:
                return None, (
                    f"version {one.number} has no evaluation on the test split; register its "
                    "bundle with --evaluation, or use --force"
                )
        if champion is None:
            return None, None
        second, first = self.answers(version), self.answers(champion)
        if first.test_hash != second.test_hash:
            return None, _unlike(first, second, champion)
        comparison = compare(first, second)
        if comparison is None:
            return None, "its test split is a single group: nothing tells noise from a difference"
        if comparison.worse:
            return comparison, f"worse than version {champion.number} beyond noise: {comparison}"
        return comparison, None

    def answers(self, version: Version) -> Answers:
        """Return a version's answers to the test split; raises UserError if they are damaged."""
        with self._downloaded(version, "evaluation") as folder:
            try:
                return read_answers((folder / _PREDICTIONS).read_bytes())
            except (OSError, pa.ArrowException, KeyError):
                raise UserError(
                    f"{version.name}: the evaluation of version {version.number} is damaged; "
                    "register the bundle again under another name"
                ) from None

    @contextmanager
    def bundle_folder(self, version: Version) -> Iterator[Path]:
        """Give a version's bundle as a folder that is gone afterwards."""
        with self._downloaded(version, FOLDER) as folder:
            yield folder

    @contextmanager
    def _downloaded(self, version: Version, part: str) -> Iterator[Path]:
        if _PLACE not in version.tags:
            raise UserError(
                f"{version.name}: version {version.number} was not registered by btray; "
                "give a version that was"
            )
        with tempfile.TemporaryDirectory() as temporary:
            with answered(self.uri):
                place = f"{version.tags[_PLACE]}/{part}"
                path = self._client.download_artifacts(version.run_id, place, temporary)
            yield Path(path)

    def rollback(self, name: str) -> Version:
        """Make the champion before the present one champion again; return it.

        Raises:
            UserError: there is no champion, none before it, or it was deleted.

        """
        present = self.get(name, CHAMPION)
        history = self._history(name)
        while history and history[-1]["version"] == present.number:
            history.pop()
        if not history:
            raise UserError(f"{name}: no champion before version {present.number}; promote one")
        former = self.get(name, number=history[-1]["version"])
        with answered(self.uri):
            self._remember(name, history)
            self._tag(present, "btray.rolled_back", _now())
            self._client.set_registered_model_alias(name, CHAMPION, former.number)
        return self.get(name, number=former.number)

    def _model(self, name: str) -> Any:  # noqa: ANN401 - mlflow's RegisteredModel
        known = self.names()
        if name not in known:
            raise UserError(f"{self.uri}: no model {name!r}; {nearest(name, known)}")
        return self._client.get_registered_model(name)

    def _history(self, name: str) -> list[dict[str, Any]]:
        with answered(self.uri):
            stored = self._model(name).tags.get(_HISTORY, "[]")
        try:
            return [{**entry, "version": str(entry["version"])} for entry in json.loads(stored)]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{name}: its tag {_HISTORY} is damaged; delete it in MLflow") from None

    def _remember(self, name: str, history: list[dict[str, Any]]) -> None:
        self._client.set_registered_model_tag(name, _HISTORY, json.dumps(history[-_KEPT:]))

    def _tag(self, version: Version, tag: str, value: str) -> None:
        self._client.set_model_version_tag(version.name, version.number, tag, value)


def _version(version: Any, aliases: dict[str, Any]) -> Version:  # noqa: ANN401 - mlflow's
    number = str(version.version)
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return Version(
        name=version.name,
        number=number,
        aliases=sorted(alias for alias, holder in aliases.items() if str(holder) == number),
        created=created.isoformat(timespec="seconds"),
        run_id=version.run_id,
        tags=dict(version.tags),
    )


def _evaluation_tags(bundle: "Bundle", directory: Path) -> dict[str, str]:
    """Check an evaluation's folder; return what a version says of it."""
    hint = "run btray evaluate on the test split"
    try:
        metrics = json.loads((directory / _METRICS).read_text())
        answers = read_answers((directory / _PREDICTIONS).read_bytes())
        model, split = metrics["model"]["version"], metrics["split"]
        scores = {f"btray.test_{key}": f"{metrics[key]:.6f}" for key in ("accuracy", "macro_f1")}
    except FileNotFoundError as error:
        raise UserError(f"{directory}: no {Path(error.filename).name}; {hint}") from None
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        raise UserError(f"{directory}: a damaged evaluation; {hint} again") from None
    if model != bundle.version:
        raise UserError(
            f"{directory}: an evaluation of bundle {model}, not of {bundle.version}; {hint}"
        )
    if split != "test":
        raise UserError(f"{directory}: an evaluation on the {split} split; {hint}")
    return {
        **scores,
        "btray.test_rows": str(len(answers.rows)),
        "btray.test_hash": answers.test_hash,
    }


def read_answers(data: bytes) -> Answers:
    """Read the answers from the bytes of `predictions.parquet`.

    Without a column of groups every row is one of its own.

    Raises:
        KeyError: a column is missing.
        pyarrow.ArrowException: not a Parquet file.

    """
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    keys = table["sha256"].to_pylist()
    groups = table["group"].to_pylist() if "group" in table.column_names else keys
    columns = (keys, table["label"].to_pylist(), table["class"].to_pylist(), groups)
    rows = sorted(zip(*columns, strict=True))
    return Answers(
        rows=[(sha256, label) for sha256, label, _, _ in rows],
        said=[said for _, _, said, _ in rows],
        groups=[group for _, _, _, group in rows],
    )


def compare(first: Answers, second: Answers) -> Comparison | None:
    """Compare two models' answers to the same rows; None when all rows are one group."""
    labels = [label for _, label in first.rows]
    names = sorted({*labels, *first.said, *second.said})
    number = {name: position for position, name in enumerate(names)}
    truth, one, two = (
        np.array([number[name] for name in column], dtype=np.int64)
        for column in (labels, first.said, second.said)
    )
    _, groups = np.unique(np.array(first.groups), return_inverse=True)
    count = len(set(groups.tolist()))
    if count < 2:
        return None
    differences = paired_bootstrap(truth, one, two, len(names), groups.astype(np.int64))
    return Comparison(len(labels), count, differences)


def _unlike(first: Answers, second: Answers, champion: Version) -> str:
    shared = len(set(first.rows) & set(second.rows))
    return (
        f"its test split of {len(second.rows)} images ({second.test_hash[:8]}) is not the one of "
        f"version {champion.number} with {len(first.rows)} ({first.test_hash[:8]}), {shared} are "
        "in both; evaluate both on one split, or use --force"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
