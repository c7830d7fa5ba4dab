"""The workers that draw and decode samples of a campaign.

Every batch has one shape (a short one is padded), a sample always the same place in it, and the number of threads is
fixed: so a sample is the same bit for bit whenever it is made. Letters: B batch, C channels, d/h/w voxels of a latent,
D/H/W of a volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxfleet.data.campaign import Sample
from voxfleet.data.known import Known
from voxfleet.diffusion.samplers import SamplerConfig
from voxfleet.metrics.latents import novelty
from voxfleet.models.execution import padded, reproducible
from voxfleet.packages import load_autoencoder, load_model, resolve_decoding


@dataclass(frozen=True, kw_only=True)
class Making:
    """How samples are made; with the seed of a sample, this decides its bits.

    Attributes:
        model, autoencoder: folders of the packages.
        sampler: how latents are drawn.
        precision, mode: of the network; see ``load_model``.
        decode_precision: of the autoencoder.
        batch_size, decode_batch_size: shape of every batch.
        threads: of a worker.
        device: cpu or cuda.
    """

    model: str
    autoencoder: str
    sampler: SamplerConfig
    precision: str
    mode: str
    decode_precision: str
    batch_size: int
    decode_batch_size: int
    threads: int
    device: str


class Drawer:
    """Draws the latents of a batch."""

    def __init__(self, making: Making, known: Known | None) -> None:
        torch.set_num_threads(making.threads)
        reproducible(making.mode)
        self._making = making
        self._model = load_model(making.model, making.device, precision=making.precision, mode=making.mode)
        self._known = known and tuple(
            torch.from_numpy(part.copy()).to(making.device) for part in (known.means.astype(np.float64), known.subjects)
        )

    def draw(self, batch: Sequence[Sample]) -> Tensor:
        """Latents (B, C, d, h, w) on the device, each in the place of its sample; the others are of no meaning."""
        size = self._making.batch_size
        padded = [batch[0]] * size
        for sample in batch:
            padded[sample.place(size)] = sample
        return self._model.sample([s.label for s in padded], [s.seed for s in padded], self._making.sampler)

    def made(self, batch: Sequence[Sample], latents: Tensor) -> dict[str, Any]:
        """``made`` of ``data.synthetic.Writer``, and ``latents`` (len(batch), C, d, h, w) float32 of the samples."""
        places = [sample.place(self._making.batch_size) for sample in batch]
        checks = [{"finite": float(finite)} for finite in torch.isfinite(latents[places]).flatten(1).all(dim=1)]
        if self._known:
            mean, std = (
                torch.tensor(v, device=latents.device).reshape(-1, 1, 1, 1) for v in (self._model.mean, self._model.std)
            )
            all_found = novelty(((latents - mean) / std).flatten(1), *self._known)  # of one shape: the same bits
            found = all_found[places]
            checks = [{**check, "novelty": float(value)} for check, value in zip(checks, found, strict=True)]
        return {"latents": latents[places].float().cpu().numpy(), "made": {**self._how(), "checks": checks}}

    def _how(self) -> dict[str, Any]:
        making = self._making
        return {
            "batch_size": making.batch_size,
            "decode_batch_size": making.decode_batch_size,
            "threads": torch.get_num_threads(),
            "dtype": self._model.precision,
            "decode_dtype": resolve_decoding(making.decode_precision, torch.device(making.device)),
            "mode": making.mode,
            "device": device_name(making.device),
        }

    def __call__(self, batch: Sequence[Sample]) -> dict[str, Any]:
        """The latents, and how they were made."""
        return self.made(batch, self.draw(batch))


class Decoder:
    """Decodes the latents of a batch."""

    def __init__(self, making: Making) -> None:
        torch.set_num_threads(making.threads)
        reproducible("eager")
        self._making = making
        self._autoencoder = load_autoencoder(making.autoencoder, making.device, precision=making.decode_precision)

    def __call__(self, batch: Sequence[Sample], latents: np.ndarray) -> dict[str, Any]:
        """The volumes of latents (len(batch), C, d, h, w)."""
        padded = np.zeros((self._making.batch_size, *latents.shape[1:]), latents.dtype)
        padded[[sample.place(self._making.batch_size) for sample in batch]] = latents
        return self.decoded(batch, torch.from_numpy(padded).to(self._making.device))

    def decoded(self, batch: Sequence[Sample], latents: Tensor) -> dict[str, Any]:
        """``volumes`` (len(batch), W, H, D) float32, the axes as NIfTI stores them, of latents (B, C, d, h, w)."""
        size = self._making.decode_batch_size
        places = [sample.place(self._making.batch_size) for sample in batch]
        parts = {}
        for number in sorted({place // size for place in places}):
            part = padded(latents[number * size : (number + 1) * size], size)
            parts[number] = self._autoencoder.decode(part)[:, 0].permute(0, 3, 2, 1).contiguous().float().cpu().numpy()
        return {"volumes": np.stack([parts[place // size][place % size] for place in places])}


class Maker:
    """Draws and decodes a batch on one device."""

    def __init__(self, making: Making, known: Known | None) -> None:
        self._drawer, self._decoder = Drawer(making, known), Decoder(making)

    def __call__(self, batch: Sequence[Sample]) -> dict[str, Any]:
        """What a Drawer and a Decoder give."""
        latents = self._drawer.draw(batch)
        return {**self._drawer.made(batch, latents), **self._decoder.decoded(batch, latents)}


def device_name(device: str) -> str:
    """The device by its model, as far as results may depend on it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
