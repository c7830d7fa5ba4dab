"""What a campaign leaves beside its samples: the files about the dataset, the manifests, pictures and figures."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxfleet import storage
from voxfleet.config.generation import GenerateConfig
from voxfleet.data import bids, nifti
from voxfleet.data.campaign import SCHEMA
from voxfleet.data.shards import SPLITS, Manifest, read_shard, table_bytes, write_manifest
from voxfleet.data.synthetic import FIGURES, LATENTS, MANIFEST, REJECTED, SUMMARY, dataset_files
from voxfleet.engine.campaign import Tally
from voxfleet.engine.output import digest
from voxfleet.engine.units import Ledger
from voxfleet.report.figures import mosaic
from voxfleet.tracking.base import Tracker

_SHOWN = 6  # volumes of a class in a picture


def write_dataset(
    config: GenerateConfig,
    model: dict[str, Any],
    inputs: dict[str, str],
    ledger: Ledger,
    tally: Tally,
    tracker: Tracker,
) -> None:
    """Write all that describes the samples in the ledger, the manifest last, and record it.

    Args:
        config: of the campaign, its paths absolute.
        model: the configuration of the model's package.
        inputs: fingerprints of the packages.
        ledger: of the campaign, which is complete.
        tally: what this run made.
        tracker: of the job.
    """
    classes, rows = model["classes"], ledger.table(SCHEMA)
    is_kept = pc.equal(rows["reason"], "")
    kept, rejected = (_sorted(rows.filter(chosen), classes) for chosen in (is_kept, pc.invert(is_kept)))
    every, kept = kept, _once(kept)
    if config.save.latents:
        kept = _shards_once(config.output, every, kept)
    files: dict[str, bytes] = {}
    if config.save.volumes:
        files |= dataset_files(kept, classes, model["fingerprint"], inputs["autoencoder"])
        files |= _pictures(config.output, kept, classes)
    if config.save.latents:
        write_manifest(storage.join(config.output, LATENTS), _latents_manifest(model, kept))
    if len(rejected):
        files[REJECTED] = table_bytes(rejected)
    summary = _summary(kept, rejected, classes, tally)
    files[SUMMARY] = bids.json_bytes(summary)
    files[MANIFEST] = table_bytes(kept)
    for name, data in files.items():
        storage.write_bytes(storage.join(config.output, name), data)
        if name in (SUMMARY, MANIFEST, REJECTED) or name.startswith(FIGURES):
            tracker.log_artifact(storage.join(config.output, name))
    tracker.log_metrics([_metrics(summary)])


def _sorted(rows: pa.Table, classes: Sequence[str]) -> pa.Table:
    """By class, as the model orders them, index and attempt."""
    label = pc.index_in(rows["class"], value_set=pa.array(classes))
    order = pc.sort_indices(
        pa.table({"label": label, "index": rows["index"], "attempt": rows["attempt"]}),
        sort_keys=[(key, "ascending") for key in ("label", "index", "attempt")],
    )
    return rows.take(order)


def _once(rows: pa.Table) -> pa.Table:
    """Each sample once: where storage has no locks, two runs may have made the same ones."""
    names = np.array(rows["sample_id"].to_pylist(), dtype=object)
    return rows.take(np.flatnonzero(np.append(True, names[1:] != names[:-1])[: len(names)]))


def _shards_once(folder: str, every: pa.Table, kept: pa.Table) -> pa.Table:
    """``kept``, with shards that hold nothing else of ``every``: those that do are written again without it."""
    before, after = (Counter(rows["latents"].to_pylist()) for rows in (every, kept))
    if not (shared := sorted(file for file in after if after[file] < before[file])):
        return kept
    rows = kept.to_pylist()
    for file in shared:
        mine = [row for row in rows if row["latents"] == file]
        names = [row["sample_id"] for row in mine]
        table = read_shard(storage.join(folder, file))
        part = table.filter(pc.is_in(table["source"], value_set=pa.array(names)))
        again = f"{file.removesuffix('.parquet')}-{digest(names)}.parquet"
        sha256 = storage.write_bytes(storage.join(folder, again), table_bytes(part))
        for row in mine:
            row |= {"latents": again, "latents_sha256": sha256}
    return pa.Table.from_pylist(rows, schema=kept.schema)


def _pictures(folder: str, kept: pa.Table, classes: Sequence[str]) -> dict[str, bytes]:
    """A mosaic of the first samples of each class, by its file."""
    found = {}
    for name in classes:
        rows = kept.filter(pc.equal(kept["class"], name)).slice(0, _SHOWN).select(["sample_id", "file"]).to_pylist()
        if rows:
            volumes = [nifti.read(storage.join(folder, row["file"])).get_fdata(dtype=np.float32) for row in rows]
            found[f"{FIGURES}/{name}.png"] = mosaic(np.stack(volumes), [row["sample_id"] for row in rows])
    return found


def _latents_manifest(model: dict[str, Any], kept: pa.Table) -> Manifest:
    """Of the latent shards: synthetic, so that all of them count as of the training split.

    Mean and std are those by which the model standardises.
    """
    classes, size = tuple(model["classes"]), model["architecture"]["input_size"]
    counts = Counter(kept["class"].to_pylist())
    rows = Counter(zip(kept["latents"].to_pylist(), kept["latents_sha256"].to_pylist(), strict=True))
    return Manifest(
        kind="latents",
        shape=(model["architecture"]["in_channels"], *size),
        classes=classes,
        counts={split: {name: counts[name] * (split == "train") for name in classes} for split in SPLITS},
        mean=model["mean"],
        std=model["std"],
        geometry=model["geometry"],
        limits=model["limits"],
        suffix=model["suffix"],
        autoencoder=model["autoencoder"],
        shards=[
            {"file": file.removeprefix(f"{LATENTS}/"), "rows": number, "sha256": sha256}
            for (file, sha256), number in sorted(rows.items())
        ],
    )


def _summary(kept: pa.Table, rejected: pa.Table, classes: Sequence[str], tally: Tally) -> dict[str, Any]:
    """What is there, and what the last run took."""
    counts = Counter(kept["class"].to_pylist())
    reasons = Counter(reason.partition(" is ")[0] for reason in rejected["reason"].to_pylist())
    checks = pa.Table.from_struct_array(kept["checks"].combine_chunks()) if len(kept) else pa.table({})
    measured = {name: checks[name].drop_null() for name in checks.column_names}
    return {
        "samples": {name: counts[name] for name in classes},
        "rejected_attempts": dict(sorted(reasons.items())),
        "acceptance": len(kept) / max(len(kept) + len(rejected), 1),
        "checks": {
            name: {"min": pc.min(values).as_py(), "mean": pc.mean(values).as_py(), "max": pc.max(values).as_py()}
            for name, values in measured.items()
            if len(values)
        },
        "image_bytes": pc.sum(kept["bytes"]).as_py() or 0,
        "last_run": {
            "samples": tally.kept,
            "wall_s": tally.wall_s,
            "writers": tally.writers,
            "stages": {name: vars(spent) for name, spent in tally.spent.items()},
        },
    }


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    run = summary["last_run"]
    return {
        **{f"samples_{name}": number for name, number in summary["samples"].items()},
        **{f"rejected_{check.replace(' ', '_')}": number for check, number in summary["rejected_attempts"].items()},
        "acceptance": summary["acceptance"],
        **({"samples_per_s": run["samples"] / run["wall_s"]} if run["wall_s"] else {}),
        **{f"{name.replace(' ', '_')}_s": stage["wall_s"] for name, stage in run["stages"].items()},
    }
