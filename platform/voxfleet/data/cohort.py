"""A simulated BIDS cohort: healthy controls (HC) and temporal lobe epilepsy (TLE), with ground truth.

Each person is the ICBM152 2009a template that nilearn ships, deformed, re-contrasted and disturbed at random; people
with TLE also lose volume and T1 signal in one hippocampus. Nobody was scanned, and every file says so.

Subject ``i`` depends on (seed, i) alone: not on how many are made, nor on where or in which order, and its anatomy
not on the spacing. On one machine the bits are the same for any number of threads: noise is expanded by sparse
products, filtered by scipy and sampled by grid_sample one volume at a time, which all run in one fixed order.

Shapes: D, H, W are the axes right, anterior and superior (RAS); points are (..., 3) in mm, MNI space.
"""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse

from voxfleet.data import bids, nifti
from voxfleet.errors import UserError

LABELS = {"left": 1, "right": 2}  # values of the ground truth

# The imaged box in mm: the template's brain and a margin for larger heads. Symmetric in x: fields are mirrored.
_LOWER, _UPPER = np.array([-87.0, -122.0, -87.0]), np.array([87.0, 88.0, 97.0])
_CENTRE = np.array([0.0, -17.0, 5.0])  # of the brain: heads turn and grow about it
_FIELD_SPACING = 4.0  # mm; the grid of the deformation, whatever the images' spacing
_SCALES = ((28.0, 2.8), (12.0, 1.5), (6.0, 0.6))  # mm: smoothness and standard deviation of the velocity
_SYMMETRIC, _ANTISYMMETRIC = 1.25, 0.3  # without this weighting healthy heads are absurdly lopsided
_SQUARINGS, _MIN_JACOBIAN = 5, 0.3
_CAP = 20  # mm; signed distances are cut here

_ELLIPSOID_CENTRE, _ELLIPSOID_RADII, _ELLIPSOID_TILT = (27.0, -20.0, -15.0), (9.5, 18.0, 8.0), 20.0  # mm, degrees
_HIPPOCAMPUS_REACH, _VENTRICLE_REACH = 5.0, 8.0  # mm; how far from the surface tissue is dragged along
_CHANGE = {"ipsi": (-0.275, 0.07), "contra": (-0.04, 0.02), "healthy": (0.0, 0.02)}  # mean, sd of relative volume
_T1_LOSS = 0.10  # in the shrunken hippocampus
_BIAS = (45.0, 0.09)  # mm, relative

_TRUTH = "derivatives/simulation"
_NOTICE = "SIMULATED: deformed from the ICBM152 2009a template; no person was scanned."
_CREDIT = (
    "Made from the ICBM152 2009a nonlinear template (Fonov et al. 2009, 2011; McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University), as shipped by nilearn."
)


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """What the simulated people are drawn from.

    Args:
        spacing_mm: Edge of the cubic voxels in mm, from 1 to 8.
        tle_share: Share of the people who have temporal lobe epilepsy, from 0 to 1; the others are healthy controls.
        seed: Base seed, 0 or more; person i depends on the seed and i alone.
    """

    spacing_mm: float = 3.0
    tle_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.spacing_mm <= 8:
            raise ValueError(f"spacing_mm is {self.spacing_mm}: it must be from 1 to 8 (mm)")
        if not 0 <= self.tle_share <= 1:
            raise ValueError(f"tle_share is {self.tle_share}: it must be from 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A simulated scanner."""

    gains: tuple[float, float, float]  # contrast of CSF, grey and white matter, relative to the template
    noise: float  # standard deviation of the Rician noise, relative to white matter
    blur_mm: float  # standard deviation of the point spread beside the voxel's own
    scale: float  # image value of white matter


SITES = {
    "A": Site(gains=(1.0, 1.0, 1.0), noise=0.015, blur_mm=0.6, scale=800.0),
    "B": Site(gains=(0.8, 0.93, 1.04), noise=0.025, blur_mm=1.0, scale=1100.0),
}


@dataclass(frozen=True)
class SimulatedSubject:
    """One simulated person.

    Attributes:
        participant: the row of participants.tsv.
        image: (D, H, W) float32, T1-weighted, 0 outside the brain.
        labels: (D, H, W) uint8, the true hippocampi (1 left, 2 right).
        affine: (4, 4), voxel indices to mm.
        volumes_mm3: true volume of the left and the right hippocampus, with the parts of voxels at the surface.
        min_jacobian: smallest Jacobian determinant of the deformation; positive: it does not fold.
    """

    participant: dict[str, Any]
    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    volumes_mm3: dict[str, float]
    min_jacobian: float


@dataclass(frozen=True)
class _Grid:
    """A regular grid: ``origin`` (3,) in mm, cubic ``spacing`` in mm, ``shape`` (D, H, W)."""

    origin: np.ndarray
    spacing: float
    shape: tuple[int, ...]

    @classmethod
    def over_box(cls, spacing: float) -> "_Grid":
        """The grid of ``spacing`` centred in the imaged box."""
        steps = np.floor((_UPPER - _LOWER) / spacing).astype(int)
        return cls((_LOWER + _UPPER - steps * spacing) / 2, spacing, tuple(int(n) + 1 for n in steps))

    def points(self) -> np.ndarray:
        """(D, H, W, 3) float32, in mm."""
        axes = [o + self.spacing * np.arange(n) for o, n in zip(self.origin, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)

    def affine(self) -> np.ndarray:
        """(4, 4), voxel indices to mm."""
        matrix = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    def sample(self, volume: torch.Tensor, points: np.ndarray) -> np.ndarray:
        """``volume`` (C, D, H, W) on this grid, linearly at ``points`` (d, h, w, 3) -> (d, h, w, C); edges extend."""
        half = (np.array(self.shape) - 1) / 2 * self.spacing
        unit = ((points - (self.origin + half)) / half).astype(np.float32)[..., ::-1]  # [-1, 1], order W, H, D
        at = torch.from_numpy(unit.copy())[None]
        found = F.grid_sample(volume[None], at, padding_mode="border", align_corners=True)
        return found[0].movedim(0, -1).numpy()


def _channels_first(field: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(field, -1, 0), dtype=np.float32))


@dataclass(frozen=True)
class _Atlas:
    """The template on its own ``grid``, and what is needed to change it locally."""

    grid: _Grid
    volume: torch.Tensor  # (5, D, H, W): T1, grey, white matter, brain (0 to 1), signed distance to the hippocampi (mm)
    hippocampus: np.ndarray  # (d, h, w, 3) on the field grid: outward displacement about the hippocampi, 1 mm at most
    ventricles: np.ndarray  # the same about the lateral ventricles
    changes: np.ndarray  # relative hippocampal volume changes, increasing ...
    amplitudes: np.ndarray  # ... and the factors of ``hippocampus`` that cause them


def _load_template() -> tuple[_Grid, np.ndarray]:
    """The template's grid at 1 mm, cut to the brain, and (3, D, H, W): T1, grey and white matter, from 0 to 1."""
    try:
        from nilearn import datasets  # an extra, and 3 s to import
    except ImportError as error:
        raise UserError("simulating a cohort needs nilearn's template; run: pip install 'voxfleet[demo]'") from error
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    images = [load(resolution=1) for load in loaders]
    maps = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images])
    (box,) = ndimage.find_objects((maps[0] > 0).astype(np.uint8))
    margin = 6  # voxels of air, so that what is sampled beyond the edge is air
    first = np.array([axis.start for axis in box]) - margin
    maps = np.pad(maps[:, *box], [(0, 0), *[(margin, margin)] * 3])
    return _Grid(images[0].affine[:3, 3] + first, 1.0, maps.shape[1:]), maps


def _hippocampi(points: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Both hippocampi as a mask: grey matter inside an ellipsoid that slopes down to the front, and its mirror."""
    x, y, z = np.moveaxis(points - np.array(_ELLIPSOID_CENTRE, dtype=np.float32), -1, 0)
    tilt = math.radians(_ELLIPSOID_TILT)
    along, across = math.cos(tilt) * y - math.sin(tilt) * z, math.sin(tilt) * y + math.cos(tilt) * z
    a, b, c = _ELLIPSOID_RADII
    parts, _ = ndimage.label(((x / a) ** 2 + (along / b) ** 2 + (across / c) ** 2 < 1) & (grey > 0.5))
    right = parts == np.bincount(parts.ravel())[1:].argmax() + 1  # the largest piece
    return right | right[::-1]  # the template is symmetric about x = 0


def _ventricles(points: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The lateral ventricles as a mask: fluid deep in the brain."""
    x, y, z = np.moveaxis(points, -1, 0)
    deep = (abs(x) < 35) & (y > -45) & (y < 35) & (z > -2) & (z < 30)
    return deep & (maps[0] > 0) & (maps[1] + maps[2] < 0.5)


def _signed_distance(mask: np.ndarray, smoothness: float) -> np.ndarray:
    """Smoothed distance to the surface of ``mask`` (1 mm voxels) in mm, negative inside, cut at +-20."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    box = tuple(slice(max(0, axis.start - _CAP), axis.stop + _CAP) for axis in box)
    inside, distance = mask[box], np.full(mask.shape, _CAP, dtype=np.float32)
    exact = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    distance[box] = ndimage.gaussian_filter(np.clip(exact, -_CAP, _CAP), smoothness)
    return distance


def _outward(grid: _Grid, distance: np.ndarray, reach: float, points: np.ndarray) -> np.ndarray:
    """Displacement along the gradient of ``distance`` at ``points``, 1 mm at the surface, fading over ``reach`` mm."""
    fade = np.exp(-((distance / reach) ** 2))
    normal = np.stack(np.gradient(distance, grid.spacing), axis=-1) * fade[..., None]
    return grid.sample(_channels_first(normal), points)


def _volume_table(grid: _Grid, distance: np.ndarray, field: _Grid, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(relative volume changes, increasing; amplitudes in mm of the displacement ``basis`` that cause them)."""
    near = np.argwhere(distance < 8).astype(np.float32)[None, None] * grid.spacing + grid.origin
    push = field.sample(_channels_first(basis), near)
    channel = _channels_first(distance[..., None])
    amplitudes = np.linspace(4.0, -2.0, 25)
    volumes = np.array([(grid.sample(channel, near + a * push) < 0).sum() for a in amplitudes])
    return volumes / (distance < 0).sum() - 1, amplitudes


def _load_atlas(spacing: float, field: _Grid) -> _Atlas:
    grid, maps = _load_template()
    points = grid.points()
    hippocampus = _signed_distance(_hippocampi(points, maps[1]), 1.0)
    ventricles = _signed_distance(_ventricles(points, maps), 4.0)  # the walls between them must not fold
    basis = _outward(grid, hippocampus, _HIPPOCAMPUS_REACH, field.points())
    changes, amplitudes = _volume_table(grid, hippocampus, field, basis)
    # the voxel's own point spread, before sampling: without it thin gyri alias
    maps = np.concatenate([maps, maps[:1] > 0])
    maps = np.stack([ndimage.gaussian_filter(channel, 0.4 * math.sqrt(spacing**2 - 1)) for channel in maps])
    step = max(1, int(spacing // 2))
    volume = np.concatenate([maps, hippocampus[None]])[:, ::step, ::step, ::step]
    return _Atlas(
        grid=_Grid(grid.origin, step, volume.shape[1:]),
        volume=torch.from_numpy(np.ascontiguousarray(volume)),
        hippocampus=basis,
        ventricles=_outward(grid, ventricles, _VENTRICLE_REACH, field.points()),
        changes=changes,
        amplitudes=amplitudes,
    )


class _Noise:
    """Smooth Gaussian noise on ``grid``: white noise on a lattice as coarse as it is smooth, expanded by Gaussians."""

    def __init__(self, grid: _Grid, smoothness_mm: float) -> None:
        self.matrices = []
        for origin, count in zip(grid.origin, grid.shape, strict=True):
            length = (count - 1) * grid.spacing
            knots = math.ceil(length / smoothness_mm) + 8  # four beyond each end, so that edges are like the middle
            centres = origin + length / 2 + smoothness_mm * (np.arange(knots) - (knots - 1) / 2)
            offsets = origin + grid.spacing * np.arange(count)[:, None] - centres
            weights = np.exp(-0.5 * (offsets / smoothness_mm) ** 2) * (abs(offsets) < 4 * smoothness_mm)
            weights /= np.linalg.norm(weights, axis=1, keepdims=True)  # so the noise keeps unit variance
            self.matrices.append(sparse.csr_array(weights.astype(np.float32)))

    def draw(self, rng: np.random.Generator, channels: int) -> np.ndarray:
        """(D, H, W, channels) float32 of unit variance."""
        noise = rng.standard_normal((*(m.shape[1] for m in self.matrices), channels), dtype=np.float32)
        for matrix in self.matrices:  # the first axis is expanded, then becomes the third
            noise = (matrix @ noise.reshape(len(noise), -1)).reshape(-1, *noise.shape[1:])
            noise = np.ascontiguousarray(np.moveaxis(noise, 0, 2))
        return noise


def _mostly_symmetric(velocity: np.ndarray) -> np.ndarray:
    """``velocity`` (D, H, W, 3) with its left-right symmetric part raised and the antisymmetric part lowered."""
    mirrored = velocity[::-1] * np.array([-1, 1, 1], dtype=np.float32)
    return _SYMMETRIC * (velocity + mirrored) / 2 + _ANTISYMMETRIC * (velocity - mirrored) / 2


def _exponentiate(grid: _Grid, points: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Displacement (D, H, W, 3) in mm of the flow of a stationary ``velocity``, by scaling and squaring."""
    displacement = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        displacement = displacement + grid.sample(_channels_first(displacement), points + displacement)
    return displacement


def _jacobian(grid: _Grid, mapped: np.ndarray) -> np.ndarray:
    """(D, H, W) Jacobian determinants of the map from ``grid`` to the points ``mapped``."""
    columns = np.gradient(mapped, grid.spacing, axis=(0, 1, 2))
    return np.einsum("...i,...i", columns[0], np.cross(columns[1], columns[2]))


@dataclass(frozen=True)
class _Traits:
    """What is drawn for one person besides the fields: see ``_draw_traits``."""

    participant: dict[str, Any]
    affine: np.ndarray  # (3, 4), mm of the person to mm of the template
    ventricles_mm: float  # how far the ventricles' walls move out
    changes: dict[str, float]  # side -> relative change of its hippocampus
    gains: np.ndarray  # (3,) CSF, grey, white


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.clip(rng.standard_normal(shape), -2, 2)  # no monsters


def _group(config: SimulationConfig, index: int) -> tuple[str, str]:
    """(group, side) of person ``index``: of any first n, floor(n * tle_share) have TLE, their sides in turn."""
    share = Fraction(str(config.tle_share))  # as written: 100 * 0.29 is 28.999... in floating point
    before = math.floor(index * share)
    if math.floor((index + 1) * share) == before:
        return "HC", "n/a"
    return "TLE", ("left", "right")[before % 2]


def _random_affine(rng: np.random.Generator, size: float) -> np.ndarray:
    """(3, 4): scale 2 % an axis beside the head's ``size``, rotation 2.5 degrees, shift 2 mm."""
    x, y, z = np.deg2rad(2.5 * _normal(rng, 3))
    turn = np.eye(3)
    for angle, (i, j) in ((x, (1, 2)), (y, (0, 2)), (z, (0, 1))):
        plane = np.eye(3)
        plane[[i, j], [i, j]] = math.cos(angle)
        plane[i, j], plane[j, i] = -math.sin(angle), math.sin(angle)
        turn = turn @ plane
    linear = turn / (size * (1 + 0.02 * _normal(rng, 3)))  # smaller steps in the template: a larger head
    shift = _CENTRE - linear @ (_CENTRE + 2.0 * _normal(rng, 3))
    return np.column_stack([linear, shift])


def _draw_traits(config: SimulationConfig, index: int, rng: np.random.Generator) -> _Traits:
    group, side = _group(config, index)
    sex = ("F", "M")[int(rng.integers(2))]
    age = int(rng.integers(18, 66))
    site = sorted(SITES)[int(rng.integers(len(SITES)))]
    size = 1 + (0.02 if sex == "M" else -0.02) + 0.02 * float(_normal(rng, 1)[0])
    affine = _random_affine(rng, size)
    ventricles = float(np.clip(0.3 + 0.03 * (age - 40) + 0.8 * _normal(rng, 1)[0], -1.5, 3.0))
    changes = {}
    for hemisphere, normal in zip(LABELS, _normal(rng, len(LABELS)), strict=True):
        role = "healthy" if group == "HC" else "ipsi" if hemisphere == side else "contra"
        changes[hemisphere] = _CHANGE[role][0] + _CHANGE[role][1] * float(normal)
    gains = np.array(SITES[site].gains) * (1 + np.array([0.10, 0.025, 0.02]) * _normal(rng, 3))
    participant = {"participant_id": f"sub-{index + 1:04d}", "group": group, "side": side}
    return _Traits({**participant, "sex": sex, "age": age, "site": site}, affine, ventricles, changes, gains)


class Simulator:
    """Makes the people of ``config``; loads the template once (about 5 s and 100 MB at 3 mm).

    Raises:
        UserError: if nilearn is not installed.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self._image_grid = _Grid.over_box(config.spacing_mm)
        self._field_grid = _Grid.over_box(_FIELD_SPACING)
        self._field_points = self._field_grid.points()
        self._atlas = _load_atlas(config.spacing_mm, self._field_grid)
        self._velocity_noise = [_Noise(self._field_grid, smoothness) for smoothness, _ in _SCALES]
        self._bias_noise = _Noise(self._field_grid, _BIAS[0])

    def simulate(self, index: int) -> SimulatedSubject:
        """Person ``index`` (0 or more), a function of the configuration and ``index`` alone.

        Raises:
            ValueError: if ``index`` is negative.
        """
        if index < 0:
            raise ValueError(f"index is {index}: it must be 0 or more")
        rng = np.random.default_rng([self.config.seed, index])
        traits = _draw_traits(self.config, index, rng)
        mapped, min_jacobian = self._deform(traits, rng)
        bias = np.exp(_BIAS[1] * self._bias_noise.draw(rng, 1))
        # displacements vary slowly where positions do not: so they are what is interpolated to the image's grid
        fields = _channels_first(np.concatenate([mapped - self._field_points, bias], axis=-1))
        points = self._image_grid.points()
        fields_there = self._field_grid.sample(fields, points)
        at = points + fields_there[..., :3]
        tissue = self._atlas.grid.sample(self._atlas.volume, at)
        image = self._acquire(traits, tissue, at[..., 0] < 0, fields_there[..., 3], rng)
        labels, volumes = self._truth(tissue[..., 4], at[..., 0] < 0)
        return SimulatedSubject(traits.participant, image, labels, self._image_grid.affine(), volumes, min_jacobian)

    def _truth(self, distance: np.ndarray, is_left: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """The labels and volumes of the hippocampi from their signed ``distance`` (D, H, W) in mm."""
        spacing = self.config.spacing_mm
        labels = np.where(distance < 0, np.where(is_left, LABELS["left"], LABELS["right"]), 0).astype(np.uint8)
        filled = np.clip(0.5 - distance / spacing, 0, 1) * spacing**3  # counting voxels is 10 % off at 6 mm
        volumes = {"left": filled[is_left].sum(), "right": filled[~is_left].sum()}
        return labels, {side: round(float(volume), 1) for side, volume in volumes.items()}

    def _deform(self, traits: _Traits, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Where each point of the field grid lies in the template (D, H, W, 3), and the smallest Jacobian."""
        parts = [sd * noise.draw(rng, 3) for noise, (_, sd) in zip(self._velocity_noise, _SCALES, strict=True)]
        velocity = _mostly_symmetric(np.sum(parts, axis=0))
        turned = np.einsum("...j,ij", self._field_points, traits.affine[:, :3])  # no BLAS: its bits vary with threads
        start = (turned + traits.affine[:, 3]).astype(np.float32)
        for strength in 0.85 ** np.arange(40):  # rarely a second round; the disease is never weakened
            flow = _exponentiate(self._field_grid, self._field_points, np.float32(strength) * velocity)
            mapped = start + self._field_grid.sample(_channels_first(flow), start)
            mapped += self._field_grid.sample(_channels_first(self._local(traits, strength)), mapped)
            smallest = float(_jacobian(self._field_grid, mapped).min())
            if smallest > _MIN_JACOBIAN:
                return mapped, smallest
        raise AssertionError(f"hippocampal changes {traits.changes} fold by themselves")

    def _local(self, traits: _Traits, strength: float) -> np.ndarray:
        """(D, H, W, 3) in mm about hippocampi and ventricles: to look further out is to see a structure smaller."""
        left, right = (np.interp(traits.changes[side], self._atlas.changes, self._atlas.amplitudes) for side in LABELS)
        amplitude = np.where(self._field_points[..., :1] < 0, left, right)
        return amplitude * self._atlas.hippocampus - strength * traits.ventricles_mm * self._atlas.ventricles

    def _acquire(
        self, traits: _Traits, tissue: np.ndarray, is_left: np.ndarray, bias: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The T1-weighted image (D, H, W) of ``tissue`` (D, H, W, 5), with Rician noise, skull-stripped afterwards.

        The background is exactly 0, since stripping a noisy scan removes the noise there too.
        """
        site = SITES[traits.participant["site"]]
        t1, grey, white, brain, distance = np.moveaxis(tissue, -1, 0)
        fluid = np.clip(brain - grey - white, 0, 1)
        signal = t1 * (traits.gains[0] * fluid + traits.gains[1] * grey + traits.gains[2] * white) * bias
        if traits.participant["group"] == "TLE":
            ipsilateral = is_left if traits.participant["side"] == "left" else ~is_left
            signal = signal * (1 - _T1_LOSS * ipsilateral * np.clip(0.5 - distance / 2, 0, 1))
        signal = ndimage.gaussian_filter(signal, site.blur_mm / self.config.spacing_mm)
        real, imaginary = site.noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
        image = np.hypot(signal + real, imaginary) * site.scale
        return np.where(brain > 0.5, image, 0).astype(np.float32)


def subject_files(subject: SimulatedSubject) -> dict[str, bytes]:
    """The files of one person: BIDS path -> bytes."""
    name, site = subject.participant["participant_id"], subject.participant["site"]
    scan = f"{name}/anat/{name}_T1w"
    truth = f"{_TRUTH}/{name}/anat/{name}_space-orig_desc-hippocampus_dseg"
    stated = {"SkullStripped": True, "Synthetic": True, "ImageComments": _NOTICE}
    sidecar = {"Modality": "MR", "InstitutionName": f"Simulated site {site}", **stated}
    truth_sidecar = {
        "Description": f"True hippocampi, 1 left, 2 right. {_NOTICE}",
        "Manual": False,
        "SpatialReference": f"bids:raw:{scan}.nii.gz",
        "VolumesInCubicMillimeters": subject.volumes_mm3,
        "MinimumJacobian": round(subject.min_jacobian, 4),
    }
    return {
        f"{scan}.nii.gz": nifti.encode(subject.image, subject.affine),
        f"{scan}.json": bids.json_bytes(sidecar),
        f"{truth}.nii.gz": nifti.encode(subject.labels, subject.affine),
        f"{truth}.json": bids.json_bytes(truth_sidecar),
    }


_COLUMNS = {
    "group": {"Description": "Diagnosis", "Levels": {"HC": "healthy control", "TLE": "temporal lobe epilepsy"}},
    "side": {"Description": "Diseased hippocampus", "Levels": {"left": "the left one", "right": "the right one"}},
    "sex": {"Description": "Simulated sex", "Levels": {"F": "female", "M": "male"}},
    "age": {"Description": "Simulated age", "Units": "year"},
    "site": {"Description": "Simulated scanner", "Levels": {"A": "less noise", "B": "more noise and contrast"}},
}

_README = """# Simulated cohort of temporal lobe epilepsy

**These {count} people do not exist. Every image is SIMULATED: one template, deformed and disturbed at random.**
They serve to try software out. Nothing about people, brains or epilepsy can be learned from them.

{credit}

Settings: {settings}. Person i depends on the seed and i alone.

Each image is the template after a random affine and diffeomorphic deformation, with the head's size, ventricles, tissue
contrast, bias field, site, blur and Rician noise varied; it is skull-stripped, and exactly 0 outside the brain.
People of group TLE have lost about 27 % of the volume and 10 % of the T1 signal of one hippocampus (column `side`), and
about 4 % of the volume of the other. The true hippocampi are in `derivatives/simulation`: 1 left, 2 right, deformed as
the image was, in its own space.
"""


def dataset_files(config: SimulationConfig, participants: list[dict[str, Any]]) -> dict[str, bytes]:
    """The files beside the people's own: BIDS path -> bytes.

    Args:
        config: what the people were drawn from.
        participants: the ``participant`` of each subject, in any order.
    """
    settings = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items())
    about: dict[str, Any] = {"description": f"Simulated cohort ({settings})", "HowToAcknowledge": _CREDIT}
    links: dict[str, Any] = {"source_datasets": [{"URL": "../.."}], "DatasetLinks": {"raw": "../.."}}
    raw = bids.dataset_description("Simulated cohort of temporal lobe epilepsy", "raw", **about)
    truth = bids.dataset_description("Ground truth of the simulated cohort", "derivative", **about, **links)
    readme = _README.format(count=len(participants), settings=settings, credit=_CREDIT).encode()
    labels = [{"index": value, "name": f"{side.capitalize()} hippocampus"} for side, value in LABELS.items()]
    return {
        "dataset_description.json": raw,
        "README.md": readme,
        "participants.tsv": bids.participants_tsv(participants),
        "participants.json": bids.json_bytes(_COLUMNS),
        f"{_TRUTH}/dataset_description.json": truth,
        f"{_TRUTH}/README.md": readme,
        f"{_TRUTH}/desc-hippocampus_dseg.tsv": bids.tsv_bytes(labels),
    }
