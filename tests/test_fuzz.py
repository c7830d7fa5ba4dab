"""Input that somebody, or a disk, has spoiled: it is refused in one line, and nothing is written anywhere else."""

import contextlib
import itertools
import json
import math
import uuid
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from fuzzing import TEXTS, damaged, ends_well, fuzz, spoiled
from hypothesis import strategies as st

from voxfleet import cli, storage
from voxfleet.config.resources import ResourcesConfig
from voxfleet.data import index, nifti
from voxfleet.data.campaign import Sample
from voxfleet.data.preprocess import PreprocessConfig, preprocess
from voxfleet.data.quality import widened
from voxfleet.data.sets import open_set
from voxfleet.data.shards import Manifest, read_manifest, table_bytes, tensor_table, write_manifest
from voxfleet.data.sources import SourceConfig, list_scans
from voxfleet.data.synthetic import SaveConfig, image_file
from voxfleet.engine import cluster
from voxfleet.errors import UserError
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


HEADER_VALUES = st.one_of(
    st.sampled_from([0, 1, -1, 2, 348, 352, 32767, -32768, math.nan, math.inf, -math.inf, 1e-40, 1e30, -0.0]),
    st.integers(-9, 9),
    st.floats(-5, 5),
)


@st.composite
def header(draw):
    """A small image of NIfTI-1 or NIfTI-2 in which one to three numbers of the header are others."""
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    image = kind(np.pad(np.full((6, 7, 6), 90, np.int16), 2), np.diag([2.0, 2, 2, 1]))
    image.set_qform(image.affine, 1)
    data = bytearray(image.to_bytes())
    fields = [name for name in kind.header_class.template_dtype.names if name != "sizeof_hdr"]
    for _ in range(draw(st.integers(1, 3))):
        dtype, offset = kind.header_class.template_dtype.fields[draw(st.sampled_from(fields))][:2]
        number = dtype.base
        place = offset + number.itemsize * draw(st.integers(0, max(dtype.itemsize // number.itemsize - 1, 0)))
        if number.kind in "iuf":
            with np.errstate(all="ignore"):
                value = np.asarray(draw(HEADER_VALUES), np.float64).astype(number)
            data[place : place + number.itemsize] = value.tobytes()
    return bytes(data)


@st.composite
def padded(draw):
    """The voxels of a small head with constants, single values or noise in some of its parts, of any type."""
    data = np.pad(np.full((6, 7, 6), 90.0), 3)
    for _ in range(draw(st.integers(1, 3))):
        starts = [draw(st.integers(0, size - 1)) for size in data.shape]
        sizes = [draw(st.integers(1, size)) for size in data.shape]
        part = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        value = draw(st.sampled_from([-32768, -2000, -30, -1, 0, 1, 90, 4095, 32767, 1e37, math.nan, math.inf]))
        noise = draw(st.sampled_from([0.0, 0.0, 3.0, 200.0]))
        data[part] = value + noise * np.random.default_rng(0).normal(size=data[part].shape)
    dtype = draw(st.sampled_from(["int8", "int16", "uint16", "float32", "float64"]))
    with np.errstate(all="ignore"):
        return nib.Nifti1Image(data.astype(dtype), np.diag([2.0, 2, 2, 1])).to_bytes()


def test_headers_and_voxels(tmp_path):
    """What is read of them is a volume in [0, 1], or refused."""
    file = tmp_path / "in" / "head.nii"
    file.parent.mkdir()
    config = PreprocessConfig(spacing_mm=(4.0, 4.0, 4.0), shape=(6, 6, 6))

    def look():
        volume = preprocess(nifti.read(str(file)), config)
        assert volume.data.min() >= 0
        assert volume.data.max() <= 1
        assert np.isfinite(volume.affine).all()

    def check(data):
        file.write_bytes(data)
        ends_well(look)

    fuzz(header() | padded(), check)


CELLS = st.sampled_from(
    ["sub-1", "sub-01", "sub-a", "HC", "TLE", "n/a", "", '"', "a.nii", "30", "M\u00fcller", "path", "group"]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\x00"])
COLUMNS = ["participant_id", "group", "path", "label", "subject_id"]


@st.composite
def table(draw):
    """The bytes of a table, nearly: columns, separators, ends of lines and encodings as some program writes them."""
    separator, end = draw(st.sampled_from(["\t", "\t", ",", ";", " ", "|"])), draw(ENDS)
    columns = draw(st.permutations(COLUMNS)) + draw(st.lists(CELLS, max_size=2))
    rows = draw(st.lists(st.lists(CELLS, min_size=3, max_size=8), max_size=6))
    text = end.join(separator.join(row) for row in [columns, *rows])
    text = draw(st.sampled_from(["", "", f"sep={separator}{end}", "\ufeff"])) + text
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"])), errors="replace")


def test_tables(tmp_path):
    root = tmp_path / "in" / "study"
    for name in ("sub-1", "sub-01", "sub-a"):
        storage.write_bytes(f"{root}/{name}/anat/{name}_T1w.nii.gz", b"")
    file, nothing_new = root / "participants.tsv", None

    def look():
        for config in ({"bids": str(root)}, {"table": str(file)}, {"bids": str(root), "images": "all"}):
            ends_well(lambda config=config: list_scans(SourceConfig(**config)))

    def check(data):
        nonlocal nothing_new
        file.write_bytes(data)
        nothing_new = nothing_new or unchanged(root)
        look()
        nothing_new()

    fuzz(table() | table().flatmap(damaged), check)


NAMES = st.sampled_from(
    [
        *["anat", "ses-1", "ses-2", "ses-x", "sub-a_T1w.nii.gz", "sub-a_T1w.nii", "sub-a_part-phase_T1w.nii.gz"],
        *["sub-a_ses-1_run-10_T1w.nii.gz", "sub-a_run-2_T1w.nii.gz", "sub-a_ce-gd_T1w.nii.gz", "sub-a_FLAIR.nii.gz"],
        *["sub-a", "sub-b", "participants.tsv", "sub-a_T1w.json", "M\udcfcller", "sub-a_acq-M\udcfcller_T1w.nii.gz"],
    ]
)
ENTRIES = st.tuples(
    st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["file", "file", "link", "broken", "folder"])
)


def test_folders(tmp_path):
    """What a listing takes either is there, or is a place where an image was not fetched or would be."""
    image = nifti.encode(np.ones((4, 4, 4), np.float32), np.eye(4))

    def look(root):
        scans = list_scans(SourceConfig(bids=str(root), images="all", classes=("HC",))).scans
        for scan in scans:
            assert scan.path.startswith(f"{root}/sub-")
            ends_well(lambda scan=scan: nifti.read(scan.path))

    def check(entries):
        root = tmp_path / uuid.uuid4().hex
        root.mkdir()
        (root / "participants.tsv").write_text("participant_id\tgroup\nsub-a\tHC\nsub-b\tHC\n")
        for names, kind in entries:
            path = root.joinpath(*names)
            with contextlib.suppress(OSError):  # a file stands where a folder should
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "folder":
                    path.mkdir()
                elif kind == "file":
                    path.write_bytes(image)
                else:
                    path.symlink_to("nowhere" if kind == "broken" else root / "participants.tsv")
        ends_well(lambda: look(root))

    fuzz(st.lists(ENTRIES, min_size=1, max_size=8), check)


def test_environments(tmp_path, monkeypatch):
    """Variables of the environment: what cannot be is one line, before Ray starts."""

    def start(**options):
        raise UserError("here Ray would start")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "say", lambda *_, **__: None)  # of a folder that is too long
    (tmp_path / "file").touch()
    texts = TEXTS | st.sampled_from(
        [str(tmp_path), f"{tmp_path}/file", f"{tmp_path}/{'x' * 150}", "127.0.0.1:9", "auto"]
    )
    names = ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS", storage.ROOT)

    def look():
        storage.absolute("work/volumes")
        with cluster.session(ResourcesConfig()):
            pytest.fail("Ray has not started")

    def check(values):
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            ends_well(look)

    values = texts.filter(lambda text: "\x00" not in text)  # which no environment can hold
    fuzz(st.dictionaries(st.sampled_from(names), values, max_size=3), check)
