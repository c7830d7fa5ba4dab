"""Does a set of synthetic volumes look like the real ones? Volumes are (n, D, H, W), intensities in [0, 1]."""

import numpy as np

BRAIN, TISSUE = 0.2, 0.3  # intensity above which a voxel of a mean volume is brain, of a volume is tissue


def mean_correlation(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Pearson correlation of the mean synthetic with the mean real volume, inside the mean real brain."""
    mean_real, mean_synthetic = real.mean(axis=0), synthetic.mean(axis=0)
    brain = mean_real > BRAIN
    return float(np.corrcoef(mean_real[brain], mean_synthetic[brain])[0, 1])


def tissue_counts(volumes: np.ndarray) -> np.ndarray:
    """Voxels above the tissue threshold in each volume, (n,)."""
    return (volumes > TISSUE).sum(axis=(1, 2, 3))


def outside_range(real: np.ndarray, synthetic: np.ndarray, slack: float) -> int:
    """How many of the ``synthetic`` values lie outside the range of ``real``, widened by the share ``slack``."""
    low, high = real.min() * (1 - slack), real.max() * (1 + slack)
    return int(((synthetic < low) | (synthetic > high)).sum())


def pairwise_difference(volumes: np.ndarray) -> float:
    """Mean absolute difference over all pairs of volumes and all voxels: how much they vary."""
    flat = volumes.reshape(len(volumes), -1)
    pairs = [np.abs(flat[i] - flat[j]).mean() for i in range(len(flat)) for j in range(i)]
    return float(np.mean(pairs))
