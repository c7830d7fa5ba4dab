"""Reading shards through Ray Data into arrays that training workers share."""

from dataclasses import dataclass

import numpy as np
import ray
import ray.data

from voxfleet import storage
from voxfleet.data.shards import SPLITS, Manifest


@dataclass(frozen=True)
class Kept:
    """One split, read once: columns in the order of the subject ids, in Ray's object store."""

    columns: dict[str, ray.ObjectRef]
    rows: int

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns as arrays (rows, ...); on one node all workers share the memory."""
        return {name: ray.get(ref) for name, ref in self.columns.items()}


def read_kept(folder: str, manifest: Manifest, columns: tuple[str, ...]) -> dict[str, Kept]:
    """Read ``columns`` (and ``label``) of every split of a folder of shards that fits into memory."""
    system, _ = storage.filesystem(folder)
    paths = [storage.filesystem(uri)[1] for uri in manifest.files(folder)]
    dataset = ray.data.read_parquet(paths, filesystem=system).select_columns(["subject_id", "split", "label", *columns])
    blocks = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    table = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    order = np.argsort(table["subject_id"].astype(str), kind="stable")
    split = table["split"].astype(str)[order]
    kept = {}
    for name in SPLITS:
        rows = order[split == name]
        refs = {column: ray.put(np.ascontiguousarray(table[column][rows])) for column in ("label", *columns)}
        kept[name] = Kept(refs, len(rows))
    return kept
