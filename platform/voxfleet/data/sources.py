"""Who is in the cohort: the images of a BIDS dataset or of a table, and the train/val/test split of the subjects.

Only listings and small tables are read here, never an image, so that this runs on the driver in seconds.
"""

import csv
import hashlib
import io
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from voxfleet import storage
from voxfleet.data.orientation import Orientation
from voxfleet.data.shards import SPLITS
from voxfleet.errors import UserError

_NIFTI_ENDINGS = (".nii.gz", ".nii")
_MASK_ENDINGS = tuple(f"mask{ending}" for ending in _NIFTI_ENDINGS)
_BIDS_ID = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_ENTITY = re.compile("([A-Za-z]+)-([A-Za-z0-9]+)")
_NO_MAGNITUDE = {"part": ("phase", "real", "imag")}  # images that do not show the head as it looks
_LEAST_PLAIN = ("ce", "rec", "acq")  # entities of images that were enhanced, reconstructed or acquired otherwise
SEVERAL = "several images of a subject"
OTHER_GROUP = "subjects of groups that are not in classes"
NO_LINE = "folders without a line in participants.tsv"
NO_IMAGE = "subjects without an image"
_LEVEL = re.compile("anat|ses-[A-Za-z0-9]+")  # folders of a subject that hold images, or folders of images
_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
_LISTING_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the images and their classes are: exactly one of ``bids`` and ``table``.

    Args:
        bids: Folder or URI of a BIDS dataset with a participants.tsv.
        table: CSV or TSV with the columns path, label and, if wanted, subject_id and mask; relative paths start at the
            table.
        suffix: BIDS suffix of the images to take, as in sub-01_T1w.nii.gz; those of a table have it, too. The names of
            synthetic volumes end with it.
        filter: BIDS entities that an image of bids must have, such as {ses: pre, acq: mprage}.
        images: Take the first image of each subject, or all of its sessions and runs (a table may have several lines of
            one subject_id). Sessions and runs are ordered by their numbers or names; within a session, images without
            ce-, rec- and acq- come first.
        orientation: Which affine of a header is right, sform or qform. With null it is the sform, and an image whose
            two affines contradict each other about left and right is refused.
        masks: Folder or URI of a BIDS derivative dataset that holds a brain mask of each image of bids, as in
            sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz; a table names them in its column mask.
        group_column: Column of participants.tsv that holds the class.
        classes: Class names as they stand in the data. Their order gives the label integers (the first is 0); subjects
            of other groups are left out.
        mirrored: Whether a head mirrored left to right is one of the same class, so that encode may add mirror images
            of the training heads, and classify may mirror at random.
    """

    bids: str | None = None
    table: str | None = None
    suffix: str = "T1w"
    filter: dict[str, str] = field(default_factory=dict)
    images: Literal["first", "all"] = "first"
    orientation: Orientation | None = None
    masks: str | None = None
    group_column: str = "group"
    classes: tuple[str, ...] = ("HC", "TLE")
    mirrored: bool = False

    def __post_init__(self) -> None:
        if bool(self.bids) == bool(self.table):
            raise ValueError(f"bids={self.bids!r} and table={self.table!r}: exactly one of them must be set")
        if self.table and self.filter:
            raise ValueError(f"filter={self.filter} goes with bids; remove the lines from table")
        if unknown := [word for word in (*self.filter, *self.filter.values()) if not _alphanumeric(word)]:
            raise ValueError(
                f"filter={self.filter}: {unknown[0]!r} is not an entity or label of BIDS, such as run and 1"
            )
        if self.orientation not in (None, "sform", "qform"):
            raise ValueError(f"orientation={self.orientation!r} must be sform, qform or null")
        if self.table and self.masks:
            raise ValueError(f"masks={self.masks!r} goes with bids; name the masks in the column mask of table")
        if self.images not in ("first", "all"):
            raise ValueError(f"images={self.images!r} must be first or all")
        check_suffix(self.suffix)
        if not self.group_column:
            raise ValueError("group_column='' must be the name of a column of participants.tsv")
        check_classes(self.classes)


def check_suffix(suffix: str) -> None:
    """Raises ValueError if ``suffix`` cannot be the BIDS suffix of images."""
    if not _alphanumeric(suffix):
        raise ValueError(f"suffix={suffix!r} must be letters and digits, such as T1w")


def check_classes(classes: tuple[str, ...]) -> None:
    """Raises ValueError if ``classes`` cannot be the names of classes."""
    # BIDS ids of synthetic subjects are made from class names, and BIDS allows letters and digits only
    if not classes:
        raise ValueError("classes=[] must hold a name; for people of one kind, give all of them one group in the data")
    if not all(map(_alphanumeric, classes)):
        raise ValueError(f"classes={list(classes)} must be names of letters and digits")
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
class Scan:
    """One image of a subject, and its brain mask where masks are given; either may turn out to be missing when read."""

    subject_id: str
    label: int
    path: str
    mask: str | None = None


@dataclass(frozen=True)
class _Row:
    """A usable line of a table."""

    line: int
    subject_id: str
    group: str
    path: str = ""
    mask: str | None = None
    id_is_file_name: bool = False


@dataclass(frozen=True)
class Listing:
    """The images of a cohort.

    Attributes:
        scans: sorted by subject and image.
        notes: what a user should know of the source, each kind with its entries, such as the subjects concerned.
    """

    scans: list[Scan]
    notes: dict[str, list[str]]


def list_scans(config: SourceConfig) -> Listing:
    """The images of the subjects of the configured classes: of each subject the first, or all.

    Groups that are not in ``config.classes`` are left out, and counted in a note. A subject without an image stays in
    the list, with the path where its image would be: reading it fails with one clear line, which the caller reports for
    that subject beside the other problems of its kind.

    Raises:
        UserError: if the source is missing or malformed, a class has no subject, a subject has two labels, or no
            participant at all has an image.
    """
    if config.bids:
        return _list_bids(storage.absolute(config.bids), config)
    return _list_table(storage.absolute(config.table or ""), config)


def split_subjects(scans: Iterable[Scan], config: SplitConfig, classes: tuple[str, ...]) -> dict[str, str]:
    """``{subject_id: split}``, stratified by class, with at least one subject of each class in each split.

    Subjects are ordered by a hash of (seed, id), so the split depends neither on the order of ``scans`` nor on the
    version of a library, and a subject that joins the cohort moves few of the others. All images of a subject are in
    its split.

    Args:
        scans: Those whose subjects to divide.
        config: Fractions and seed.
        classes: Names of the labels 0, 1, ...

    Raises:
        UserError: if a class has fewer subjects than there are splits.
    """
    members: list[set[str]] = [set() for _ in classes]
    for scan in scans:
        members[scan.label].add(scan.subject_id)
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


def _list_bids(root: str, config: SourceConfig) -> Listing:
    if not storage.exists(root):
        raise UserError(f"BIDS dataset {root} does not exist; check bids")
    uri = storage.join(root, "participants.tsv")
    if not storage.exists(uri):
        raise UserError(f"{root} has no participants.tsv, which holds the classes; add it or use table instead of bids")
    if config.masks and not storage.exists(config.masks):
        raise UserError(f"{config.masks}, the dataset of brain masks, does not exist; check masks")
    rows = [
        _Row(line, _participant(uri, line, record["participant_id"]), record[config.group_column])
        for line, record in read_table(uri, ("participant_id", config.group_column), "set group_column or add it")
    ]
    subjects, notes = _of_classes(_merge(rows, uri), uri, config)
    folders = {name for name in storage.names(root) if re.fullmatch("sub-[A-Za-z0-9]+", name)}
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:  # a listing is a round trip on an object store
        images = list(pool.map(lambda subject: _images(root, subject.subject_id, config), subjects))
    if not any(images):
        hint = _zeros_hint(subjects[0].subject_id, folders - {subjects[0].subject_id})
        entities = "".join(f" with {name}-{value}" for name, value in config.filter.items())
        raise UserError(
            f"no participant of {root} has a {config.suffix} image{entities}, {subjects[0].subject_id} neither{hint}; "
            "check suffix, filter and the sub-*/anat folders"
        )
    notes |= {
        SEVERAL: [_choice(found) for found in images if len(found) > 1 and config.images == "first"],
        NO_LINE: sorted(folders - {row.subject_id for row in rows}),
        NO_IMAGE: [
            subject.subject_id + _zeros_hint(subject.subject_id, folders - {subject.subject_id})
            for subject, found in zip(subjects, images, strict=True)
            if not found
        ],
    }
    scans = [
        replace(subject, path=path, mask=_mask(root, path, config) if config.masks else None)
        for subject, found in zip(subjects, images, strict=True)
        for path in _taken(root, subject, found, config)
    ]
    return Listing(scans, {kind: entries for kind, entries in notes.items() if entries})


def _taken(root: str, subject: Scan, images: list[str], config: SourceConfig) -> list[str]:
    """The images of a subject to take; where there are none, where one would be."""
    name = subject.subject_id
    images = images or [storage.join(root, name, "anat", f"{name}_{config.suffix}.nii.gz")]
    if config.images == "first":
        return images[:1]
    stems = [image.removesuffix(".gz") for image in images]  # .nii and .nii.gz of one name are one image
    return [image for place, image in enumerate(images) if stems.index(stems[place]) == place]


def _choice(images: list[str]) -> str:
    """The chosen image among several, in words."""
    chosen, *others = (posixpath.basename(image) for image in images)
    return f"{chosen} chosen before {', '.join(others)}"


def _zeros_hint(subject_id: str, folders: set[str]) -> str:
    """A remark for an id such as sub-1 whose folder is sub-01, as spreadsheets drop zeros; else empty."""
    number = subject_id.removeprefix("sub-")
    padded = next((name for name in sorted(folders) if name.removeprefix("sub-").lstrip("0") == number), None)
    return f" (is it {padded}, and were leading zeros lost in participants.tsv?)" if padded else ""


def _participant(uri: str, line: int, name: str) -> str:
    subject_id = name if name.startswith("sub-") else f"sub-{name}"  # the prefix is often forgotten
    if not re.fullmatch("sub-[A-Za-z0-9]+", subject_id):
        raise UserError(f"{uri} line {line}: participant_id {name!r} is not sub- and letters or digits; correct it")
    return subject_id


def _images(root: str, subject_id: str, config: SourceConfig) -> list[str]:
    """URIs of the subject's anatomical images that the configuration describes, of all sessions, the first one first.

    A folder that was not fetched (a link that points to nothing) stands for its images: no other may take their place.
    """
    endings = tuple(f"_{config.suffix}{ending}" for ending in _NIFTI_ENDINGS)
    levels = [name for name in storage.names(storage.join(root, subject_id)) if _LEVEL.fullmatch(name)]
    anats = [f"{subject_id}/{name}" if name == "anat" else f"{subject_id}/{name}/anat" for name in levels]
    folders = {*anats, *(f"{subject_id}/{name}" for name in levels)}
    paths = [name for name in sorted(folders) if storage.is_broken_link(storage.join(root, name))]
    for anat in anats:
        images = [name for name in storage.names(storage.join(root, anat)) if name.endswith(endings)]
        paths += [f"{anat}/{name}" for name in images if name.startswith(f"{subject_id}_")]
    if bad := next((name for name in paths if not storage.is_utf8(name)), None):
        raise UserError(f"{root} holds an image whose name {bad!a} is not UTF-8; rename it")
    return [storage.join(root, name) for name in sorted(paths, key=_order) if _is_asked_for(name, config)]


def _entities(name: str) -> dict[str, str]:
    """The BIDS entities in sub-a/ses-1/anat/sub-a_ses-1_run-2_T1w.nii.gz: sub a, ses 1, run 2."""
    return dict(_ENTITY.findall(name))


def _is_asked_for(name: str, config: SourceConfig) -> bool:
    entities = _entities(name)
    if any(entities.get(entity) in labels for entity, labels in _NO_MAGNITUDE.items()):
        return False
    # of a folder that was not fetched nothing is known but its session
    keys = {"ses"} & config.filter.keys() if _LEVEL.fullmatch(posixpath.basename(name)) else config.filter.keys()
    return all(_natural(entities.get(entity, "")) == _natural(config.filter[entity]) for entity in keys)


def _order(name: str) -> tuple[Any, ...]:
    """The sort key of an image: by session, then plain images first, then by run and the other entities."""
    entities = _entities(name)
    special = [entity in entities for entity in _LEAST_PLAIN]
    return _natural(entities.get("ses", "")), special, len(entities), _natural(entities.get("run", "")), _natural(name)


def _natural(label: str) -> tuple[tuple[bool, int, str], ...]:
    """The sort key of a label: numbers as numbers, so that run-2 is before run-10, and run-01 is run-1."""
    parts = re.findall("[0-9]+|[^0-9]+", label)
    return tuple((False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts)


def _mask(root: str, image: str, config: SourceConfig) -> str:
    """URI of the brain mask of ``image``, a file of ``root``, in the dataset of masks; where it would be if not there.

    It lies in the same folder and has the entities of the image, and desc-brain or label-brain; a mask in another space
    (space-MNI152...) is not of this image.
    """
    folder, _, name = image.removeprefix(f"{root}/").rpartition("/")
    masks = storage.join(storage.absolute(config.masks or ""), folder)
    entities = set(name.partition(".")[0].split("_")[:-1])
    described = {"desc-brain", "label-brain"}
    own = described | {"space-orig", f"space-{config.suffix}"}
    for candidate in storage.names(masks):
        *parts, last = candidate.split("_")
        if last in _MASK_ENDINGS and entities <= set(parts) <= entities | own and described & set(parts):
            return storage.join(masks, candidate)
    return storage.join(masks, "_".join([*name.split("_")[:-1], "desc-brain_mask.nii.gz"]))


# --- Tables -------------------------------------------------------------------------------------------------------


def _list_table(uri: str, config: SourceConfig) -> Listing:
    rows = [_table_row(uri, line, record) for line, record in read_table(uri, ("path", "label"), "add it")]
    return Listing(*_of_classes(_merge(rows, uri), uri, config))


def _table_row(uri: str, line: int, record: dict[str, str]) -> _Row:
    if not record["path"]:
        raise UserError(f"{uri} line {line}: column path is empty; fill it in or remove the line")
    folder = uri.rpartition("/")[0]
    path = storage.absolute(record["path"], folder)
    mask = storage.absolute(record["mask"], folder) if record.get("mask") else None
    in_path = _BIDS_ID.findall(record["path"])
    name = posixpath.basename(path)
    stem = next((name.removesuffix(ending) for ending in _NIFTI_ENDINGS if name.endswith(ending)), name)
    subject_id = record.get("subject_id") or (in_path[-1] if in_path else stem)
    by_name = not record.get("subject_id") and not in_path
    return _Row(line, subject_id, record["label"], path, mask, id_is_file_name=by_name)


# --- Both ---------------------------------------------------------------------------------------------------------


def read_table(uri: str, needed: tuple[str, ...], remedy: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, record) of each line of a CSV or TSV that is not blank; values are stripped.

    The separator is a tab, a comma or a semicolon, whichever of them the header holds first in this order, or what a
    first line such as sep=; says.

    Raises:
        UserError: names the column that is missing or stands twice, or the line with more values than columns.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        named = re.match(r"sep=([\t,;|])\r?\n", text)
        text = text[named.end() :] if named else text
        header_line = re.split(r"[\r\n]", text, maxsplit=1)[0]
        delimiter = named[1] if named else next((mark for mark in "\t,;" if mark in header_line), ",")
        # BIDS tables do not quote: a stray quote in a comment must not swallow the lines below it
        dialect: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect)
        first = 1 if named else 0
        lines = [(reader.line_num + first, [value.strip() for value in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{uri} is not a readable UTF-8 CSV or TSV file ({error}); save it as one") from error
    header = lines[0][1] if lines else []
    for column in needed:
        if column not in header:
            raise UserError(
                f"{uri} has no column {column} (its columns, separated by {_SEPARATORS[delimiter]}: "
                f"{', '.join(header) or 'none'}); {remedy}"
            )
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise UserError(f"{uri} has two columns {twice}; remove or rename one")
    for number, line in lines[1:]:
        if any(line[len(header) :]):
            raise UserError(
                f"{uri} line {number} has {len(line)} values for {len(header)} columns; is a "
                f"{_SEPARATORS[delimiter]} missing in the header, or one too many in the line?"
            )
    width = len(header)
    return [
        (number, dict(zip(header, line + [""] * (width - len(line)), strict=False)))
        for number, line in lines[1:]
        if any(line)
    ]


def _merge(rows: list[_Row], uri: str) -> list[list[_Row]]:
    """The rows of each id, in the order of ids and paths, each path once."""
    merged: dict[str, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: (row.subject_id, _order(row.path), row.path)):
        known = merged.setdefault(row.subject_id, [row])
        other = known[-1]
        lines = f"{uri} lines {min(row.line, other.line)} and {max(row.line, other.line)}"
        if row.group != other.group:
            raise UserError(
                f"{lines}: subject {row.subject_id} has the labels {other.group} and {row.group}; give it one label"
            )
        if row.path != other.path:
            if row.id_is_file_name or other.id_is_file_name:
                # two people whose files have one name would become one subject, and one of them would be lost
                raise UserError(
                    f"{lines}: files of one name, {row.subject_id}, in two folders; add a column subject_id"
                )
            known.append(row)
    return list(merged.values())


def _of_classes(subjects: list[list[_Row]], uri: str, config: SourceConfig) -> tuple[list[Scan], dict[str, list[str]]]:
    """The scans of subjects whose group is a class, of which each must have some; and notes on the other subjects."""
    classes = config.classes
    found = Counter(rows[0].group or "(empty)" for rows in subjects)
    for name in classes:
        if name not in found:
            raise UserError(
                f"{uri} has no subject of class {name} (groups found: {_listed(found)}); set classes to those names"
            )
    others = [
        f"{rows[0].subject_id}: {rows[0].group or '(empty)'}" for rows in subjects if rows[0].group not in classes
    ]
    scans = [
        Scan(row.subject_id, classes.index(row.group), row.path, row.mask)
        for rows in subjects
        for row in (rows if config.images == "all" else rows[:1])
        if row.group in classes
    ]
    taken = [rows for rows in subjects if rows[0].group in classes and config.images == "first"]
    several = [_choice([row.path for row in rows]) for rows in taken if len(rows) > 1]
    return scans, {kind: entries for kind, entries in ((OTHER_GROUP, others), (SEVERAL, several)) if entries}


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{group} {count}" for group, count in sorted(counts.items())) or "none"
