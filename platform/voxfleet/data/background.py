"""The background of a head image: how bright air is, and what is padding and not air."""

import numpy as np
from scipy import ndimage

from voxfleet.errors import UserError

PADDING = "padding far below the image's own range (set to air)"
# Of the range from air to the brightest tissue: what lies below is background. The rule of FSL's BET (Smith 2002),
# with the median of the outer faces for the darkest intensity: a second percentile may be padding, or noise below 0.
_BACKGROUND_FRACTION = 0.1
_NOISE_SD = 3.0  # so far above air begins the head where noise is larger than that fraction
_MAD_TO_SD = 1.4826  # of a normal distribution
_MIN_PADDING = 1e-3  # of all voxels; fewer are outliers, which do not move a median
_FILL_TOLERANCE = 0.01  # of the fill value: resampling leaves it nearly constant
_MAX_DARKER = 0.1  # of the head's voxels: as many may be darker than air
# On the outer faces, or else beside padding, lies air, and little is darker than that. Stripped brains have tissues
# of all intensities there, of which many are darker than their median.
_MIN_AIR, _MAX_DARKER_TISSUE, _MIN_OUTER = 0.75, 0.5, 0.05


def without_padding(data: np.ndarray) -> tuple[np.ndarray, bool]:
    """``data`` (D, H, W) with padding set to the intensity of air, and whether there was any.

    Resampled and corrected images hold a constant, such as -1000, where nothing was measured. That is not air: it is
    negative, and air is about 0 and lies well above it.
    """
    fill = data <= data.min() * (1 - _FILL_TOLERANCE)
    if data.min() >= 0 or not _MIN_PADDING <= fill.mean() < 1:
        return data, False
    outer = _faces(data)[~_faces(fill)]
    if outer.size < _MIN_OUTER * fill.size ** (2 / 3):  # padding, or the air around a stripped brain, all around
        # not what is next to it, which may be a mixture of both
        outer = data[ndimage.binary_dilation(fill, iterations=4) & ~ndimage.binary_dilation(fill, iterations=2)]
    if not outer.size:
        return data, False
    air, noise = _median_and_sd(outer)
    tissue = np.percentile(data[~fill], 98) - air
    margin = max(_BACKGROUND_FRACTION * tissue, _NOISE_SD * noise)
    darker, brighter = np.count_nonzero(~fill & (data < air - margin)), np.count_nonzero(data > air + margin)
    is_air = (
        np.mean(outer[outer >= air - margin] <= air + margin) >= _MIN_AIR and darker <= _MAX_DARKER_TISSUE * brighter
    )
    if not is_air or abs(air) > _BACKGROUND_FRACTION * tissue or data[fill].max() >= air - _NOISE_SD * noise:
        return data, False
    return np.where(fill | (data < air - margin), np.float32(air), data), True


def air_level(data: np.ndarray) -> float:
    """The intensity of air: the median of the six outer planes of ``data`` (D, H, W)."""
    return _median_and_sd(_faces(data))[0]


def background_threshold(data: np.ndarray) -> tuple[float, float]:
    """The intensity above which a voxel of ``data`` (D, H, W) is head, and the one below which it is an outlier.

    Raises:
        UserError: if the image is constant, or the background is not darker than the head.
    """
    darkest = data.min()
    if darkest == data.max():
        raise UserError(f"the image is constant ({darkest:g} everywhere); replace the file")
    air, noise = _median_and_sd(_faces(data))
    # among what is not the darkest value: a stripped brain may fill less than 2 % of its field of view
    bright = float(np.percentile(data[data > darkest], 98))
    margin = max(_BACKGROUND_FRACTION * (bright - air), _NOISE_SD * noise)
    head, darker = np.count_nonzero(data > air + margin), np.count_nonzero(data < air - margin)
    if not head or darker > _MAX_DARKER * head:
        raise UserError(
            "the background is not darker than the head (z-scored, inverted, or noise as in MP2RAGE?); give the plain "
            "intensities, or a brain mask"
        )
    return air + margin, air - margin


def faces(data: np.ndarray) -> list[np.ndarray]:
    """The six outer planes."""
    return [np.take(data, index, axis) for axis in range(3) for index in (0, -1)]


def _faces(data: np.ndarray) -> np.ndarray:
    return np.concatenate([face.ravel() for face in faces(data)])


def _median_and_sd(values: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation by the median distance from it, which a minority of others does not move."""
    median = float(np.median(values))
    return median, _MAD_TO_SD * float(np.median(np.abs(values - median)))
