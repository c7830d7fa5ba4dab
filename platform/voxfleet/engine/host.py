"""The actor of a pipeline, in a file of its own: its process starts without what the driver needs."""

import time
from typing import Any

import ray

from voxfleet.errors import UserError


@ray.remote(max_restarts=-1)
class Host:
    """Makes its worker at the first batch, from where an error of ours comes back as itself."""

    def __init__(self, kind: type, arguments: tuple[Any, ...]) -> None:
        self._kind, self._arguments = kind, arguments
        self._worker: Any = None

    @ray.method(max_task_retries=-1)
    def up(self) -> str:
        """The node's id, when the process is there, or there again."""
        return ray.get_runtime_context().get_node_id()

    def work(self, batch: Any, names: tuple[str, ...], *data: Any) -> Any:
        """What it took (``Spent.add``), and what was made: the data of these names, or else a result."""
        is_first = self._worker is None
        if is_first:
            found = [ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in self._arguments]
            self._worker = self._kind(*found)
        began = time.perf_counter(), time.process_time()
        try:
            made = self._worker(batch, *data)
        except Exception as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's: who does not compute need not import it
                raise
            raise UserError(
                "the GPU has not enough memory for a batch; lower batch_size or decode_batch_size, or give each worker "
                "more of a GPU (resources.gpus_per_worker)"
            ) from error
        spent = time.perf_counter() - began[0], time.process_time() - began[1], is_first
        return (spent, *(made[name] for name in names)) if names else (spent, made)
