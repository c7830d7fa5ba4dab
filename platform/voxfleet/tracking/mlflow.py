"""MLflow as the store of records: the only file that imports it."""

import contextlib
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import mlflow
from mlflow.entities import Dataset, DatasetInput, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from voxfleet import storage
from voxfleet.errors import UserError
from voxfleet.tracking.base import TrackingConfig
from voxfleet.tracking.outbox import Operation, Record, RefusedError, masked

RUN_KEY_TAG, FINGERPRINT_TAG = "voxfleet.key", "fingerprint"
_METRICS_A_CALL, _PARAMS_A_CALL, _PARAM_LENGTH, _DIGEST_LENGTH, _NAME_LENGTH = 1000, 100, 6000, 36, 500
_FOLDER_LENGTH = 60  # of up to 4 bytes each, where file systems take 255
_DELETED = "Current state is deleted"  # how the store says that somebody removed the run
_NEVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")

for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox tries again; an address that is wrong is said at once
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

logging.getLogger("alembic").setLevel(logging.ERROR)  # migrations of a new store are reported line by line
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # errors with a traceback: we say them ourselves


class MlflowStore:
    """One MLflow run: a new one, or the one that an earlier run of the job began."""

    def __init__(self, config: TrackingConfig, record: Record) -> None:
        self._uri, self._experiment, self._record = config.resolved_uri or "", config.experiment, record
        self.address = masked(self._uri)
        self._run_id = ""
        self._last: dict[str, tuple[int, float]] = {}  # largest step of each metric, and its value there
        self._params: set[str] = set()

    def open(self) -> None:
        """Find or create the run.

        Raises:
            UserError: if the store cannot be opened.
        """
        try:
            self._connect()
        except UserError:
            raise
        except Exception as error:  # a server may answer anything
            remedy = "check tracking.uri"
            if "database schema" in str(error):
                remedy += ": it was written by another version of MLflow; an older one is mended by `mlflow db upgrade`"
            raise UserError(f"cannot open the MLflow store {self.address} ({_reason(error)}); {remedy}") from error

    def send(self, operations: list[Operation]) -> None:
        """Record operations; see ``outbox.Store``."""
        try:
            if not self._run_id:
                self._connect()
        except Exception as error:  # whatever fails here may work later
            raise ConnectionError(_reason(error)) from error
        content = {key: value for key, value in operations[0].items() if key != "kind"}
        try:
            if operations[0]["kind"] == "metrics":
                self._send_metrics(list(itertools.chain.from_iterable(o["metrics"] for o in operations)))
            else:
                getattr(self, f"_send_{operations[0]['kind']}")(**content)
        except Exception as error:
            if _DELETED in str(error):
                self._run_id = ""  # the next try begins another run
                raise ConnectionError("the run was deleted: a new one is begun") from error
            raise (RefusedError if _is_final(error) else ConnectionError)(_reason(error)) from error

    def _connect(self) -> None:
        name = self._experiment
        if not name.strip() or not name.isprintable() or len(name) > _NAME_LENGTH:
            raise UserError(
                f"tracking.experiment is {name[:80]!r}; it must be one line of 1 to {_NAME_LENGTH} characters"
            )
        local = self._uri.removeprefix("sqlite:///") if self._uri.startswith("sqlite:///") else None
        if local:
            Path(local).parent.mkdir(parents=True, exist_ok=True)
        client = _client(self._uri)
        # beside a local database, not wherever the command runs; a server decides itself
        files = Path(local).resolve().parent / "mlartifacts" / _folder(self._experiment) if local else None
        run_id = _find_or_create(client, self._experiment, self._record, str(files) if files else None)
        data = client.get_run(run_id).data
        self._last = {metric.key: (metric.step, metric.value) for metric in data.to_proto().metrics}
        self._params = set(data.params)
        self._client, self._run_id = client, run_id

    def _send_metrics(self, metrics: list[tuple[str, float, int, int | None]]) -> None:
        """What the run does not have yet, in few calls. The store takes equal (key, value, time, step) once."""
        last, new = dict(self._last), []
        for key, value, when, step in metrics:
            known, before = last.get(key, (-1, None))
            if step is None and before is not None and _as_stored(value) == _as_stored(before):
                continue
            place = known + 1 if step is None else step
            if key in last and place <= known:
                continue
            last[key] = (place, value)
            new.append(Metric(key, value, when, place))
        for start in range(0, len(new), _METRICS_A_CALL):
            self._client.log_batch(self._run_id, metrics=new[start : start + _METRICS_A_CALL], synchronous=True)
        self._last = last

    def _send_params(self, params: Mapping[str, str]) -> None:
        new = [Param(name, value[:_PARAM_LENGTH]) for name, value in params.items() if name not in self._params]
        for start in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=new[start : start + _PARAMS_A_CALL], synchronous=True)
        self._params |= set(params)

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)

    def _send_status(self, status: str, time: int | None) -> None:
        if time is None:
            self._client.update_run(self._run_id, status=status)
        else:
            self._client.set_terminated(self._run_id, status, end_time=time)

    def _send_dataset(self, name: str, uri: str, digest: str, profile: str) -> None:
        dataset = Dataset(
            name=name,
            digest=digest[:_DIGEST_LENGTH],
            source_type="local" if storage.is_local(uri) else uri.partition(":")[0],
            source=uri,
            profile=profile,
        )
        self._client.log_inputs(self._run_id, [DatasetInput(dataset, [])])

    def _send_text(self, name: str, text: str) -> None:
        self._client.log_text(self._run_id, text, name)

    def _send_artifact(self, uri: str, folder: str) -> None:
        with _local_file(uri) as path:
            self._client.log_artifact(self._run_id, path, folder or None)

    def _send_package(self, folder: str, fingerprint: str, alias: str, name: str) -> None:
        """A version's source is a folder of the run's own files: a server takes no other local one."""
        with contextlib.suppress(MlflowException):  # where it exists; anything else shows in the next call
            self._client.create_registered_model(name)
        found = self._client.search_model_versions(f"name = '{name}' and tags.{FINGERPRINT_TAG} = '{fingerprint}'")
        version = found[0] if found else self._new_version(folder, fingerprint, name)
        self._client.set_registered_model_alias(name, alias, version.version)

    def _new_version(self, folder: str, fingerprint: str, name: str) -> Any:
        place = f"packages/{fingerprint[:16]}"
        for file in storage.names(folder):
            if not file.startswith("."):
                self._send_artifact(storage.join(folder, file), place)
        root = self._client.get_run(self._run_id).info.artifact_uri
        tags = {FINGERPRINT_TAG: fingerprint, "folder": folder}
        return self._client.create_model_version(
            name, f"{root}/{place}", self._run_id, tags=tags, await_creation_for=None
        )


def source_tags() -> dict[str, str]:
    """The revision of the git checkout that the process runs in, as MLflow names it; nothing elsewhere."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": revision}


def package_folder(uri: str, store: str, folder: str) -> str:
    """The folder of a registered package; see ``record.resolve_model``."""
    parts = re.fullmatch(r"models:/(?P<name>[^/@:]+)(/(?P<version>\d+)|@(?P<alias>[^/@]+))", uri)
    if not parts:
        raise UserError(
            f"{uri} names no version of a registered model; give models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    client = _client(store)
    try:
        version = parts["version"] or client.get_model_version_by_alias(parts["name"], parts["alias"]).version
        source = client.get_model_version_download_uri(parts["name"], version)
        address = urlparse(source)
        if address.scheme in ("", "file"):
            return unquote(address.path)
        if address.scheme in ("s3", "gs"):
            return source
        return mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=store)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"cannot get {uri} from the MLflow store {masked(store)} ({_reason(error)}); check its name and version, "
            "and tracking.uri"
        ) from error


def ask(store: str) -> None:
    """See whether a store answers; see ``record.check_store``."""
    try:
        _client(store).search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise UserError(f"{masked(store)} does not answer as an MLflow store ({_reason(error)})") from error


@contextlib.contextmanager
def _local_file(uri: str) -> Iterator[str]:
    """The path of a file with the content of ``uri``."""
    if storage.is_local(uri):
        yield storage.absolute(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        path.write_bytes(storage.read_bytes(uri))
        yield str(path)


def _client(uri: str) -> mlflow.MlflowClient:
    """A client that tries once; MLflow tries to open a database ten times, which takes 100 s of silence."""
    if not uri.startswith("http"):
        from mlflow.store.db import utils  # here, as it brings SQLAlchemy, which those who use a server do without

        utils.MAX_RETRY_COUNT = 1
    return mlflow.MlflowClient(tracking_uri=uri)


def _folder(experiment: str) -> str:
    """The name of an experiment's folder, which stays inside its parent; runs have folders of their own in it."""
    return re.sub(r"[^\w-]", "_", experiment)[:_FOLDER_LENGTH]


def _as_stored(value: float) -> str:
    """A value as text, so that NaN equals NaN, and infinity the largest float, as which a database keeps it."""
    largest = sys.float_info.max
    return str(min(max(float(value), -largest), largest))


def _find_or_create(client: mlflow.MlflowClient, experiment: str, record: Record, files: str | None) -> str:
    found = client.get_experiment_by_name(experiment)
    if found and found.lifecycle_stage == LifecycleStage.DELETED:
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(
            f"experiment {experiment} was deleted in the store; restore it (with MLFLOW_TRACKING_URI set, `{restore}`) "
            "or name another with tracking.experiment"
        )
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=files)

    def run_of(key: str) -> str | None:
        runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'", max_results=1)
        return runs[0].info.run_id if runs else None

    if run_id := run_of(record.key):
        return run_id
    tags = {RUN_KEY_TAG: record.key}
    if record.parent and (parent := run_of(record.parent)):
        tags[MLFLOW_PARENT_RUN_ID] = parent
    return client.create_run(experiment_id, run_name=record.name, tags=tags).info.run_id


def _is_final(error: Exception) -> bool:
    """Whether another try would fail as well."""
    if isinstance(error, MlflowException):
        return error.error_code in _NEVER
    if isinstance(error, UserError):
        return not isinstance(error.__cause__, OSError)  # a store of files that does not answer is one
    return isinstance(error, FileNotFoundError | TypeError | ValueError | LookupError | AttributeError | ImportError)


def _reason(error: Exception) -> str:
    """Why a store does not answer, in few words and without secrets."""
    text = masked(str(error))
    schema = r"database schema \(.*?\)"
    for pattern in (
        r"\[Errno -?\d+\] [\w ,]+",
        r"timed out|[Tt]imeout",
        r"\(\w+\.\w*Error\) (.+?)(?: \[SQL| \(Background|$)",
        schema,
    ):
        if found := re.findall(pattern, text):
            return found[-1]
    return " ".join(text.split())[:200] or type(error).__name__
