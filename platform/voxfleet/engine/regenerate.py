"""The regenerate job: one sample of a campaign, made again by itself, beside the one that is there."""

import dataclasses
import tempfile
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from voxfleet import storage
from voxfleet.config.generation import GenerateConfig, RegenerateConfig
from voxfleet.config.parsing import read_config
from voxfleet.data import nifti
from voxfleet.data.campaign import SCHEMA, Sample
from voxfleet.data.quality import GateConfig
from voxfleet.data.shards import read_shard, tensors
from voxfleet.engine.campaign import making_of
from voxfleet.engine.console import say
from voxfleet.engine.generate import Request
from voxfleet.engine.makers import Drawer, Maker, device_name
from voxfleet.engine.output import JOB_FILE, LEDGER
from voxfleet.engine.registered import located_packages
from voxfleet.engine.units import Ledger
from voxfleet.errors import GateError, UserError
from voxfleet.packages import is_complete


def run(config: RegenerateConfig) -> None:
    """Make the sample, and say whether it is the same.

    Raises:
        GateError: if it is not.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _run(config, scratch)


def _run(config: RegenerateConfig, scratch: str) -> None:
    if config.output and storage.exists(storage.join(config.output, JOB_FILE)):
        raise UserError(f"output {config.output} holds the files of a job; name another folder")
    record = _record(config)
    row = _row(config)
    moved = {key: getattr(config, key) for key in ("model", "autoencoder") if getattr(config, key)}
    campaign = read_config(GenerateConfig, "generate", {**record["config"], **moved})
    # the training latents need not be here: what is there was judged
    campaign = dataclasses.replace(campaign, tracking=config.tracking, gate=GateConfig())
    campaign = located_packages(campaign, scratch)
    for key in ["model", *(["autoencoder"] if campaign.save.volumes else [])]:
        folder = getattr(campaign, key)
        if folder and not is_complete(folder):
            raise UserError(f"the {key} of {config.dataset} is no longer at {folder}; say where, by --{key}")
    request = Request.of(campaign)
    for key, mark in request.inputs.items():
        if mark != record["inputs"][key]:
            raise UserError(f"{getattr(campaign, key)} is not the {key} of {config.dataset}; give that, as --{key}")
    label = request.classes.index(row["class"])
    sample = Sample(label, row["class"], row["index"], campaign.campaign.seed, row["attempt"])
    making = dataclasses.replace(
        making_of(campaign, not row["device"].startswith("cpu") and torch.cuda.is_available()),
        **{key: row[key] for key in ("batch_size", "decode_batch_size", "threads", "mode")},
        precision=row["dtype"],
        decode_precision=row["decode_dtype"],
    )
    made = (Maker if campaign.save.volumes else Drawer)(making, None)([sample])
    differences = []
    if campaign.save.volumes:
        folder = storage.join(scratch, "sample")
        (again,) = request.writer({}, folder)([sample], made["made"], made["volumes"])
        differences.append(_of_images(row, again, config.dataset, folder))
        if config.output:
            storage.write_bytes(
                storage.join(config.output, row["file"]), storage.read_bytes(storage.join(folder, row["file"]))
            )
    if campaign.save.latents:
        differences.append(_of_latents(row, made["latents"][0], config.dataset))
    if found := [difference for difference in differences if difference]:
        here = device_name(making.device)
        where = "" if here == row["device"] else f"; it was made on {row['device']}, this is {here}"
        raise GateError(f"{config.sample} made again is not the same: {', '.join(found)}{where}")
    say(f"regenerate: {config.sample} is the same, byte for byte (seed {sample.seed}, attempt {sample.attempt})")


def _record(config: RegenerateConfig) -> dict[str, Any]:
    """Of the campaign: its configuration and inputs."""
    uri = storage.join(config.dataset, JOB_FILE)
    record = storage.read_json(uri) if storage.exists(uri) else {}
    if record.get("job") != "generate":
        raise UserError(f"{config.dataset} is not an output of generate; give the folder of a campaign")
    return record


def _row(config: RegenerateConfig) -> dict[str, Any]:
    """What is known of the sample."""
    rows = Ledger(storage.join(config.dataset, LEDGER)).table(SCHEMA)
    rows = rows.filter(pc.equal(rows["reason"], ""))
    found = rows.filter(pc.equal(rows["sample_id"], config.sample)).to_pylist()
    if not found:
        example = f", such as {rows['sample_id'][0].as_py()}" if len(rows) else ""
        raise UserError(f"{config.dataset} has no sample {config.sample}; it has {len(rows)}{example}")
    return found[0]


def _of_images(row: dict[str, Any], again: dict[str, Any], dataset: str, folder: str) -> str:
    """How the image differs from that of the dataset; empty if it does not."""
    if again["sha256"] == row["sha256"]:
        return ""
    there, here = (nifti.read(storage.join(at, row["file"])).get_fdata() for at in (dataset, folder))
    return f"voxels differ by up to {np.abs(there - here).max():.3g}"


def _of_latents(row: dict[str, Any], latents: np.ndarray, dataset: str) -> str:
    table = read_shard(storage.join(dataset, row["latents"]))
    there = tensors(table, "mu")[table["source"].to_pylist().index(row["sample_id"])]
    return "" if np.array_equal(there, latents) else f"latents differ by up to {np.abs(there - latents).max():.3g}"
