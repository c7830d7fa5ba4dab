"""The interpolate job: volumes on the way from one latent to another, as images and in a picture.

Letters: n points, C channels, d/h/w voxels of a latent, D/H/W of a volume.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from voxfleet import __version__, storage
from voxfleet.config.generation import InterpolateConfig
from voxfleet.data import nifti
from voxfleet.data.index import Index, read_index
from voxfleet.data.shards import read_manifest
from voxfleet.diffusion.interpolation import slerp
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import adds_noise, sampler_table
from voxfleet.engine.cluster import gpus_per_worker, ray_errors
from voxfleet.engine.console import Progress
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import Output
from voxfleet.engine.registered import located_packages, shared_packages
from voxfleet.errors import UserError
from voxfleet.packages import fitting_autoencoder, load_autoencoder, load_model, read_package_config
from voxfleet.report.figures import mosaic

FIGURES, PICTURE = "interpolation.json", "interpolation.png"
# a configuration whose packages are at hand, weights (n,) and a device to (n, C, d, h, w) in the autoencoder's space
Latents = Callable[[InterpolateConfig, Tensor, str], Tensor]


def run(config: InterpolateConfig) -> None:
    """Make the volumes, the picture, and last the figures, which mark the folder as complete."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(config, downloads)


def _run(config: InterpolateConfig, downloads: str) -> None:
    located = located_packages(config, downloads)
    ends = Seeds(located) if config.model else Subjects(located)
    autoencoder = fitting_autoencoder(located.autoencoder, ends.autoencoder, ends.uri)["fingerprint"]
    output = Output("interpolate", config.output, config, {ends.key: ends.digest, "autoencoder": autoencoder})
    if output.is_done(FIGURES):
        return
    latents = ends.latents()
    weights = torch.linspace(0, 1, config.points, dtype=torch.float64)
    with job_session(output, workers=True) as tracker:
        shared = shared_packages(located, downloads, config.output)
        there = absolute_paths(shared, "output", "autoencoder", *(["model"] if config.model else []))
        progress = Progress("interpolate", config.points, "volumes")
        volumes = _on_a_worker(there, latents, weights)
        points = _write_volumes(there.output, weights.tolist(), volumes, np.array(ends.geometry["affine"]))
        picture = storage.join(there.output, PICTURE)
        storage.write_bytes(picture, mosaic(volumes, [f"{weight:.2f}" for weight in weights]))
        tracker.log_artifact(picture)
        apart = np.abs(np.diff(volumes, axis=0)).mean(axis=(1, 2, 3)).tolist()
        differences = {"ends_differ": float(np.abs(volumes[-1] - volumes[0]).mean()), "neighbours_differ": max(apart)}
        tracker.log_metrics([differences])
        document = {"voxfleet": __version__, "between": ends.described, "autoencoder": autoencoder}
        figures = {**differences, "neighbours_differ": apart, "points": points}
        storage.write_json(storage.join(there.output, FIGURES), {**document, **figures})
        progress.finish(
            f"{config.points} volumes in {config.output}; mean difference of the ends "
            f"{differences['ends_differ']:.4f}, of neighbours at most {differences['neighbours_differ']:.4f}"
        )


class Seeds:
    """The noise that two samples of a model start from."""

    key = "model"

    def __init__(self, config: InterpolateConfig) -> None:
        assert config.model  # the configuration sees to it
        package = read_package_config(config.model, "model")
        self.config, self.uri = config, config.model
        self.digest, self.autoencoder = package["fingerprint"], package["autoencoder"]
        self.geometry, self._package = package["geometry"], package

    @property
    def described(self) -> dict[str, Any]:
        """What the figures say of them."""
        sampler = dataclasses.asdict(self.config.sampler)
        return {"model": self.digest, "seeds": self.config.seeds, "label": self.config.label, "sampler": sampler}

    def latents(self) -> Latents:
        """The samples on the way.

        Raises:
            UserError: if the model has no such class, or the sampler does not fit it or adds noise.
        """
        classes, sampler = self._package["classes"], self.config.sampler
        if self.config.label not in classes:
            raise UserError(f"label is {self.config.label!r}; the classes of {self.uri} are {', '.join(classes)}")
        try:
            table = sampler_table(sampler, Process(DiffusionConfig(**self._package["diffusion"])))
        except ValueError as error:
            raise UserError(f"sampler.{error}") from error
        if adds_noise(table):
            raise UserError(
                f"sampler.name is {sampler.name!r} (eta {sampler.eta:g}), which adds noise at each step, so there is "
                "no way from one sample to another; use ddim with eta 0, or dpm-solver++"
            )
        return between_seeds


class Subjects:
    """The latents of two encoded subjects."""

    key = "data"

    def __init__(self, config: InterpolateConfig) -> None:
        assert config.data  # the configuration sees to it
        self.config, self.uri = config, config.data
        self._manifest = read_manifest(config.data, "latents")
        self.digest, self.autoencoder = self._manifest.digest, self._manifest.autoencoder
        self.geometry = self._manifest.geometry

    @property
    def described(self) -> dict[str, Any]:
        """What the figures say of them."""
        return {"data": self.digest, "subjects": self.config.subjects}

    def latents(self) -> Latents:
        """The latents on the way.

        Raises:
            UserError: if a subject is not there.
        """
        splits = read_index(self.uri, self._manifest, ("mu",)).values()
        mu = np.stack([self._mu(splits, subject) for subject in self.config.subjects or ()])
        mean, std = self._manifest.mean, self._manifest.std
        return lambda _, weights, device: between_subjects(mu, mean, std, weights, device)

    def _mu(self, splits: Collection[Index], subject: str) -> np.ndarray:
        for split in splits:
            if len(rows := np.flatnonzero(split.subjects == subject)):
                return split.read(rows[:1], ("mu",))["mu"][0]
        known = sorted({name for split in splits for name in split.subjects.tolist()})
        raise UserError(
            f"{self.uri} has no subject {subject!r}; it has {len(known)}, such as {known[0]} and {known[-1]}"
        )


def between_seeds(config: InterpolateConfig, weights: Tensor, device: str) -> Tensor:
    """Samples (n, C, d, h, w) that start on the arc between the noise of two seeds."""
    assert config.model
    assert config.seeds
    assert config.label
    model = load_model(config.model, device, precision=config.precision)
    noise = _arc(model.initial_noise(config.seeds), weights.to(device))
    # the seeds decide nothing: the noise is given, and the sampler adds none
    parts = [
        model.sample([config.label] * len(part), [0] * len(part), config.sampler, noise=part)
        for part in noise.split(config.batch_size)
    ]
    return torch.cat(parts)


def between_subjects(
    mu: np.ndarray, mean: Sequence[float], std: Sequence[float], weights: Tensor, device: str
) -> Tensor:
    """Latents (n, C, d, h, w) on the arc between those of two subjects, ``mu`` (2, C, d, h, w).

    It is an arc between standardised latents, as models know them: else the channels' means would turn it.
    """
    shift, scale = (torch.tensor(values, dtype=torch.float32)[:, None, None, None] for values in (mean, std))
    return (_arc((torch.from_numpy(mu).float() - shift) / scale, weights) * scale + shift).to(device)


def _arc(ends: Tensor, weights: Tensor) -> Tensor:
    start, end = (x.expand(len(weights), *x.shape) for x in ends)
    return slerp(start, end, weights)


def _on_a_worker(config: InterpolateConfig, latents: Latents, weights: Tensor) -> np.ndarray:
    """The volumes (n, D, H, W), made where the processors are.

    Raises:
        UserError: if one is not finite.
    """
    gpus = gpus_per_worker(config.resources)
    task = _volumes.options(num_cpus=config.resources.cpus_per_worker, num_gpus=gpus)
    with ray_errors():
        volumes = ray.get(task.remote(config, latents, weights, "cuda" if gpus else "cpu"))
    if not np.isfinite(volumes).all():
        raise UserError(
            f"a volume between the ends in {config.output} is not finite; lower sampler.guidance_scale, or train the "
            "model and the autoencoder further"
        )
    return volumes


@ray.remote(max_calls=1)  # threads and memory of the process are its own
def _volumes(config: InterpolateConfig, latents: Latents, weights: Tensor, device: str) -> np.ndarray:
    torch.set_num_threads(config.resources.cpus_per_worker)
    autoencoder = load_autoencoder(config.autoencoder, device)
    parts = latents(config, weights, device).split(config.batch_size)
    return torch.cat([autoencoder.decode(part)[:, 0].float().cpu() for part in parts]).numpy()


def _write_volumes(
    folder: str, weights: Sequence[float], volumes: np.ndarray, affine: np.ndarray
) -> list[dict[str, Any]]:
    """The volumes as images; what there is to say of each."""
    points = []
    for number, (weight, volume) in enumerate(zip(weights, volumes, strict=True)):
        file = f"point-{number:03d}.nii.gz"
        sha256 = storage.write_bytes(storage.join(folder, file), nifti.encode(volume, affine))
        points.append({"weight": weight, "file": file, "sha256": sha256})
    return points
