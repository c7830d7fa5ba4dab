"""What is asked of latents, line by line, and the table of their channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voxfleet.engine.latent_decoding import MARGIN, Decoded
from voxfleet.engine.latent_pieces import REAL, SYNTHETIC
from voxfleet.metrics.channels import FAR, ChannelSums
from voxfleet.models.vae import LOGVAR
from voxfleet.report.page import Check

_OFF = 0.01  # from 0 and 1, of the statistics by which latents are standardised
_SYNTHETIC_MEAN, _SYNTHETIC_STD = 0.25, (0.8, 1.25)
_UNUSED = 0.9  # share of noise
_ALIKE = 0.95  # correlation: one channel then tells 90 % of the other
_MOST_FAR = 0.01
_MOST_OUTSIDE = 0.01
_LEAST_PSNR = 25  # dB, as evaluate asks of reconstructions
NO_NOISE = "left out: these latents have no log-variance (they were imported without, or are samples)"
NOTES = (
    "Latents are standardised by the mean and the sd of the manifest, as training does. The tables of channels are in "
    "the autoencoder's units; mean and sd are of draws from the posteriors, the other figures of their means.",
    "Share of noise: mean(sigma^2) over the variance of a draw mu + sigma * eps. So much of what a network is trained "
    "on would be one frozen draw of noise, if draws were stored in place of mu and log-variance. A channel that is "
    "nearly all noise is unused: the autoencoder's KL term closed it.",
    "Separation: distance between the centres of two groups over the distance that chance alone gives two samples of "
    "these sizes from one distribution; about 1 where they are one. Spread: how wide the first group is over how wide "
    "the second is. Both are of whole latents (pooled where large), not of the map's two axes.",
    "Principal axes are those of the training split; held-out people lie nearer to the middle than those of the "
    "training split where people are few beside the values of a latent.",
    "Range before clamping and PSNR are of some held-out latents, each with one draw of noise.",
)


def has_noise(sums: ChannelSums) -> bool:
    """Whether the posteriors have a width: the log-variance of latents without any is stored as the lowest."""
    return sums.top_logvar > LOGVAR[0]


def judge(sums: Mapping[str, ChannelSums], std: Sequence[float], decoded: Decoded | None) -> list[Check]:
    """The lines of the verdict, from the sums over each set and the manifest's ``std`` (C,)."""
    real = sums[REAL]
    lines = [*_standardised(real), _noise(real), _unused(real), _alike(real)]
    far = float(real.far.sum() / (real.n * len(real.far)))
    wanted = f"<= {100 * _MOST_FAR:g} %"
    lines.append(Check(f"values beyond {FAR:g} sd", f"{100 * far:.2g} %", wanted, far <= _MOST_FAR))
    factors = 1 / np.asarray(std)
    overall = float(np.sqrt(np.mean(np.square(std))))
    scale = f"{overall:.3g} (standardising multiplies channels by {factors.min():.3g} to {factors.max():.3g})"
    lines.append(Check("sd of the latents as they are stored", scale))
    lines += _synthetic(sums[SYNTHETIC]) if SYNTHETIC in sums else []
    return lines + (_decoding(decoded, has_noise(real)) if decoded else [])


def _standardised(real: ChannelSums) -> list[Check]:
    mean, std = _farthest(real.mean, 0), _farthest(real.std, 1)
    return [
        Check("training latents, standardised: mean", f"{mean:.1e}", f"0 ± {_OFF:g}", abs(mean) <= _OFF),
        Check("training latents, standardised: sd", f"{std:.4f}", f"1 ± {_OFF:g}", abs(std - 1) <= _OFF),
    ]


def _farthest(values: np.ndarray, wanted: float) -> float:
    return float(values[np.abs(values - wanted).argmax()])


def _noise(real: ChannelSums) -> Check:
    name = "share of noise in the variance of a draw"
    if not has_noise(real):
        return Check(name, NO_NOISE)
    by_channel = ", ".join(f"{100 * share:.2g}" for share in real.noise_share)
    return Check(name, f"{100 * real.total_noise_share:.2g} % (by channel: {by_channel})")


def _unused(real: ChannelSums) -> Check:
    name = f"unused channels (noise above {100 * _UNUSED:g} %)"
    if not has_noise(real):
        return Check(name, NO_NOISE)
    unused = np.flatnonzero(real.noise_share > _UNUSED).tolist()
    return Check(name, ", ".join(map(str, unused)) or "none", "none", not unused)


def _alike(real: ChannelSums) -> Check:
    name = "strongest correlation of two channels"
    others = np.abs(real.correlation - np.eye(len(real.correlation)))
    if len(others) < 2:
        return Check(name, "left out: there is one channel")
    one, other = sorted(int(i) for i in np.unravel_index(others.argmax(), others.shape))
    value = f"{real.correlation[one, other]:.2f} (channels {one} and {other})"
    return Check(name, value, f"within {_ALIKE:g}", bool(others.max() <= _ALIKE))


def _synthetic(found: ChannelSums) -> list[Check]:
    mean, std = _farthest(found.mean, 0), _farthest(found.std, 1)
    low, high = _SYNTHETIC_STD
    return [
        Check(
            "synthetic latents, standardised as the training's: mean",
            f"{mean:.3f}",
            f"0 ± {_SYNTHETIC_MEAN:g}",
            abs(mean) <= _SYNTHETIC_MEAN,
        ),
        Check(
            "synthetic latents, standardised as the training's: sd",
            f"{std:.3f}",
            f"{low:g} to {high:g}",
            low <= std <= high,
        ),
    ]


def _decoding(decoded: Decoded, noise: bool) -> list[Check]:
    value = f"{100 * decoded.outside:.2g} % (range {decoded.low:.2f} to {decoded.high:.2f})"
    lines = [
        Check(
            f"voxels beyond [0, 1] by more than {MARGIN:g} before clamping",
            value,
            f"<= {100 * _MOST_OUTSIDE:g} %",
            decoded.outside <= _MOST_OUTSIDE,
        )
    ]
    name = "PSNR between volumes of a posterior's mean and of a draw"
    if not noise:
        return [*lines, Check(name, NO_NOISE)]
    least = float(decoded.psnr.min())
    value = f"{decoded.psnr.mean():.1f} dB (lowest {least:.1f}, {len(decoded.psnr)} volumes)"
    return [*lines, Check(name, value, f"lowest >= {_LEAST_PSNR} dB", least >= _LEAST_PSNR)]


def channel_rows(real: ChannelSums, mean: Sequence[float], std: Sequence[float]) -> list[dict[str, Any]]:
    """A row a channel, in the autoencoder's units, of latents standardised by ``mean`` and ``std`` (C,)."""
    shift, scale = np.asarray(mean), np.asarray(std)
    columns: dict[str, np.ndarray] = {
        "mean": real.mean * scale + shift,
        "sd": real.std * scale,
        "min": real.low * scale + shift,
        "max": real.high * scale + shift,
        "skewness": real.skewness,
        "excess kurtosis": real.excess_kurtosis,
        f"beyond {FAR:g} sd (%)": 100 * real.far / real.n,
        "scale factor": 1 / scale,
    }
    if has_noise(real):
        columns |= {"mean sigma": real.sigma / real.n * scale, "share of noise (%)": 100 * real.noise_share}
    return [
        {"channel": channel, **{name: float(values[channel]) for name, values in columns.items()}}
        for channel in range(len(scale))
    ]
