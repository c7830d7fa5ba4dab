"""Who is in the cohort: the subjects of a BIDS dataset or of a table, and their train/val/test split.

Only listings and small tables are read here, never an image, so that this runs on the driver in seconds.
"""

import csv
import hashlib
import io
import logging
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from voxfleet import storage
from voxfleet.data.shards import SPLITS
from voxfleet.errors import UserError

logger = logging.getLogger(__name__)

_NIFTI_ENDINGS = (".nii.gz", ".nii")
_BIDS_ID = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_LISTING_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images and their classes are: exactly one of ``bids`` and ``table``.

    Args:
        bids: Folder or URI of a BIDS dataset with a participants.tsv.
        table: CSV or TSV with the columns path, label and, if wanted, subject_id; relative paths start at the table.
        suffix: BIDS suffix of the images to take, as in sub-01_T1w.nii.gz.
        group_column: Column of participants.tsv that holds the class.
        classes: Class names as they stand in the data. Their order gives the label integers (the first is 0); subjects
            of other groups are left out.
    """

    bids: str | None = None
    table: str | None = None
    suffix: str = "T1w"
    group_column: str = "group"
    classes: tuple[str, ...] = ("HC", "TLE")

    def __post_init__(self) -> None:
        if bool(self.bids) == bool(self.table):
            raise ValueError(f"bids={self.bids!r} and table={self.table!r}: exactly one of them must be set")
        if not _alphanumeric(self.suffix):
            raise ValueError(f"suffix={self.suffix!r} must be letters and digits, such as T1w")
        if not self.group_column:
            raise ValueError("group_column='' must be the name of a column of participants.tsv")
        check_classes(self.classes)


def check_classes(classes: tuple[str, ...]) -> None:
    """Raises ValueError if ``classes`` cannot be the names of classes."""
    # BIDS ids of synthetic subjects are made from class names, and BIDS allows letters and digits only
    if not classes or not all(map(_alphanumeric, classes)):
        raise ValueError(f"classes={list(classes)} must be one or more names of letters and digits")
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes={list(classes)} must not hold a name twice")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How subjects are divided; the three fractions are positive and sum to 1.

    Args:
        train: Fraction of the subjects of each class to train on.
        val: Fraction to tune on.
        test: Fraction kept for the final evaluation.
        seed: Another seed gives another split; the same seed and cohort always give the same one.
    """

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in SPLITS:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        total = self.train + self.val + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"train={self.train}, val={self.val} and test={self.test} must sum to 1, not {total:g}")


@dataclass(frozen=True)
class Subject:
    """One subject and the image that stands for it; the image may turn out to be missing when it is read."""

    subject_id: str
    label: int
    path: str


@dataclass(frozen=True)
class _Row:
    """A usable line of a table."""

    line: int
    subject_id: str
    group: str
    path: str = ""
    id_is_file_name: bool = False


def list_subjects(config: SourceConfig) -> list[Subject]:
    """The subjects of the configured classes, sorted by id, one image each (the first of its sorted paths).

    Groups that are not in ``config.classes`` are left out, and counted in one warning of this module's logger. A
    subject without an image stays in the list, with the path where its image would be: reading it fails with one clear
    line, which the caller reports for that subject beside the other problems of its kind.

    Raises:
        UserError: if the source is missing or malformed, a class has no subject, a subject has two labels, or no
            participant at all has an image.
    """
    if config.bids:
        return _list_bids(storage.absolute(config.bids), config)
    return _list_table(storage.absolute(config.table or ""), config)


def split_subjects(subjects: Iterable[Subject], config: SplitConfig, classes: tuple[str, ...]) -> dict[str, str]:
    """``{subject_id: split}``, stratified by class, with at least one subject of each class in each split.

    Subjects are ordered by a hash of (seed, id), so the split depends neither on the order of ``subjects`` nor on the
    version of a library, and a subject that joins the cohort moves few of the others.

    Args:
        subjects: Those to divide.
        config: Fractions and seed.
        classes: Names of the labels 0, 1, ...

    Raises:
        UserError: if a class has fewer subjects than there are splits.
    """
    members: list[set[str]] = [set() for _ in classes]
    for subject in subjects:
        members[subject.label].add(subject.subject_id)
    result: dict[str, str] = {}
    for name, ids in zip(classes, members, strict=True):
        if len(ids) < len(SPLITS):
            raise UserError(
                f"class {name} has {len(ids)} subjects for {len(SPLITS)} splits; add subjects or remove it from classes"
            )
        counts = _apportion(len(ids), [config.train, config.val, config.test])
        ordered = sorted(ids, key=lambda subject_id: _hash(config.seed, subject_id))
        splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
        result |= dict(zip(ordered, splits, strict=True))
    return result


def _hash(seed: int, subject_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{subject_id}".encode()).digest()


def _apportion(total: int, fractions: list[float]) -> list[int]:
    """``total`` divided by the method of largest remainders, then at least one for each fraction."""
    exact = [total * fraction for fraction in fractions]
    counts = [math.floor(share) for share in exact]
    # rounded, so that equal remainders are equal in floating point too, and go to the first of them
    by_remainder = sorted(range(len(counts)), key=lambda i: round(counts[i] - exact[i], 9))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _alphanumeric(name: str) -> bool:
    return re.fullmatch("[A-Za-z0-9]+", name) is not None


# --- BIDS ---------------------------------------------------------------------------------------------------------


def _list_bids(root: str, config: SourceConfig) -> list[Subject]:
    if not storage.exists(root):
        raise UserError(f"BIDS dataset {root} does not exist; check bids")
    uri = storage.join(root, "participants.tsv")
    if not storage.exists(uri):
        raise UserError(f"{root} has no participants.tsv, which holds the classes; add it or use table instead of bids")
    rows = [
        _Row(line, _participant(uri, line, record["participant_id"]), record[config.group_column])
        for line, record in read_table(uri, ("participant_id", config.group_column), "set group_column or add it")
    ]
    subjects = _of_classes(_merge(rows, uri), uri, config.classes)
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:  # a listing is a round trip on an object store
        images = list(pool.map(lambda subject: _images(root, subject.subject_id, config.suffix), subjects))
    if not any(images):
        raise UserError(
            f"no participant of {root} has a {config.suffix} image; check suffix and the sub-*/anat folders"
        )
    return [
        Subject(s.subject_id, s.label, found[0] if found else _expected_image(root, s.subject_id, config.suffix))
        for s, found in zip(subjects, images, strict=True)
    ]


def _participant(uri: str, line: int, name: str) -> str:
    subject_id = name if name.startswith("sub-") else f"sub-{name}"  # the prefix is often forgotten
    if not re.fullmatch("sub-[A-Za-z0-9]+", subject_id):
        raise UserError(f"{uri} line {line}: participant_id {name!r} is not sub- and letters or digits; correct it")
    return subject_id


def _images(root: str, subject_id: str, suffix: str) -> list[str]:
    """Sorted URIs of the subject's anatomical images with ``suffix``, of all its sessions."""
    folder = storage.join(root, subject_id)
    levels = [name for name in storage.names(folder) if re.fullmatch("anat|ses-[A-Za-z0-9]+", name)]
    anats = [storage.join(folder, name) if name == "anat" else storage.join(folder, name, "anat") for name in levels]
    endings = tuple(f"_{suffix}{ending}" for ending in _NIFTI_ENDINGS)
    return [
        storage.join(anat, name)
        for anat in anats
        for name in storage.names(anat)
        if name.startswith(f"{subject_id}_") and name.endswith(endings)
    ]


def _expected_image(root: str, subject_id: str, suffix: str) -> str:
    return storage.join(root, subject_id, "anat", f"{subject_id}_{suffix}.nii.gz")


# --- Tables -------------------------------------------------------------------------------------------------------


def _list_table(uri: str, config: SourceConfig) -> list[Subject]:
    rows = [_table_row(uri, line, record) for line, record in read_table(uri, ("path", "label"), "add it")]
    return _of_classes(_merge(rows, uri), uri, config.classes)


def _table_row(uri: str, line: int, record: dict[str, str]) -> _Row:
    if not record["path"]:
        raise UserError(f"{uri} line {line}: column path is empty; fill it in or remove the line")
    path = resolve(record["path"], uri.rpartition("/")[0])
    if record.get("subject_id"):
        return _Row(line, record["subject_id"], record["label"], path)
    in_path = _BIDS_ID.findall(record["path"])
    if in_path:
        return _Row(line, in_path[-1], record["label"], path)
    name = posixpath.basename(path)
    stem = next((name.removesuffix(ending) for ending in _NIFTI_ENDINGS if name.endswith(ending)), name)
    return _Row(line, stem, record["label"], path, id_is_file_name=True)


def resolve(path: str, folder: str) -> str:
    """``path`` as a full URI; a relative one starts at ``folder``."""
    if not storage.is_local(path) or path.startswith(("/", "~")):
        return storage.absolute(path)
    if storage.is_local(folder):
        return storage.absolute(f"{folder}/{path}")
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{rest}/{path}')}"  # object stores do not understand ".."


# --- Both ---------------------------------------------------------------------------------------------------------


def read_table(uri: str, needed: tuple[str, ...], remedy: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, record) of each line of a CSV or TSV that is not blank; values are stripped."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        tabs = "\t" in text.partition("\n")[0]
        # BIDS tables do not quote: a stray quote in a comment must not swallow the lines below it
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
        reader = csv.reader(io.StringIO(text, newline=""), **dialect)
        lines = [(reader.line_num, [value.strip() for value in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{uri} is not a readable UTF-8 CSV or TSV file ({error}); save it as one") from error
    header = lines[0][1] if lines else []
    for column in needed:
        if column not in header:
            raise UserError(f"{uri} has no column {column} (its columns: {', '.join(header) or 'none'}); {remedy}")
    width = len(header)
    return [
        (number, dict(zip(header, line + [""] * (width - len(line)), strict=False)))
        for number, line in lines[1:]
        if any(line)
    ]


def _merge(rows: list[_Row], uri: str) -> list[_Row]:
    """One row an id, with the first of its sorted paths, sorted by id."""
    first: dict[str, _Row] = {}
    for row in sorted(rows, key=lambda row: (row.subject_id, row.path)):
        other = first.setdefault(row.subject_id, row)
        lines = f"{uri} lines {min(row.line, other.line)} and {max(row.line, other.line)}"
        if row.group != other.group:
            raise UserError(
                f"{lines}: subject {row.subject_id} has the labels {other.group} and {row.group}; give it one label"
            )
        if row.path != other.path and (row.id_is_file_name or other.id_is_file_name):
            # two people whose files have one name would become one subject, and one of them would be lost
            raise UserError(f"{lines}: files of one name, {row.subject_id}, in two folders; add a column subject_id")
    return list(first.values())


def _of_classes(rows: list[_Row], uri: str, classes: tuple[str, ...]) -> list[Subject]:
    """The subjects whose group is a class; each class must have some, the others are counted and left out."""
    found = Counter(row.group or "(empty)" for row in rows)
    for name in classes:
        if name not in found:
            raise UserError(
                f"{uri} has no subject of class {name} (groups found: {_listed(found)}); set classes to those names"
            )
    others = Counter({group: count for group, count in found.items() if group not in classes})
    if others:
        logger.warning(
            "%s: left out %d subjects of groups that are not in classes: %s", uri, others.total(), _listed(others)
        )
    return [Subject(row.subject_id, classes.index(row.group), row.path) for row in rows if row.group in classes]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{group} {count}" for group, count in sorted(counts.items())) or "none"
