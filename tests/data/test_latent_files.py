"""Latents made elsewhere: what one file may hold, and what the table must say."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch

from voxfleet.data.latent_files import list_latents, read_latent
from voxfleet.data.sources import SplitConfig
from voxfleet.errors import UserError

MU = np.random.default_rng(0).normal(size=(4, 2, 3, 2)).astype(np.float32)
SIGMA = np.abs(MU) + 0.1
CLASSES = ("HC", "TLE")


def write(tmp_path, name, content):
    path = tmp_path / name
    if name.lower().endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(np.moveaxis(content, 0, -1), np.eye(4))  # as MAISI stores its latents
        path.write_bytes(gzip.compress(image.to_bytes()) if name.lower().endswith(".gz") else image.to_bytes())
    elif name.endswith(".npy"):
        np.save(path, content)
    elif name.endswith(".npz"):
        np.savez(path, **content)
    elif name.endswith(".safetensors"):
        safetensors.torch.save_file({key: torch.from_numpy(value) for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", MU),
        ("a.npy", MU[None]),
        ("a.npy", MU.astype(">f8")),
        ("a.npz", {"arr_0": MU}),
        ("a.npz", {"mu": MU}),
        ("a.safetensors", {"latent": MU}),
        ("a.pt", torch.from_numpy(MU)[None]),
        ("a.pt", {"mu": torch.from_numpy(MU).requires_grad_()}),
        ("a.pt", torch.from_numpy(MU)[None].contiguous(memory_format=torch.channels_last_3d)),
        ("a.pt", torch.complex(torch.from_numpy(MU), torch.from_numpy(-MU)).conj().imag),  # negated when it is read
        ("a.npy", np.asfortranarray(MU)),
        ("a.nii.gz", MU),
        ("sub-01_emb.NII.GZ", MU),
        ("a.nii", MU),
    ],
)
def test_mu_alone(tmp_path, name, content):
    mu, logvar = read_latent(write(tmp_path, name, content))
    assert logvar is None
    assert mu.dtype == np.float32
    assert mu.dtype.isnative
    np.testing.assert_array_equal(mu, MU)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", {"mu": MU, "sigma": SIGMA}),
        ("a.npz", {"mu": MU[None], "logvar": 2 * np.log(SIGMA)}),
        ("a.safetensors", {"mu": MU, "logvar": 2 * np.log(SIGMA)}),
        ("a.pt", {"mu": torch.from_numpy(MU), "sigma": torch.from_numpy(SIGMA)}),
    ],
)
def test_mu_and_its_noise(tmp_path, name, content):
    mu, logvar = read_latent(write(tmp_path, name, content))
    np.testing.assert_array_equal(mu, MU)
    np.testing.assert_allclose(np.exp(logvar / 2), SIGMA, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-2), (torch.float8_e4m3fn, 0.07)])
def test_low_precision_of_pytorch(tmp_path, dtype, rtol):
    mu, _ = read_latent(write(tmp_path, "a.pt", torch.from_numpy(MU).to(dtype)))
    np.testing.assert_allclose(mu, MU, rtol=rtol, atol=2e-3)


def test_a_nifti_latent_of_integers_has_a_slope(tmp_path):
    image = nib.Nifti1Image(np.moveaxis(MU, 0, -1), np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_latent(str(tmp_path / "a.nii"))[0], MU, atol=1e-4)


def test_no_noise_is_a_finite_logvar(tmp_path):
    _, logvar = read_latent(write(tmp_path, "a.npz", {"mu": MU, "sigma": np.zeros_like(MU)}))
    np.testing.assert_allclose(logvar, -30, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", MU[0], r"mu has shape \(2, 3, 2\).*four axes"),
        ("a.npy", np.stack([MU, MU]), "four axes"),
        ("a.npy", MU.astype(complex), "complex128"),
        ("a.npy", np.where(MU > 1, np.nan, MU), "mu holds NaN"),
        ("a.npy", MU.astype(np.float64) * 1e300, "mu holds NaN or infinite"),
        ("a.npz", {"mu": MU, "std": SIGMA}, "holds mu, std; it must hold mu"),
        ("a.npz", {"logvar": MU}, "holds logvar; it must hold mu"),
        ("a.npz", {"mu": MU, "sigma": SIGMA, "logvar": MU}, "either logvar or sigma"),
        ("a.npz", {"mu": MU, "sigma": SIGMA[:3]}, "sigma has shape"),
        ("a.npz", {"mu": MU, "sigma": -SIGMA}, "sigma is negative"),
        ("a.pt", {"mu": [1.0, 2.0]}, "type list"),
        ("a.pt", {}, "holds nothing"),
        ("a.pt", (torch.from_numpy(MU), torch.from_numpy(MU)), "type tuple"),
        ("a.pt", {"mu": torch.from_numpy(MU), "subject": "sub-01"}, "holds mu, subject"),
        ("a.npy", np.rint(MU * 100).astype(np.int8), "mu is of type int8"),
        ("a.npy", MU[:, :0], r"mu has shape \(4, 0, 3, 2\)"),
        ("a.nii.gz", MU[0], r"has shape \(3, 2, 2\); a latent in NIfTI has four axes, the channels last"),
        ("a.nii.gz", MU[None], "four axes, the channels last"),
        ("a.nii", MU.astype(np.complex64), "mu is of type complex64"),
        ("a.nii", np.rint(MU * 100).astype(np.int16), "mu is of type int16"),
    ],
)
def test_what_cannot_be_a_latent(tmp_path, name, content, words):
    uri = write(tmp_path, name, content)
    with pytest.raises(UserError, match=rf"^{uri}.*{words}"):
        read_latent(uri)


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage|torch.quantize)")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mu: mu.to_sparse(), "mu is a sparse_coo Tensor; save a dense one"),
        (lambda mu: {"mu": mu, "sigma": mu.to_sparse()}, "sigma is a sparse_coo"),
        (lambda mu: {"latent": mu[0, 0].to_sparse_csr()}, "mu is a sparse_csr Tensor"),
        (lambda mu: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)]), "mu is a nested Tensor"),
        (lambda mu: torch.quantize_per_tensor(mu, 0.01, 0, torch.qint8), "mu is of torch.qint8; save"),
        (lambda mu: mu.to("meta"), "mu is a meta tensor"),
        (lambda mu: mu.to(torch.complex64).conj(), "mu is of torch.complex64"),
        (lambda mu: mu > 0, "mu is of torch.bool"),
        (lambda mu: mu.to(torch.float8_e5m2).view(torch.uint8), "mu is of torch.uint8"),
        (lambda mu: torch.zeros(1).expand(4, 10**5, 10**5, 10**5), "mu is of torch.float32 and shape .4, 100000,"),
    ],
)
def test_tensors_that_cannot_be_a_latent(tmp_path, change, words):
    uri = write(tmp_path, "a.pt", change(torch.from_numpy(MU)))
    with pytest.raises(UserError, match=rf"^{uri}: {words}"):
        read_latent(uri)


@pytest.fixture
def table(tmp_path):
    """Twelve files, and a function that writes a table of them (its lines) and lists it."""
    for i in range(12):
        np.save(tmp_path / f"s{i}.npy", MU)

    def read(header="subject_id,label,split,file", lines=None):
        lines = LINES if lines is None else lines
        (tmp_path / "t.csv").write_text("\n".join([header, *lines]) + "\n")
        return list_latents(str(tmp_path / "t.csv"), str(tmp_path), CLASSES, SplitConfig())

    return read


SPLIT = ("train", "train", "train", "train", "val", "test")
LINES = [f"p{i},{CLASSES[i % 2]},{SPLIT[i // 2]},s{i}.npy" for i in range(12)]
PLAIN = [f"p{i},{CLASSES[i % 2]},s{i}.npy" for i in range(12)]


def test_a_table_with_splits(table, tmp_path):
    rows = table()
    assert {row.subject_id: row.split for row in rows} == {f"p{i}": SPLIT[i // 2] for i in range(12)}
    assert {row.subject_id: CLASSES[row.label] for row in rows} == {f"p{i}": CLASSES[i % 2] for i in range(12)}
    assert {row.source for row in rows} == {str(tmp_path / f"s{i}.npy") for i in range(12)}
    assert table(lines=LINES[::-1]) == rows


def test_a_table_without_splits_is_split_by_subject(table, tmp_path):
    more = [*PLAIN[:10], f"p0,HC,{tmp_path}/s10.npy", "p1,TLE,./s11.npy"]  # two latents of a subject, and other paths
    rows = table("subject_id,label,path", more)
    splits = {row.subject_id: set() for row in rows}
    for row in rows:
        splits[row.subject_id].add(row.split)
    assert len(rows) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("header", "lines", "words"),
    [
        ("subject_id,split,file", LINES, "no column label"),
        ("subject_id,label", [line.rpartition(",")[0] for line in PLAIN], "one column file"),
        ("subject_id,label,file,path", PLAIN, "one column file"),
        ("subject_id,label,file,age", PLAIN, "unknown column 'age'"),
        ("subject_id,label,split,file", [], "lists no latent"),
        (None, [*LINES, "p12,FCD,train,s0.npy"], r"line 14: label 'FCD' is not one of classes \(HC, TLE\)"),
        (None, [*LINES, "p12,HC,valid,s0.npy"], r"line 14: split 'valid' is not one of train, val, test"),
        (None, [*LINES, ",HC,train,s0.npy"], "line 14: column subject_id is empty"),
        (None, [*LINES, "p12,HC,train,"], "line 14: column file is empty"),
        (None, [*LINES, "p12,HC,train,./s3.npy"], r"lines 5 and 14 name one file, .*s3\.npy"),
        (None, [*LINES[:11], "p0,HC,val,s11.npy"], "lines 2 and 13: subject p0 is in the splits train and val"),
        (None, [*LINES[:11], "p0,TLE,train,s11.npy"], "lines 2 and 13: subject p0 has two labels"),
        (None, LINES[:11], "class TLE has no usable subject in split test"),
        (None, [*LINES, "p12,HC,train,s12.npy", "p13,HC,train,x/s.npy"], r"2 files that do not exist.*s12\.npy"),
        ("subject_id,label,file", PLAIN[:5], "class TLE has 2 subjects for 3 splits"),
    ],
)
def test_a_table_that_cannot_be_used(table, header, lines, words):
    with pytest.raises(UserError, match=words):
        table(header or "subject_id,label,split,file", lines)
