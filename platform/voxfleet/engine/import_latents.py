"""The import-latents job: files of latents that were made elsewhere to latent shards, one Ray task a shard."""

import dataclasses
import functools
from typing import Any

import numpy as np

from voxfleet import storage
from voxfleet.config.jobs import ImportLatentsConfig
from voxfleet.data.audit import audit_columns, check_duplicates, find_duplicates
from voxfleet.data.latent_files import LatentFile, list_latents, read_latent
from voxfleet.data.latents import COLUMNS, manifest_fields, write_latents
from voxfleet.data.shards import MANIFEST, Manifest, count_rows, shard_name, write_manifest
from voxfleet.engine.console import Progress, say
from voxfleet.engine.job import job_session
from voxfleet.engine.output import LEDGER, Output, digest
from voxfleet.engine.units import Ledger, Rows, run_units
from voxfleet.errors import UserError
from voxfleet.models.vae import LOGVAR
from voxfleet.packages import autoencoder_config, read_package_config

_LEAST_STD = 1e-5


@dataclasses.dataclass(frozen=True)
class _Like:
    """What all files must be like: the first of them."""

    source: str
    shape: tuple[int, ...]
    has_logvar: bool


def run(config: ImportLatentsConfig) -> None:
    """Make the latent shards."""
    package = read_package_config(config.autoencoder, "autoencoder") if config.autoencoder else None
    files = list_latents(config.table, storage.absolute(config.latents), config.classes, config.split)
    inputs = {"table": digest([dataclasses.astuple(file) for file in files])}
    if package:
        inputs["autoencoder"] = package["fingerprint"]
    output = Output("import-latents", config.output, config, inputs)
    if output.is_done(MANIFEST):
        return
    like = _like(files[0].source)
    if package:
        _check_fits(config, package, like)
    folder = storage.absolute(config.output)
    with job_session(output) as tracker:
        progress = Progress("import-latents", len(files), "latents")
        units = run_units(
            _shards(files, config.samples_per_shard),
            functools.partial(_make_shard, like, config.dtype, folder),
            Ledger(storage.join(folder, LEDGER)),
            progress,
            weight=len,
        )
        manifest = _manifest(config, package, like, [unit[0] for unit in units.values()])
        write_manifest(folder, manifest)
        tracker.log_metrics([{f"latent_std_{channel}": std for channel, std in enumerate(manifest.std)}])
        stds = ", ".join(f"{std:.2f}" for std in manifest.std)
        progress.finish(f"latents {manifest.shape}, std {stds}, in {config.output}")
        if not package:
            say(
                "import-latents: without their autoencoder, what is trained on these latents cannot be decoded",
                level="warning",
            )


def _like(source: str) -> _Like:
    mu, logvar = read_latent(source)
    return _Like(source, mu.shape, logvar is not None)


def _check_fits(config: ImportLatentsConfig, package: dict[str, Any], like: _Like) -> None:
    """Make sure that the autoencoder decodes latents of this shape to the volumes that it is for."""
    expected = autoencoder_config(package).latent_shape(tuple(package["shape"]))
    if like.shape != expected:
        raise UserError(
            f"{like.source} has shape {like.shape}, but {config.autoencoder} makes latents of {expected}; give the "
            "autoencoder that made them"
        )


def _shards(files: list[LatentFile], size: int) -> dict[str, list[dict[str, Any]]]:
    rows = [dataclasses.asdict(file) for file in files]
    return {shard_name(i): rows[start : start + size] for i, start in enumerate(range(0, len(rows), size))}


def _make_shard(like: _Like, dtype: str, folder: str, name: str, files: list[dict[str, Any]]) -> Rows:
    """Read the files of one shard and write it: one row, with what the audit needs of each file."""
    mus, logvars = zip(*(_read(file["source"], like) for file in files), strict=True)
    columns = {key: [file[key] for file in files] for key in COLUMNS}
    written = write_latents(folder, name, columns, np.stack(mus), np.stack(logvars), dtype)
    audited = [{**file, **audit_columns(mu)} for file, mu in zip(files, mus, strict=True)]
    return [{**written, "audited": audited}]


def _read(uri: str, like: _Like) -> tuple[np.ndarray, np.ndarray]:
    mu, logvar = read_latent(uri)
    if mu.shape != like.shape:
        raise UserError(f"{uri} has shape {mu.shape}, {like.source} has {like.shape}; all latents must be of one shape")
    if (logvar is not None) != like.has_logvar:
        having, lacking = (uri, like.source) if logvar is not None else (like.source, uri)
        raise UserError(f"{having} has logvar or sigma, {lacking} has not; all latents must have it, or none")
    return mu, np.full_like(mu, LOGVAR[0]) if logvar is None else logvar


def _manifest(config: ImportLatentsConfig, package: dict[str, Any] | None, like: _Like, units: Rows) -> Manifest:
    rows = [row for unit in units for row in unit["audited"]]
    duplicates = find_duplicates(rows, config.audit)
    if line := check_duplicates(duplicates, config.audit, config.table):
        say(f"import-latents: {line}", level="warning")
    fields = manifest_fields(units)
    for channel, std in enumerate(fields["std"]):
        if not std > _LEAST_STD:
            raise UserError(
                f"channel {channel} of the latents in {config.latents} is constant over the training split; drop it"
            )
    return Manifest(
        kind="latents",
        shape=like.shape,
        classes=config.classes,
        counts=count_rows(rows, config.classes, config.table),
        geometry=package["geometry"] if package else {},
        limits={},
        suffix=config.suffix,
        autoencoder=package["fingerprint"] if package else None,
        duplicates=[dataclasses.asdict(duplicate) for duplicate in duplicates],
        **fields,
    )
