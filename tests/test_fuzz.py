"""Input that somebody, or a disk, has spoiled: it is refused in one line, and nothing is written anywhere else."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fuzzing import TEXTS, damaged, ends_well, fuzz, spoiled
from hypothesis import strategies as st

from voxfleet import cli, storage
from voxfleet.data import index, nifti
from voxfleet.data.campaign import Sample
from voxfleet.data.preprocess import PreprocessConfig, preprocess
from voxfleet.data.quality import widened
from voxfleet.data.sets import open_set
from voxfleet.data.shards import Manifest, read_manifest, table_bytes, tensor_table, write_manifest
from voxfleet.data.synthetic import SaveConfig, image_file
from voxfleet.models import DiT3D, DiT3DConfig
from voxfleet.models.classifier import ClassifierConfig
from voxfleet.models.segmenter import SegmenterConfig
from voxfleet.models.vae import AutoencoderConfig
from voxfleet.packages import architecture, autoencoder_config, load_model, read_package_config, write_package

CONFIGS = {path.parent.name: path for path in sorted(Path(__file__).parents[1].glob("configs/*/demo.yaml"))}
SHAPE = (2, 4, 4, 4)
GEOMETRY = {"affine": np.eye(4).tolist(), "spacing_mm": [1.0, 1.0, 1.0], "orientation": "RAS", "mirror_axis": 0}


@pytest.fixture
def run(monkeypatch):
    """Parses a command line; the job itself does nothing."""
    monkeypatch.setattr(cli, "_engine", lambda job: SimpleNamespace(run=lambda config: None))
    return lambda *arguments: ends_well(lambda: cli.run_job(arguments[0], cli.parse(arguments[0], list(arguments[1:]))))


def unchanged(folder):
    """A function that fails if there is another file in ``folder`` than now, or beside it."""
    before = set(folder.parent.rglob("*"))

    def check():
        assert set(folder.parent.rglob("*")) == before

    return check


def test_configurations(run, tmp_path):
    file = tmp_path / "config.yaml"
    documents = {job: yaml.safe_load(path.read_text()) for job, path in CONFIGS.items()}
    cases = st.sampled_from([*documents]).flatmap(lambda job: st.tuples(st.just(job), spoiled(documents[job])))

    def check(case):
        job, document = case
        file.write_text(yaml.safe_dump(document, allow_unicode=True))
        run(job, "--config", str(file))

    fuzz(cases, check)


def test_files_of_configurations(run, tmp_path):
    file = tmp_path / "config.yaml"
    texts = {job: path.read_bytes() for job, path in CONFIGS.items()}
    cases = st.sampled_from([*texts]).flatmap(lambda job: st.tuples(st.just(job), damaged(texts[job])))

    def check(case):
        job, data = case
        file.write_bytes(data)
        run(job, "--config", str(file))

    fuzz(cases, check)


def test_command_lines(run):
    keys = {job: [action.option_strings[-1] for action in _parser(job)._actions] for job in CONFIGS}
    arguments = st.sampled_from([*keys]).flatmap(
        lambda job: st.tuples(st.just(job), st.lists(st.sampled_from(keys[job]) | TEXTS | TEXTS, max_size=4))
    )

    def check(case):
        job, more = case
        if not any(word.startswith("--") and word.endswith(("help", "print_config")) for word in more):
            run(job, "--config", str(CONFIGS[job]), *more)

    fuzz(arguments, check)


def _parser(job):
    from voxfleet.config.parsing import parser_of

    return parser_of(cli.config_class(job), job)


@pytest.fixture(params=["latents", "volumes"])
def shards(request, tmp_path):
    """A folder of shards, small enough to be read at once."""
    folder, shape = tmp_path / "in" / request.param, SHAPE if request.param == "latents" else SHAPE[1:]
    names = {"latents": ("mu", "logvar"), "volumes": ("volume",)}[request.param]
    files = []
    for number in range(2):
        splits = ["train", "train", "val", "test"]
        columns = {"subject_id": [f"sub-{number}{i}" for i in range(4)], "label": [0, 1, 0, 1], "split": splits}
        values = {name: np.arange(4 * np.prod(shape), dtype=np.float32).reshape(4, *shape) for name in names}
        data = table_bytes(tensor_table({**columns, "source": columns["subject_id"]}, values))
        sha256 = storage.write_bytes(f"{folder}/part-{number}.parquet", data)
        files.append({"file": f"part-{number}.parquet", "rows": 4, "sha256": sha256})
    manifest = Manifest(
        **{"kind": request.param, "shape": shape, "classes": ("HC", "TLE"), "geometry": GEOMETRY, "shards": files},
        **{"counts": {name: {"HC": 2, "TLE": 2} for name in ("train", "val", "test")}, "limits": {"brain": [0.1, 0.4]}},
        **{"mean": [0.0] * shape[0], "std": [1.0] * shape[0], "autoencoder": "f" * 64, "duplicates": [], "skipped": []},
    )
    write_manifest(str(folder), manifest)
    return SimpleNamespace(folder=folder, kind=request.param, columns=names, manifest=manifest)


def read_all(shards):
    """As jobs do."""
    manifest = read_manifest(str(shards.folder), shards.kind)
    index._footer.cache_clear()
    splits = index.read_index(str(shards.folder), manifest, shards.columns)
    index.check_trainable(str(shards.folder), manifest, splits)
    for part in splits.values():
        part.read(np.arange(len(part)), shards.columns)
    if shards.kind == "volumes":
        found = open_set(str(shards.folder))
        found.read(np.arange(len(found)))
    else:
        assert np.isfinite(np.array(manifest.mean)).all()
    widened(manifest.limits, 0.1)
    return manifest.digest, np.array(manifest.geometry["affine"]) if manifest.geometry else None


def test_manifests(shards):
    file = shards.folder / "manifest.json"
    document = json.loads(file.read_text())
    nothing_new = unchanged(shards.folder)

    def check(case):
        file.write_text(json.dumps(case))
        ends_well(lambda: read_all(shards))
        nothing_new()

    fuzz(spoiled(document), check)


def test_shards(shards):
    file = shards.folder / "part-1.parquet"
    data = file.read_bytes()
    nothing_new = unchanged(shards.folder)

    def check(case):
        file.write_bytes(case)
        ends_well(lambda: read_all(shards))
        nothing_new()

    fuzz(damaged(data, ends=2000), check)


def test_lists_of_images(tmp_path):
    """manifest.parquet of a campaign: rows that somebody has changed, and files that a disk has."""
    folder = tmp_path / "in" / "synthetic"
    folder.mkdir(parents=True)
    file = folder / "manifest.parquet"
    image = nifti.encode(np.ones((4, 4, 4), np.float32), np.eye(4))
    (folder / "a.nii.gz").write_bytes(image)
    rows = [{"sample_id": f"syn-{i}", "class": "HC", "file": "a.nii.gz", "sha256": "0" * 64} for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    nothing_new, whole = unchanged(folder), file.read_bytes()

    def look():
        found = open_set(str(folder))
        found.read(np.arange(len(found)))

    def check(case):
        if isinstance(case, bytes):
            file.write_bytes(case)
        else:
            try:
                pq.write_table(pa.Table.from_pylist(case), file)
            except (pa.ArrowException, TypeError, AttributeError, OverflowError, UnicodeError):
                return  # such a table there cannot be
        ends_well(look)
        nothing_new()

    fuzz(damaged(whole, ends=1500) | spoiled(rows), check)


def test_packages(tmp_path):
    folder = tmp_path / "in" / "model"
    config = DiT3DConfig(
        in_channels=2, input_size=SHAPE[1:], patch_size=(2, 2, 2), hidden_size=24, depth=1, num_heads=2
    )
    document = {
        **{"architecture": architecture(config), "diffusion": {"target": "x0"}, "mean": [0.0] * 2, "std": [1.0] * 2},
        **{"geometry": GEOMETRY, "classes": ["HC", "TLE"], "limits": {}, "suffix": "T1w", "autoencoder": "f" * 64},
    }
    write_package(str(folder), "model", DiT3D(config).state_dict(), document)
    file, nothing_new = folder / "config.json", unchanged(folder)
    document = json.loads(file.read_text())

    def look():
        bundle = load_model(str(folder))
        bundle.sample([0], [1], sampler="ddim", steps=1)
        files = [
            image_file(Sample(number, name, 0, 0), SaveConfig(), "T1w") for number, name in enumerate(bundle.classes)
        ]
        for name in files:
            storage.join(str(folder), name)
        return bundle.affine

    def check(case):
        file.write_text(json.dumps(case))
        ends_well(look)
        nothing_new()

    fuzz(spoiled(document), check)


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [
        (
            "autoencoder",
            AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_num_groups=4),
            {"shape": [8, 8, 8]},
        ),
        ("segmenter", SegmenterConfig(channels=(4, 8)), {}),
        ("classifier", ClassifierConfig(), {"classes": ["HC"], "shape": [8, 8, 8], "region": 3 * [[0, 8]]}),
    ],
)
def test_configurations_of_packages(tmp_path, kind, config, more):
    folder = tmp_path / "in" / kind
    write_package(str(folder), kind, {}, {"architecture": architecture(config), "geometry": GEOMETRY, **more})
    file, nothing_new = folder / "config.json", unchanged(folder)
    document = json.loads(file.read_text())

    def look():
        found = read_package_config(str(folder), kind)
        if kind == "autoencoder":
            autoencoder_config(found)

    def check(case):
        file.write_text(json.dumps(case))
        ends_well(look)
        nothing_new()

    fuzz(spoiled(document), check)


def images():
    """Small NIfTI files: whole numbers and not, compressed and not, and with dimensions of length one."""
    rng = np.random.default_rng(0)
    affine = np.array([[-2.0, 0, 0, 8], [0, 2, 0.1, -8], [0, -0.1, 2, -8], [0, 0, 0, 1]])
    data = np.pad(rng.uniform(50, 100, (6, 7, 6)), 2)
    for dtype, compress in itertools.product(("int16", "float32"), (True, False)):
        yield nifti.encode(data.astype(np.float32), affine, dtype=dtype, compress=compress)
    other = nib.Nifti1Image(data[..., None].astype(np.uint8), affine)
    other.header["sform_code"] = 0
    other.header["qform_code"] = 1
    yield other.to_bytes()


def test_images(tmp_path):
    file = tmp_path / "in" / "head.nii.gz"
    file.parent.mkdir()
    configs = [PreprocessConfig(spacing_mm=(4.0, 4.0, 4.0), shape=(6, 6, 6), center=name) for name in ("head", "world")]

    def check(case):
        file.write_bytes(case[0])
        ends_well(lambda: preprocess(nifti.read(str(file)), case[1]))

    files = st.sampled_from(list(images())).flatmap(lambda data: damaged(data, ends=352))
    fuzz(st.tuples(files, st.sampled_from(configs)), check)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "head.nii.gz"]
