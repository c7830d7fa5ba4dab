"""Who is in the cohort: BIDS datasets and tables on disk, and the split."""

import dataclasses
import os
import random
import re
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxfleet.data import nifti, sources
from voxfleet.data.sources import Scan, SourceConfig, SplitConfig, split_subjects
from voxfleet.errors import UserError

CLASSES = ("HC", "TLE")


def write_image(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), dtype=np.int16), np.eye(4)), path)
    return str(path)


def write_bids(root: Path, groups: dict[str, str], *, images: bool = True, column: str = "group") -> Path:
    root.mkdir()
    lines = [f"participant_id\tage\t{column}", *(f"{name}\t30\t{group}" for name, group in groups.items())]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    if images:
        for name in groups:
            write_image(root / name / "anat" / f"{name}_T1w.nii.gz")
    return root


def list_scans(config: SourceConfig) -> list[Scan]:
    return sources.list_scans(config).scans


def one_line(config: SourceConfig) -> str:
    """The message of the error that listing gives; errors of the user are one line."""
    with pytest.raises(UserError) as error:
        list_scans(config)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- BIDS


def test_bids_subjects_are_sorted_and_labelled_by_the_order_of_the_configuration(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-b": "HC", "sub-a": "TLE", "sub-c": "HC"})
    expected = [("sub-a", "TLE"), ("sub-b", "HC"), ("sub-c", "HC")]
    for classes in (("HC", "TLE"), ("TLE", "HC")):
        subjects = list_scans(SourceConfig(bids=str(root), classes=classes))
        assert [(s.subject_id, classes[s.label]) for s in subjects] == expected
        assert [s.path for s in subjects] == [f"{root}/{i}/anat/{i}_T1w.nii.gz" for i, _ in expected]


def test_bids_takes_the_first_image_of_the_suffix_over_sessions_and_nothing_else(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE"}, images=False)
    first = write_image(root / "sub-a" / "ses-1" / "anat" / "sub-a_ses-1_T1w.nii")
    write_image(root / "sub-a" / "ses-2" / "anat" / "sub-a_ses-2_T1w.nii.gz")
    write_image(root / "sub-a" / "ses-1" / "anat" / "sub-a_ses-1_FLAIR.nii.gz")
    (root / "sub-a" / "ses-1" / "anat" / "._sub-a_ses-1_T1w.nii").write_bytes(b"of a Mac")
    (root / "sub-a" / "ses-1" / "anat" / "sub-a_ses-1_T1w.json").write_text("{}")
    run_1 = write_image(root / "sub-b" / "anat" / "sub-b_run-1_T1w.nii.gz")
    write_image(root / "sub-b" / "anat" / "sub-b_run-2_T1w.nii.gz")
    assert [s.path for s in list_scans(SourceConfig(bids=str(root)))] == [first, run_1]


def test_bids_all_images_are_sessions_and_runs_of_their_subject(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE", "sub-c": "HC"}, images=False)
    names = ["ses-1/anat/sub-a_ses-1_run-1_T1w", "ses-1/anat/sub-a_ses-1_run-2_T1w", "ses-2/anat/sub-a_ses-2_T1w"]
    images = [write_image(root / "sub-a" / f"{name}.nii.gz") for name in names]
    images.append(write_image(root / "sub-b" / "anat" / "sub-b_T1w.nii.gz"))
    scans = list_scans(SourceConfig(bids=str(root), images="all"))
    assert [s.path for s in scans] == [*images, f"{root}/sub-c/anat/sub-c_T1w.nii.gz"]
    assert [(s.subject_id, s.label) for s in scans] == [*[("sub-a", 0)] * 3, ("sub-b", 1), ("sub-c", 0)]
    assert len(list_scans(SourceConfig(bids=str(root)))) == 3


def test_bids_masks_are_those_of_the_image_itself(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE", "sub-c": "HC", "sub-d": "HC"}, images=False)
    masks = tmp_path / "masks"
    for name in ("sub-a/ses-1/anat/sub-a_ses-1_run-1", "sub-a/ses-1/anat/sub-a_ses-1_run-2", "sub-b/anat/sub-b"):
        write_image(root / f"{name}_T1w.nii.gz")
        write_image(masks / f"{name}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz")
        write_image(masks / f"{name}_desc-hippocampus_mask.nii.gz")
        write_image(masks / f"{name}_desc-brain_T1w.nii.gz")
    first = write_image(masks / "sub-a/ses-1/anat/sub-a_ses-1_run-1_desc-brain_mask.nii.gz")
    second = write_image(masks / "sub-a/ses-1/anat/sub-a_ses-1_run-2_space-orig_label-brain_mask.nii")
    write_image(root / "sub-c/anat/sub-c_acq-x_T1w.nii.gz")
    write_image(masks / "sub-c/anat/sub-c_desc-brain_mask.nii.gz")  # of another image of sub-c
    scans = list_scans(SourceConfig(bids=str(root), images="all", masks=str(masks)))
    assert [s.mask for s in scans] == [
        first,
        second,
        f"{masks}/sub-b/anat/sub-b_desc-brain_mask.nii.gz",
        f"{masks}/sub-c/anat/sub-c_acq-x_desc-brain_mask.nii.gz",
        f"{masks}/sub-d/anat/sub-d_desc-brain_mask.nii.gz",
    ]
    assert [Path(s.mask).exists() for s in scans] == [True, True, False, False, False]
    assert f"{masks}x, the dataset of brain masks" in one_line(SourceConfig(bids=str(root), masks=f"{masks}x"))


def test_bids_participant_without_image_stays_with_the_path_where_it_would_be(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE"})
    (root / "sub-b" / "anat" / "sub-b_T1w.nii.gz").unlink()
    missing = list_scans(SourceConfig(bids=str(root)))[1]
    assert missing == Scan("sub-b", 1, f"{root}/sub-b/anat/sub-b_T1w.nii.gz")


def test_bids_without_any_image_of_the_suffix_is_an_error(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE"})
    assert "FLAIR" in one_line(SourceConfig(bids=str(root), suffix="FLAIR"))


def dataset_of(tmp_path, *names: str, subjects: tuple[str, ...] = ("sub-a",)) -> Path:
    """A dataset of these images below the folder of sub-a, and of one plain image of sub-z."""
    root = write_bids(tmp_path / "ds", {**dict.fromkeys(subjects, "HC"), "sub-z": "TLE"}, images=False)
    write_image(root / "sub-z/anat/sub-z_T1w.nii.gz")
    for name in names:
        write_image(root / "sub-a" / name)
    return root


def images_of_a(root: Path, **values) -> list[str]:
    """What is taken of sub-a, below its folder."""
    scans = list_scans(SourceConfig(bids=str(root), **values))
    return [scan.path.removeprefix(f"{root}/sub-a/") for scan in scans if scan.subject_id == "sub-a"]


@pytest.mark.parametrize(
    "names",
    [
        ["anat/sub-a_run-1_T1w.nii.gz", "anat/sub-a_ce-gadolinium_T1w.nii.gz"],
        ["anat/sub-a_run-2_T1w.nii.gz", "anat/sub-a_run-10_T1w.nii.gz"],
        ["anat/sub-a_run-01_T1w.nii.gz", "anat/sub-a_run-2_T1w.nii.gz"],
        ["anat/sub-a_T1w.nii.gz", "anat/sub-a_acq-fse_T1w.nii.gz", "anat/sub-a_rec-norm_T1w.nii.gz"],
        ["anat/sub-a_acq-mprage_run-2_T1w.nii.gz", "anat/sub-a_acq-mprage_ce-gd_run-1_T1w.nii.gz"],
        ["ses-2/anat/sub-a_ses-2_T1w.nii.gz", "ses-10/anat/sub-a_ses-10_T1w.nii.gz"],
        ["ses-1/anat/sub-a_ses-1_ce-gd_T1w.nii.gz", "ses-2/anat/sub-a_ses-2_T1w.nii.gz"],  # before surgery
        ["ses-M6/anat/sub-a_ses-M6_T1w.nii.gz", "ses-M12/anat/sub-a_ses-M12_T1w.nii.gz"],
    ],
)
def test_bids_images_are_ordered_by_session_plainness_and_number(tmp_path, names):
    root = dataset_of(tmp_path, *reversed(names))
    assert images_of_a(root) == names[:1]
    assert images_of_a(root, images="all") == names
    (choice,) = sources.list_scans(SourceConfig(bids=str(root))).notes[sources.SEVERAL]
    first, *others = (Path(name).name for name in names)
    assert choice == f"{first} chosen before {', '.join(others)}"
    assert sources.SEVERAL not in sources.list_scans(SourceConfig(bids=str(root), images="all")).notes


def test_bids_phase_images_are_never_taken_and_a_name_counts_once(tmp_path):
    names = [f"anat/sub-a_part-{part}_T1w.nii.gz" for part in ("mag", "phase", "real", "imag")]
    root = dataset_of(tmp_path, *names, "anat/sub-a_run-2_T1w.nii", "anat/sub-a_run-2_T1w.nii.gz")
    assert images_of_a(root, images="all") == ["anat/sub-a_part-mag_T1w.nii.gz", "anat/sub-a_run-2_T1w.nii"]


def test_bids_filter_takes_images_with_these_entities(tmp_path):
    names = [f"ses-{ses}/anat/sub-a_ses-{ses}_acq-{acq}_run-01_T1w.nii.gz" for ses in (1, 2) for acq in ("a", "b")]
    root = dataset_of(tmp_path, *names)
    write_image(root / "sub-z/ses-2/anat/sub-z_ses-2_acq-b_run-1_T1w.nii.gz")
    assert images_of_a(root, filter={"acq": "b"}, images="all") == [names[1], names[3]]
    assert images_of_a(root, filter={"acq": "b", "ses": "2", "run": "1"}) == [names[3]]
    assert images_of_a(root, filter={"ses": "1"}) == [names[0]]
    assert "with acq-c" in one_line(SourceConfig(bids=str(root), filter={"acq": "c"}))


def broken(path: Path) -> None:
    """As git-annex leaves what was not fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../../.git/annex/objects/Xx/9z/MD5E-s99--00.nii.gz/MD5E-s99--00.nii.gz")


@pytest.mark.parametrize("link", ["ses-1/anat/sub-a_ses-1_T1w.nii.gz", "ses-1/anat", "ses-1"])
def test_bids_what_was_not_fetched_is_not_replaced_by_another_session(tmp_path, link):
    root = dataset_of(tmp_path, "ses-2/anat/sub-a_ses-2_T1w.nii.gz")
    broken(root / "sub-a" / link)
    assert images_of_a(root) == [link]
    assert images_of_a(root, images="all") == [link, "ses-2/anat/sub-a_ses-2_T1w.nii.gz"]
    assert images_of_a(root, filter={"ses": "2"}) == ["ses-2/anat/sub-a_ses-2_T1w.nii.gz"]
    with pytest.raises(UserError, match=r"which is not there; .* run: datalad get .*sub-a"):
        nifti.read(f"{root}/sub-a/{link}")


def test_bids_folders_without_a_line_and_lost_zeros_are_told(tmp_path):
    root = dataset_of(tmp_path, "anat/sub-a_T1w.nii.gz", subjects=("sub-a", "sub-7", "sub-8"))
    for name in ("sub-007", "sub-9"):
        write_image(root / name / "anat" / f"{name}_T1w.nii.gz")
    assert sources.list_scans(SourceConfig(bids=str(root))).notes == {
        sources.NO_LINE: ["sub-007", "sub-9"],
        sources.NO_IMAGE: ["sub-7 (is it sub-007, and were leading zeros lost in participants.tsv?)", "sub-8"],
    }


def test_bids_names_beside_the_images_may_be_anything_but_those_of_images(tmp_path):
    root = dataset_of(tmp_path, "anat/sub-a_T1w.nii.gz")
    folder = os.fsencode(root / "sub-a" / "anat")
    Path(os.fsdecode(folder + b"/Bemerkung M\xfcller.txt")).touch()
    assert images_of_a(root) == ["anat/sub-a_T1w.nii.gz"]
    Path(os.fsdecode(folder + b"/sub-a_acq-M\xfcller_T1w.nii.gz")).touch()
    message = one_line(SourceConfig(bids=str(root)))
    assert "is not UTF-8; rename it" in message
    message.encode()


def test_bids_other_groups_are_left_out_and_counted(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE", "sub-c": "FCD", "sub-d": "n/a", "sub-e": "FCD"})
    listing = sources.list_scans(SourceConfig(bids=str(root)))
    assert [s.subject_id for s in listing.scans] == ["sub-a", "sub-b"]
    assert listing.notes == {sources.OTHER_GROUP: ["sub-c: FCD", "sub-d: n/a", "sub-e: FCD"]}


def test_bids_tolerates_bom_forgotten_prefix_stray_quote_and_short_or_blank_lines(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "TLE"})
    text = '\ufeffparticipant_id\tgroup\tnote\r\na\tHC \t"unclosed\r\n\r\nsub-b\tTLE\r\n\t\t\r\n'
    (root / "participants.tsv").write_bytes(text.encode())
    assert [(s.subject_id, s.label) for s in list_scans(SourceConfig(bids=str(root)))] == [
        ("sub-a", 0),
        ("sub-b", 1),
    ]


def test_bids_missing_dataset_table_column_and_class_are_named(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} does not exist" in one_line(SourceConfig(bids=str(nowhere)))
    nowhere.mkdir()
    assert "participants.tsv" in one_line(SourceConfig(bids=str(nowhere)))
    root = str(write_bids(tmp_path / "ds", {"sub-a": "HC", "sub-b": "tle"}, column="diagnosis"))
    assert "no column group (its columns, separated by tab: participant_id, age, diagnosis)" in one_line(
        SourceConfig(bids=root)
    )
    message = one_line(SourceConfig(bids=root, group_column="diagnosis"))
    assert "class TLE (groups found: HC 1, tle 1)" in message


def test_bids_participant_id_that_would_leave_the_dataset_is_refused(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC", "../b": "TLE"}, images=False)
    assert "line 3: participant_id '../b'" in one_line(SourceConfig(bids=str(root)))


# --- Tables


def write_table(path: Path, *lines: str) -> SourceConfig:
    path.write_text("\n".join(lines) + "\n")
    return SourceConfig(table=str(path))


def test_table_paths_start_at_the_table_and_ids_come_from_column_entity_or_name(tmp_path):
    (tmp_path / "lists").mkdir()
    config = write_table(
        tmp_path / "lists" / "all.csv",
        "path,label,subject_id",
        "../images/x.nii.gz,HC,p3",
        "images/sub-07_ses-1_T1w.nii.gz,TLE,",
        "/far/scan.nii,HC,",
        "s3://bucket/sub-p1/T1.nii.gz,HC,",
    )
    assert list_scans(config) == [
        Scan("p3", 0, f"{tmp_path}/images/x.nii.gz"),
        Scan("scan", 0, "/far/scan.nii"),
        Scan("sub-07", 1, f"{tmp_path}/lists/images/sub-07_ses-1_T1w.nii.gz"),
        Scan("sub-p1", 0, "s3://bucket/sub-p1/T1.nii.gz"),
    ]


def test_table_may_be_tab_separated_and_hold_quoted_commas(tmp_path):
    tabs = write_table(tmp_path / "t.tsv", "label\tpath", "HC\ta,1.nii", "TLE\tb.nii")
    commas = write_table(tmp_path / "t.csv", "label,path", 'HC,"a,1.nii"', "TLE,b.nii")
    assert list_scans(tabs) == list_scans(commas)
    assert list_scans(tabs)[0].path == f"{tmp_path}/a,1.nii"


@pytest.mark.parametrize(
    "lines",
    [
        ["path;label", "a.nii;HC", "b.nii;TLE"],
        ["sep=;", "path;label", "a.nii;HC", "b.nii;TLE"],
        ["sep=,", "path,label", "a.nii,HC", "b.nii,TLE"],
        ["path\tlabel\t", "a.nii\tHC\t", "b.nii\tTLE\t"],
        ["path\tlabel\t\t", "a.nii\tHC", "b.nii\tTLE"],
    ],
)
def test_table_separators_are_seen_in_the_header(tmp_path, lines):
    paths = [(scan.path, scan.label) for scan in list_scans(write_table(tmp_path / "t.csv", *lines))]
    assert paths == [(f"{tmp_path}/a.nii", 0), (f"{tmp_path}/b.nii", 1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,label", "a.nii,HC,TLE"], "has two columns label; remove or rename one"),
        (["path,note,label,note", "a.nii,x,HC,y"], "has two columns note"),
        (["path,label", "a.nii,HC", "b,1.nii,TLE"], "line 3 has 3 values for 2 columns; is a comma missing"),
        (["sep=;", "path;label", "a.nii;HC", "b.nii;TLE;x"], "line 4 has 3 values for 2 columns; is a semicolon"),
        (["path   label", "a.nii   HC"], "no column path (its columns, separated by comma: path   label)"),
    ],
)
def test_table_lines_that_contradict_the_header_are_named(tmp_path, lines, message):
    assert message in one_line(write_table(tmp_path / "t.csv", *lines))


def test_bids_a_column_that_stands_twice_is_named(tmp_path):
    root = write_bids(tmp_path / "ds", {"sub-a": "HC\tTLE", "sub-b": "TLE\tHC"}, column="group\tgroup")
    assert "has two columns group; remove or rename one" in one_line(SourceConfig(bids=str(root)))


def test_table_subject_twice_gives_its_first_image_once(tmp_path):
    config = write_table(tmp_path / "t.csv", "path,label,subject_id", "b.nii,HC,p1", "a.nii,HC,p1", "c.nii,TLE,p2")
    listing = sources.list_scans(config)
    assert [(s.subject_id, s.path) for s in listing.scans] == [("p1", f"{tmp_path}/a.nii"), ("p2", f"{tmp_path}/c.nii")]
    assert listing.notes == {sources.SEVERAL: ["a.nii chosen before b.nii"]}
    lines = [f"x_{name}_T1w.nii,HC,p1" for name in ("run-10", "ce-gd", "run-2")]
    config = write_table(tmp_path / "t.csv", "path,label,subject_id", *lines, "c.nii,TLE,p2")
    assert [scan.path for scan in list_scans(config)] == [f"{tmp_path}/x_run-2_T1w.nii", f"{tmp_path}/c.nii"]


def test_table_all_images_of_a_subject_each_once_and_with_its_mask(tmp_path):
    lines = ["path,label,subject_id,mask", "b.nii,HC,p1,m/b.nii", "a.nii,HC,p1,", "a.nii,HC,p1,", "c.nii,TLE,p2,/c.nii"]
    config = write_table(tmp_path / "t.csv", *lines)
    assert list_scans(dataclasses.replace(config, images="all")) == [
        Scan("p1", 0, f"{tmp_path}/a.nii"),
        Scan("p1", 0, f"{tmp_path}/b.nii", f"{tmp_path}/m/b.nii"),
        Scan("p2", 1, f"{tmp_path}/c.nii", "/c.nii"),
    ]


@pytest.mark.parametrize("other", ["TLE", "FCD"])  # FCD is not a class, and contradicts HC all the same
def test_table_subject_with_two_labels_is_an_error(tmp_path, other):
    config = write_table(
        tmp_path / "t.csv", "path,label,subject_id", "a.nii,HC,p1", "c.nii,TLE,p2", f"b.nii,{other},p1"
    )
    message = one_line(config)
    assert all(part in message for part in (f"{tmp_path}/t.csv lines 2 and 4", "p1", "HC", other))


def test_table_files_of_one_name_do_not_become_one_subject(tmp_path):
    config = write_table(tmp_path / "t.csv", "path,label", "a/T1.nii.gz,HC", "b/T1.nii.gz,HC", "x.nii,TLE")
    assert "add a column subject_id" in one_line(config)


def test_table_problems_are_named(tmp_path):
    path = tmp_path / "t.csv"
    assert f"{path} does not exist" in one_line(SourceConfig(table=str(path)))
    assert "no column label (its columns, separated by comma: path, group)" in one_line(
        write_table(path, "path,group", "a.nii,HC")
    )
    assert "no column path (its columns, separated by comma: none)" in one_line(write_table(path, ""))
    assert "line 3: column path is empty" in one_line(write_table(path, "path,label", "a.nii,HC", ",TLE"))
    assert "class TLE (groups found: HC 1)" in one_line(write_table(path, "path,label", "a.nii,HC"))
    path.write_bytes(b"path,label\n\xff\xfe.nii,HC\n")
    assert "not a readable UTF-8" in one_line(SourceConfig(table=str(path)))
    assert f"{tmp_path} is not a file" in one_line(SourceConfig(table=str(tmp_path)))


# --- The configuration


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "exactly one"),
        ({"bids": "a", "table": "b"}, "exactly one"),
        ({"bids": "a", "suffix": "T1w.nii"}, "suffix='T1w.nii'"),
        ({"bids": "a", "images": "last"}, "images='last'"),
        ({"table": "a", "masks": "b"}, "masks='b'"),
        ({"table": "a", "filter": {"acq": "x"}}, "filter={'acq': 'x'} goes with bids"),
        ({"bids": "a", "filter": {"acq-x": "y"}}, "'acq-x' is not an entity or label of BIDS"),
        ({"bids": "a", "filter": {"acq": "{acq: yes}"}}, "'{acq: yes}' is not an entity or label"),
        ({"bids": "a", "orientation": "RAS"}, "orientation='RAS'"),
        ({"bids": "a", "group_column": ""}, "group_column"),
        ({"bids": "a", "classes": ()}, "classes=[]"),
        ({"bids": "a", "classes": ("HC", "")}, "classes=['HC', '']"),
        ({"bids": "a", "classes": ("HC", "TLE-L")}, "TLE-L"),
        ({"bids": "a", "classes": ("HC", "HC")}, "twice"),
    ],
)
def test_source_config_names_key_and_value(values, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        SourceConfig(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"train": 1.0, "val": 0.0, "test": 0.0}, "train=1.0"),
        ({"val": -0.1}, "val=-0.1"),
        ({"test": float("nan")}, "test=nan"),
        ({"train": 0.7}, "sum to 1, not 0.9"),
    ],
)
def test_split_config_names_key_and_value(values, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        SplitConfig(**values)


# --- The split


def cohort(*sizes: int) -> list[Scan]:
    return [Scan(f"sub-{label}{i:03}", label, "") for label, size in enumerate(sizes) for i in range(size)]


def split_sizes(sizes: tuple[int, ...], config: SplitConfig) -> list[tuple[int, ...]]:
    subjects = cohort(*sizes)
    splits = split_subjects(subjects, config, CLASSES)
    counts = Counter((s.label, splits[s.subject_id]) for s in subjects)
    return [tuple(counts[label, split] for split in ("train", "val", "test")) for label in range(len(sizes))]


@pytest.mark.parametrize(
    ("fractions", "sizes", "expected"),
    [
        ((0.8, 0.1, 0.1), (10, 20), [(8, 1, 1), (16, 2, 2)]),
        ((0.8, 0.1, 0.1), (3, 4), [(1, 1, 1), (2, 1, 1)]),  # at least one each
        ((0.7, 0.2, 0.1), (8, 9), [(6, 1, 1), (6, 2, 1)]),  # exact: 5.6 1.6 0.8 and 6.3 1.8 0.9
        ((0.29, 0.35, 0.36), (100, 100), [(29, 35, 36)] * 2),  # 0.29 * 100 is 28.999999999999996
    ],
)
def test_split_follows_the_fractions_in_each_class(fractions, sizes, expected):
    config = SplitConfig(**dict(zip(("train", "val", "test"), fractions, strict=True)))
    assert split_sizes(sizes, config) == expected


def test_split_is_the_same_for_ever_and_in_any_order():
    subjects = cohort(6, 6)
    splits = split_subjects(subjects, SplitConfig(), CLASSES)
    # written down once: another value here means that published splits have changed
    held_out = {name: split for name, split in splits.items() if split != "train"}
    assert held_out == {"sub-0005": "val", "sub-0002": "test", "sub-1005": "val", "sub-1003": "test"}
    shuffled = random.Random(0).sample(subjects, len(subjects))
    assert split_subjects(shuffled, SplitConfig(), CLASSES) == splits


def test_split_changes_with_the_seed_and_hardly_with_a_new_subject():
    subjects = cohort(100, 100)
    splits = split_subjects(subjects, SplitConfig(), CLASSES)
    other = split_subjects(subjects, SplitConfig(seed=1), CLASSES)
    assert sum(splits[name] != other[name] for name in splits) > 20
    grown = split_subjects([*subjects, Scan("sub-new", 0, "")], SplitConfig(), CLASSES)
    assert sum(splits[name] != grown[name] for name in splits) <= 3


def test_split_is_by_subject_however_many_images_it_has():
    subjects = cohort(5, 5)
    twice = [*subjects, *(dataclasses.replace(s, path="second") for s in subjects)]
    assert split_subjects(twice, SplitConfig(), CLASSES) == split_subjects(subjects, SplitConfig(), CLASSES)


def test_split_refuses_a_class_that_cannot_be_in_every_split():
    with pytest.raises(UserError, match=r"^class TLE has 2 subjects for 3 splits; [^\n]+$"):
        split_subjects(cohort(10, 2), SplitConfig(), CLASSES)
