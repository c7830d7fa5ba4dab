"""The model-summary job: what a DiT3D is made of and what it costs. It needs neither Ray nor the weights."""

import dataclasses

from voxfleet.config.jobs import ModelSummaryConfig
from voxfleet.engine.console import show
from voxfleet.models import DiT3DConfig
from voxfleet.models.summary import summary_lines


def run(config: ModelSummaryConfig) -> None:
    """Say it, and the keys of ``model`` that make a named size."""
    model = config.model
    if config.size is not None:
        named = DiT3DConfig.named(config.size)
        keys = ("hidden_size", "depth", "num_heads", "patch_size")
        chosen = {key: getattr(named, key) for key in keys}
        model = dataclasses.replace(model, **chosen)
        show([f"{config.size:<11}" + " ".join(f"--model.{key} {_value(value)}" for key, value in chosen.items())])
    show(summary_lines(model))


def _value(value: object) -> str:
    return f"'[{','.join(map(str, value))}]'" if isinstance(value, tuple) else str(value)
