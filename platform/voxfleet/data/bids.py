"""The few pieces that every BIDS dataset we write shares: JSON, TSV and ``dataset_description.json`` as bytes."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BIDS_VERSION = "1.10.0"


def json_bytes(document: Any) -> bytes:
    """``document`` as indented UTF-8 JSON."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def tsv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """``rows`` as tab-separated values under the keys of the first row; None becomes ``n/a``, as BIDS wants.

    Raises:
        ValueError: if there are no rows, or a row has other keys than the first.
    """
    if not rows:
        raise ValueError("a BIDS table needs at least one row")
    columns = list(rows[0])
    if any(list(row) != columns for row in rows):
        raise ValueError(f"every row of a BIDS table needs the columns {columns}, in this order")
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def _cell(value: Any) -> str:
    return "n/a" if value is None else " ".join(str(value).split())  # a tab or newline would break the table


def participants_tsv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """``participants.tsv``: one row a subject, ordered by ``participant_id`` (``sub-...``), that column first.

    Raises:
        ValueError: if there are no rows, an id is given twice, or the rows differ in their columns.
    """
    ids = [row["participant_id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(f"participant_id {next(i for i in ids if ids.count(i) > 1)!r} is given more than once")
    return tsv_bytes(
        [{"participant_id": row["participant_id"], **row} for _, row in sorted(zip(ids, rows, strict=True))]
    )


def dataset_description(
    name: str,
    dataset_type: str,
    *,
    description: str,
    source_datasets: Sequence[Mapping[str, str]] = (),
    **fields: Any,
) -> bytes:
    """``dataset_description.json`` of a dataset that Voxfleet made.

    Args:
        name: title of the dataset.
        dataset_type: ``raw`` or ``derivative``.
        description: what Voxfleet did, under ``GeneratedBy``.
        source_datasets: for a derivative, what it was made from: dicts with ``URL``, ``DOI`` or ``Version``.
        **fields: further BIDS fields, such as ``License`` or ``HowToAcknowledge``.
    """
    generator = {"Name": "voxfleet", "Version": _version(), "Description": description}
    document = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": dataset_type,
        "GeneratedBy": [generator],
        **({"SourceDatasets": [dict(source) for source in source_datasets]} if source_datasets else {}),
        **fields,
    }
    return json_bytes(document)


def _version() -> str:
    try:
        return version("voxfleet")
    except PackageNotFoundError:  # run from the source tree
        return "unknown"
