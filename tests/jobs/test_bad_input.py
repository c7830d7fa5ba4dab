"""Bad input: exit code 2 and one line that names the culprit and the remedy; the output folder is not begun."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from voxfleet import storage
from voxfleet.cli import main


def config_file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output: x\nsubjcts: 3\n", ["subjcts", "did you mean subjects"]),
        ("output: x\nsimulation: {spacing: 3}\n", ["simulation.spacing", "did you mean simulation.spacing_mm"]),
        ("output: x\nsubjects: many\n", ["subjects", "int", "many"]),
        ("output: x\nsubjects: 0\n", ["subjects is 0", "at least 1"]),
        ("output: x\nresources: {workers: 0}\n", ["resources.workers is 0", "at least 1"]),
        ("output: [x\n", ["config.yaml"]),
        ("subjects: 3\n", ["output", "missing"]),
    ],
)
def test_configurations(fails, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    line = fails(main, ["cohort", *config_file(tmp_path, text)])
    assert all(word in line for word in words), line
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_there(fails):
    assert "nowhere.yaml" in fails(main, ["cohort", "--config", "nowhere.yaml"])


def test_an_unknown_job_lists_the_jobs(fails):
    assert "train-vae" in fails(main, ["trian"])


def prepare(source, output, *more):
    tiny = ["--preprocess.spacing_mm", "[10,10,10]", "--preprocess.shape", "[16,20,16]"]
    return main(["prepare", "--output", str(output), "--source.bids", str(source), *tiny, *more])


@pytest.fixture
def cohort(workspace, tmp_path):
    """A copy of the cohort that a test may damage."""
    return shutil.copytree(workspace.demo / "cohort", tmp_path / "cohort")


def test_a_missing_dataset(fails, tmp_path):
    line = fails(prepare, tmp_path / "nothing", tmp_path / "out")
    assert str(tmp_path / "nothing") in line
    assert not (tmp_path / "out").exists()


def test_no_group_column(fails, cohort, tmp_path):
    table = cohort / "participants.tsv"
    table.write_text(table.read_text().replace("group", "arm", 1))
    line = fails(prepare, cohort, tmp_path / "out")
    assert "group" in line
    assert "arm" in line
    assert not (tmp_path / "out").exists()


def test_a_class_without_subjects(fails, cohort, tmp_path):
    line = fails(prepare, cohort, tmp_path / "out", "--source.classes", "[HC, FCD]")
    assert "FCD" in line
    assert not (tmp_path / "out").exists()


def test_fewer_subjects_than_splits(fails, cohort, tmp_path):
    table = cohort / "participants.tsv"
    lines = table.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "\tTLE\t" not in line] + [line for line in lines if "\tTLE\t" in line][:2]
    table.write_text("".join(kept))
    line = fails(prepare, cohort, tmp_path / "out")
    assert "TLE" in line
    assert not (tmp_path / "out").exists()


def image_of(cohort, number):
    return next((cohort / f"sub-{number:04d}" / "anat").glob("*.nii.gz"))


def damage(path, kind):
    image = nib.load(path)
    data = image.get_fdata()
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "not NIfTI":
        path.write_bytes(b"this is a text")
    else:
        changed = {
            "NaN": np.full_like(data, np.nan),
            "constant": np.full_like(data, 7.0),
            "4-D": np.stack([data, data], axis=-1),
        }[kind]
        nib.save(nib.Nifti1Image(changed.astype(np.float32), image.affine), path)


@pytest.mark.parametrize("kind", ["truncated", "not NIfTI", "NaN", "constant", "4-D"])
def test_a_bad_image_is_named_and_nothing_is_finished(fails, cohort, tmp_path, kind):
    damage(image_of(cohort, 3), kind)
    line = fails(prepare, cohort, tmp_path / "out", "--max_skipped", "0")
    assert image_of(cohort, 3).name in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert list((tmp_path / "out").rglob("*.tmp")) == []


def test_a_bad_subject_among_good_ones_is_skipped_with_its_reason_and_may_be_mended(fails, cohort, tmp_path, capsys):
    good = image_of(cohort, 3).read_bytes()
    damage(image_of(cohort, 3), "truncated")
    more = ["--split.train", "0.5", "--split.val", "0.25", "--split.test", "0.25"]
    assert prepare(cohort, tmp_path / "out", "--max_skipped", "0.1", *more) == 0
    assert "images left out: 1, the first: sub-0003: " in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [skipped["subject_id"] for skipped in manifest["skipped"]] == ["sub-0003"]
    assert "truncated" in manifest["skipped"][0]["reason"]
    assert sum(shard["rows"] for shard in manifest["shards"]) == 11

    fails(prepare, cohort, tmp_path / "again", "--max_skipped", "0", *more)
    image_of(cohort, 3).write_bytes(good)
    assert prepare(cohort, tmp_path / "again", "--max_skipped", "0", *more) == 0
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert sum(shard["rows"] for shard in manifest["shards"]) == 12


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.input_size", "[8,14,8]"], ["model.input_size", "(8, 10, 8)"]),
        (["--model.in_channels", "3"], ["model.in_channels", "4"]),
        (["--model.num_classes", "3"], ["model.num_classes", "2"]),
    ],
)
def test_latents_whose_shape_is_not_the_models(fails, workspace, tmp_path, more, words):
    line = fails(workspace.run, "train", "--output", str(tmp_path / "runs"), "--package", str(tmp_path / "p"), *more)
    assert all(word in line for word in words), line
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "p").exists()


def test_volumes_that_the_autoencoder_cannot_halve(fails, workspace, tmp_path):
    more = ["--model.channels", "[4,4,4,4]", "--model.num_res_blocks", "[1,1,1,1]", "--package", str(tmp_path / "p")]
    line = fails(workspace.run, "train-vae", "--output", str(tmp_path / "runs"), *more)
    assert "multiples of 8" in line


def test_an_autoencoder_of_another_fingerprint(fails, workspace, tmp_path):
    other = shutil.copytree(workspace.demo / "vae", tmp_path / "vae")
    document = json.loads((other / "config.json").read_text())
    document["fingerprint"] = "0" * 64
    (other / "config.json").write_text(json.dumps(document))
    line = fails(workspace.run, "generate", "--output", str(tmp_path / "out"), "--autoencoder", str(other))
    assert str(other) in line
    assert "000000000000" in line
    assert not (tmp_path / "out").exists()


def test_damaged_weights(fails, workspace, tmp_path):
    other = shutil.copytree(workspace.demo / "vae", tmp_path / "vae")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(data))
    line = fails(workspace.run, "encode", "--output", str(tmp_path / "out"), "--autoencoder", str(other))
    assert "fingerprint" in line
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("job", ["cohort", "encode", "train", "generate"])
def test_an_output_that_holds_something_else(fails, workspace, tmp_path, job):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    name = "package" if job == "train" else "output"
    line = fails(workspace.run, job, f"--{name}", str(tmp_path / "mine"))
    assert "thesis.txt" in line
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_an_output_that_was_begun_with_another_configuration(fails, workspace):
    line = fails(workspace.run, "cohort", "--simulation.seed", "5")
    assert "simulation.seed = 0" in line
    assert "5" in line


def test_more_workers_than_the_cluster_holds(fails, workspace, tmp_path):
    line = fails(workspace.run, "encode", "--output", str(tmp_path / "out"), "--resources.workers", "500")
    assert "no room for 500 workers of 1 CPU: the cluster" in line


def test_unusable_requests_to_generate(fails, workspace, tmp_path):
    out = ["--output", str(tmp_path / "out")]
    assert "FCD" in fails(workspace.run, "generate", *out, "--campaign.samples", "{FCD: 3}")
    assert "sampler.steps is 2000" in fails(workspace.run, "generate", *out, "--sampler.steps", "2000")
    assert "campaign.samples is -1" in fails(workspace.run, "generate", *out, "--campaign.samples=-1")
    assert "sampler.name" in fails(workspace.run, "generate", *out, "--sampler.name", "plms")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(fails, workspace, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file" in fails(workspace.run, "cohort", "--output", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_configuration_that_is_not_text(fails, tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"output: \xff\xfe")
    assert "config.yaml" in fails(main, ["cohort", "--config", str(tmp_path / "config.yaml")])


def test_a_cohort_that_changed_under_unfinished_shards(fails, cohort, tmp_path):
    """Shards are cut by position: a subject less would shift the others over shards that are already there."""
    damage(image_of(cohort, 3), "truncated")
    more = ["--max_skipped", "0", "--subjects_per_shard", "4"]
    fails(prepare, cohort, tmp_path / "out", *more)
    table = cohort / "participants.tsv"
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if "sub-0003" not in line))
    assert "the content of source" in fails(prepare, cohort, tmp_path / "out", *more)


def test_a_model_that_was_trained_again_under_a_campaign(fails, workspace, tmp_path):
    model, out = shutil.copytree(workspace.demo / "model", tmp_path / "model"), str(tmp_path / "out")
    more = ["--output", out, "--model", str(model), "--campaign.samples", "1"]
    assert workspace.run("generate", *more) == 0
    document = json.loads((model / "config.json").read_text())
    for change in ({"fingerprint": "1" * 64}, {"mean": [mean + 1 for mean in document["mean"]]}):
        (model / "config.json").write_text(json.dumps({**document, **change}))
        assert "the content of model" in fails(workspace.run, "generate", *more)
    (model / "config.json").write_text(json.dumps({**document, "training": {}}))
    assert workspace.run("generate", *more) == 0


def test_a_shard_that_is_cut_short(fails, workspace, tmp_path):
    latents = shutil.copytree(workspace.demo / "latents", tmp_path / "latents")
    shard = latents / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    runs = ["--output", str(tmp_path / "runs"), "--package", str(tmp_path / "p")]
    assert "part-00000.parquet" in fails(workspace.run, "train", "--data", str(latents), *runs)
    assert not (tmp_path / "runs").exists()


def test_a_request_that_cannot_run_leaves_no_folder(fails, workspace, tmp_path):
    runs = ["--output", str(tmp_path / "runs"), "--package", str(tmp_path / "p")]
    fails(workspace.run, "train", *runs, "--resources.workers", "500")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_one_works(fails, workspace, tmp_path):
    folder = tmp_path / "runs" / "dit"
    with storage.locked(str(folder / ".voxfleet" / "lock")):
        line = fails(workspace.run, "train", "--output", str(tmp_path / "runs"), "--package", str(tmp_path / "package"))
        assert f"another run is working in {folder}" in line
    assert not (tmp_path / "package").exists()
