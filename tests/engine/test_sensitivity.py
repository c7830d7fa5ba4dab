"""Every way in which a synthetic set can be bad is caught by the figure meant for it, and real people pass them all."""

import io
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from isal import igzip
from ray import cloudpickle
from scipy import ndimage

from voxfleet import storage
from voxfleet.config.evaluation import EvaluateConfig
from voxfleet.data import nifti
from voxfleet.data.cohort import SimulationConfig, Simulator, subject_files
from voxfleet.data.preprocess import PreprocessConfig, preprocess
from voxfleet.data.sets import VolumeSet
from voxfleet.engine.measures import EFFICIENTNET, Measurer, Measuring, read_measured, slice_positions, units
from voxfleet.engine.verdict import judge
from voxfleet.metrics.anatomy import CSF, WHITE, tissue_classes
from voxfleet.models.vae import AutoencoderConfig, build_autoencoder
from voxfleet.packages import architecture, write_package

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
SPACING, SHAPE, PEOPLE, TRAINED = 6.0, (32, 40, 32), 100, 30
CLASSES = ("HC", "TLE")


def true_map(subject):
    """A map of 1 mm in which the hippocampi have their true volumes: at 6 mm, voxels are too few to be counted."""
    labels = np.zeros((2, 10_000), np.uint8)
    for value, volume in enumerate(subject.volumes_mm3.values(), start=1):
        labels[value - 1, : round(volume)] = value
    return labels[..., None]


class InMemory(VolumeSet):
    """A set whose volumes are at hand."""

    def read(self, rows):
        return [self.parts[row] for row in rows], [self.affine] * len(rows)


class Cohort:
    """Simulated people: half of them are the real set, the others are like a perfect synthetic one."""

    def __init__(self, folder):
        simulator = Simulator(SimulationConfig(spacing_mm=SPACING))
        config = PreprocessConfig(spacing_mm=(SPACING,) * 3, shape=SHAPE)
        volumes, groups, maps = [], [], []
        for index in range(PEOPLE):
            subject = simulator.simulate(index)
            files = subject_files(subject)
            image = next(data for name, data in files.items() if name.endswith("T1w.nii.gz"))
            with igzip.open(io.BytesIO(image)) as stream:
                prepared = preprocess(nib.Nifti1Image.from_bytes(stream.read()), config)
            volumes.append(prepared.data.astype(np.float32))
            groups.append(CLASSES.index(subject.participant["group"]))
            maps.append(str(folder / f"{index}_dseg.nii.gz"))
            storage.write_bytes(maps[-1], nifti.encode(true_map(subject), np.eye(4)))
        order = np.random.default_rng(0).permutation(PEOPLE)
        half = PEOPLE // 2
        maps = [maps[place] for place in order]
        self.volumes, self.labels, self.affine = np.stack(volumes)[order], np.array(groups)[order], prepared.affine
        torch.manual_seed(0)
        autoencoder = AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_num_groups=4)
        document = {"architecture": architecture(autoencoder), "shape": list(SHAPE), "geometry": {}}
        write_package(str(folder / "vae"), "autoencoder", build_autoencoder(autoencoder).state_dict(), document)
        self.measuring = Measuring(
            folder=str(folder),
            basis="",
            shape=SHAPE,
            affine=self.affine,
            positions=slice_positions(SHAPE, PEOPLE, 2),
            autoencoder=str(folder / "vae"),
            slice_networks=(EFFICIENTNET,),
            inception=None,
            classifier=None,
            segmenter=None,
            label_maps={
                "real": {f"real-{number}": uri for number, uri in enumerate(maps[:half])},
                **{
                    name: {f"{name}-{number}": uri for number, uri in enumerate(maps[half:])}
                    for name in ("half", "swapped")
                },
            },
            label_values=(1, 2),
            threads=2,
            device="cpu",
        )
        splits = ["train"] * TRAINED + ["test"] * (half - TRAINED)
        self.real = self.measured("real", self.volumes[:half], self.labels[:half], splits)
        self.others, self.other_labels = self.volumes[half:], self.labels[half:]

    @property
    def trained_on(self):
        return self.volumes[:TRAINED]

    def measured(self, name, volumes, labels, splits, affine=None):
        names = np.array([f"{name}-{number}" for number in range(len(volumes))])
        where = self.affine if affine is None else affine
        kept = {"folder": "memory", "digest": name, "classes": CLASSES, "names": names, "subjects": names}
        more = {"splits": np.array(splits), "contents": names, "parts": volumes, "affine": where}
        volumes = InMemory(**kept, labels=np.array(labels), **more)
        measure = Measurer(self.measuring, {name: volumes})
        work = units(volumes, self.measuring.basis)
        files = [measure(unit, (name, rows))[0]["file"] for unit, rows in work.items()]
        return read_measured(self.measuring, volumes, files)

    def judged(self, name, volumes, affine=None, labels=None, mirrored=None):
        """The figures of a synthetic set, and those among them that failed."""
        labels = self.other_labels if labels is None else labels
        made = self.measured(name, volumes.astype(np.float32), labels, ["synthetic"] * len(volumes), affine)
        config = EvaluateConfig(output="-", volumes="-", autoencoder="-", synthetic="-", repeats=60)
        verdict = judge(self.real, made, config, 2, mirrored)
        figures = [figure for group in verdict.figures.values() for figure in group]
        return verdict, {figure.key for figure in figures if figure.passed is False}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return Cohort(tmp_path_factory.mktemp("cohort"))


def test_other_people_pass_everything(cohort):
    verdict, failed = cohort.judged("half", cohort.others)
    assert failed == set()
    assert verdict.words == "release: pass"
    disease = {figure.key: figure for figure in verdict.figures["Disease"]}
    assert disease["effect/hippocampus_asymmetry"].floor.low > 1  # the disease is there to be seen
    assert disease["transfer"].floor.low > 0.7


def noisy(volumes, amount):
    return np.clip(volumes + amount * np.random.default_rng(1).standard_normal(volumes.shape), 0, 1)


def shrunken_ventricles(volume):
    tissues = tissue_classes(volume)
    deep = ndimage.distance_transform_edt(tissues > 0, sampling=SPACING) > 15
    return np.where(deep & (tissues == CSF), volume[tissues == WHITE].mean(), volume)


@pytest.mark.parametrize(
    ("name", "spoil", "caught"),
    [
        (
            "blur",
            lambda v: np.stack([ndimage.gaussian_filter(x, 0.8) for x in v]),
            {"kid/EfficientNet-Lite0/axial/all", "anatomy/spectrum", "anatomy/csf_ml", "anatomy/sharpness"},
        ),
        pytest.param(
            "noise",
            lambda v: noisy(v, 0.05),
            {"kid/EfficientNet-Lite0/axial/all", "anatomy/spectrum", "anatomy/cnr", "anatomy/sharpness"},
            marks=pytest.mark.matrix,
        ),
        pytest.param(
            "ventricles",
            lambda v: np.stack([shrunken_ventricles(x) for x in v]),
            {"anatomy/ventricles_ml"},
            marks=pytest.mark.matrix,
        ),
        (
            "collapse",
            lambda v: noisy(np.repeat(v[:1], len(v), axis=0), 0.01),
            {"diversity/all", "ms_ssim", "coverage/autoencoder", "recall/autoencoder", "duplicates/voxels"},
        ),
    ],
)
def test_what_is_spoiled_is_caught(cohort, name, spoil, caught):
    _, failed = cohort.judged(name, spoil(cohort.others))
    assert caught <= failed


@pytest.mark.parametrize(
    ("name", "disguise", "caught"),
    [
        ("copies", lambda v: noisy(v, 0.01), {"copies/voxels", "copies/latents"}),
        pytest.param("moved-copies", lambda v: np.roll(v, 1, axis=2), {"copies/voxels"}, marks=pytest.mark.matrix),
    ],
)
def test_people_who_were_trained_on_are_found_in_the_set(cohort, name, disguise, caught):
    volumes = cohort.others.copy()
    volumes[:5] = disguise(cohort.trained_on[:5])
    verdict, failed = cohort.judged(name, volumes)
    assert caught <= failed
    assert re.match("release: fail: .*copies of training volumes", verdict.words)
    assert {synthetic for synthetic, _ in verdict.pairs} <= set(range(5))
    assert all(synthetic == trained for synthetic, trained in verdict.pairs)


@pytest.mark.matrix
def test_mirror_images_of_people_who_were_trained_on_are_found_in_the_set(cohort):
    volumes = cohort.others.copy()
    volumes[:5] = noisy(cohort.trained_on[:5, ::-1], 0.01)
    _, failed = cohort.judged("mirrored-copies", volumes)
    assert not any(key.startswith("copies/") for key in failed)  # none looks like a person as he was scanned
    real = cohort.real.volumes
    mirrored = cohort.measured("mirrored", real.parts[:, ::-1], real.labels, real.splits)
    verdict, failed = cohort.judged("mirrored-copies", volumes, mirrored=mirrored)
    assert {"copies/voxels", "copies/latents"} <= failed
    assert all(synthetic == trained for synthetic, trained in verdict.pairs)
    verdict, _ = cohort.judged("half", cohort.others, mirrored=mirrored)
    assert verdict.words == "release: pass"


def test_swapped_labels_are_caught(cohort):
    _, failed = cohort.judged("swapped", cohort.others, labels=1 - cohort.other_labels)
    assert {"effect/hippocampus_asymmetry", "effect/hippocampus_smaller_ml", "transfer"} <= failed
    assert not {key for key in failed if not key.startswith(("effect/", "kid/", "frechet/", "transfer"))}


@pytest.mark.matrix
def test_a_set_that_lies_elsewhere_is_caught(cohort):
    affine = cohort.affine + np.array([[0, 0, 0, 1.0], *[[0] * 4] * 3])
    verdict, failed = cohort.judged("elsewhere", cohort.others, affine)
    assert failed == {"place"}
    assert verdict.reasons
