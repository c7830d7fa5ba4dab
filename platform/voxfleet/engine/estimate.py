"""What a campaign will take, from a few batches that are drawn and thrown away."""

from dataclasses import replace

from voxfleet.data.campaign import Plan, Queue
from voxfleet.engine.campaign import Crew, carry_out
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress, duration, show

_BATCHES = 4  # the first, in which all is loaded and compiled, tells nothing


def probe(crew: Crew, plan: Plan) -> None:
    """Draw a few batches with one worker, and show what all that ``plan`` lacks will take."""
    left = plan.total - plan.done
    if not left:
        show(["nothing is left to make"])
        return
    config = crew.config
    attempts, size = config.gate.attempts, config.batch_size
    queue = Queue(plan.missing(size, attempts), size, config.save.shard_size, attempts)
    alone = replace(crew, workers=1, decoders=min(crew.decoders, 1), writers=1, most_writers=1)
    progress = Progress("probe", _BATCHES * size, "samples")
    tally = carry_out(alone, queue, None, progress, most_batches=_BATCHES)
    rejected = sum(tally.rejected.values())
    progress.finish(f"{tally.kept} samples kept, {rejected} rejected")
    if not tally.kept:
        show([f"no sample of {rejected} was kept ({', '.join(tally.rejected)}): the campaign would not end"])
        return
    batches = left / size * (1 + rejected / tally.kept)
    writers = crew.writers_for(tally.spent)
    workers = {name: crew.sizes.get(name, writers) for name in tally.spent}
    seconds = max(batches * stage.each_s / workers[name] for name, stage in tally.spent.items())
    gpus = gpus_per_worker(config.resources) * sum(crew.sizes.values())
    lines = [f"{name}: {stage.each_s:.3g} s a batch, {workers[name]} at a time" for name, stage in tally.spent.items()]
    show(
        [
            f"{left} samples to make, in about {batches:.0f} batches of {size}",
            *lines,
            f"about {duration(seconds)} and {gpus * seconds / 3600:.3g} GPU hours",
            f"about {tally.size / tally.kept * left / 1e9:.3g} GB of images and latents",
        ]
    )
