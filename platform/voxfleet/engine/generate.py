"""The generate job: a campaign of synthetic samples, of which none is lost and none is there twice."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from voxfleet import storage
from voxfleet.config.generation import GenerateConfig
from voxfleet.data import campaign
from voxfleet.data.campaign import SCHEMA, Plan, Queue
from voxfleet.data.known import Known, read_known
from voxfleet.data.quality import Limits, widened
from voxfleet.data.shards import Manifest, read_manifest
from voxfleet.data.synthetic import FIGURES, LATENTS, MANIFEST, SCRATCH, Writer, common_sidecar
from voxfleet.diffusion.process import DiffusionConfig, Process
from voxfleet.diffusion.samplers import sampler_table
from voxfleet.engine.campaign import WRITE, Commits, Crew, Tally, carry_out
from voxfleet.engine.cluster import check_fits, session
from voxfleet.engine.console import Progress, say
from voxfleet.engine.dataset import write_dataset
from voxfleet.engine.estimate import probe
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output, digest
from voxfleet.engine.registered import KEYS, PACKAGES, located_packages, shared_packages
from voxfleet.engine.units import Ledger
from voxfleet.engine.verify import forget_damaged
from voxfleet.errors import GateError, UserError, WorkMissingError
from voxfleet.packages import fitting_autoencoder, read_package_config

_KNOWN_COLUMNS = ["class", "index", "attempt", "reason"]  # all that a plan needs to know of what is there


def run(config: GenerateConfig) -> None:
    """Make what the campaign lacks."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(config, downloads)


def _run(config: GenerateConfig, downloads: str) -> None:
    # registered packages may be named: the output belongs to their names, the work is done with their folders
    located = located_packages(config, downloads)
    request = Request.of(located)
    output = Output("generate", config.output, config, request.inputs)
    output.check()
    ledger = Ledger(storage.join(storage.absolute(config.output), LEDGER))
    plan = request.plan(ledger)
    _say_plan(config, request, plan)
    if config.dry_run:
        _probe(request, downloads, plan)
        return
    if not config.verify and plan.done == plan.total == _rows_in_manifest(config.output):
        say(f"generate: {config.output} is complete, nothing to do")
        output.send_unsent()
        return
    with job_session(output, workers=True, more_workers=_decoders(config)) as tracker:
        there = _absolute(shared_packages(located, downloads, config.output))
        if config.verify:
            forget_damaged(there.output, ledger)
        plan = request.plan(ledger)  # another run may have worked here while this one waited for room
        tally = _make(request, there, ledger, plan)
        plan = request.plan(ledger)
        _check_complete(config, plan, tally)
        _remove_unfinished(there.output, ledger)
        write_dataset(there, request.model, request.inputs, ledger, tally, tracker)


def _probe(request: "Request", downloads: str, plan: Plan) -> None:
    """Say what all that ``plan`` lacks will take; nothing stays of it."""
    config = request.config
    lent = f"{config.output.rstrip('/')}.dry-run"  # beside the output, where a campaign may be at work
    try:
        with session(config.resources):
            check_fits(config.resources, _decoders(config))
            there = _absolute(shared_packages(config, downloads, lent))
            probe(request.crew(there, plan, folder=None), plan)
    finally:
        storage.remove(lent)


def _make(request: "Request", there: GenerateConfig, ledger: Ledger, plan: Plan) -> Tally:
    """Make what ``plan`` lacks.

    Raises:
        WorkMissingError: if that cannot be done; what is committed stays.
    """
    if plan.done == plan.total:
        return Tally()
    progress = Progress("generate", plan.total, "samples")
    progress.skip(plan.done)
    missing = plan.missing(there.batch_size, there.gate.attempts)
    queue = Queue(missing, there.batch_size, there.save.shard_size, there.gate.attempts)
    try:
        crew = request.crew(there, plan, folder=there.output)
        with Commits(there.output, plan.classes, ledger, there.save.latents) as commits:
            tally = carry_out(crew, queue, commits, progress)
    except (UserError, WorkMissingError) as error:
        again = "" if isinstance(error, WorkMissingError) else "; then run the same command again"
        raise WorkMissingError(f"{_missing(request, ledger)} are missing in {there.output}: {error}{again}") from error
    progress.finish(f"{tally.kept} samples made, {sum(tally.rejected.values())} rejected")
    workers = {**crew.sizes, WRITE: tally.writers}
    stages = [f"{name} {spent.each_s:.3g} s a batch on {workers[name]}" for name, spent in tally.spent.items()]
    say(f"generate: {'; '.join(stages)}")
    return tally


def _missing(request: "Request", ledger: Ledger) -> str:
    """How many samples are not there, as far as the ledger can be read."""
    try:
        plan = request.plan(ledger)
    except UserError:
        return "samples"
    return f"{plan.total - plan.done} of {plan.total} samples"


def _remove_unfinished(folder: str, ledger: Ledger) -> None:
    """Remove what workers and drivers that were killed left half-written, or did not commit."""
    storage.remove(storage.join(folder, SCRATCH))
    for name in (LEDGER, LATENTS, FIGURES, "", ".voxfleet", *(f"{PACKAGES}/{key}" for key in KEYS)):
        storage.remove_unfinished(storage.join(folder, name), older_s=0)
    shards = {
        str(file).removeprefix(f"{LATENTS}/") for file in ledger.table(SCHEMA, ["latents"])["latents"].to_pylist()
    }
    latents = storage.join(folder, LATENTS)
    with contextlib.suppress(UserError):  # there is none yet; else some were written again, and have readers
        shards |= {shard["file"] for shard in read_manifest(latents, "latents").shards}
    for name in storage.names(latents):
        if name.startswith("part-") and name not in shards:
            storage.remove(storage.join(latents, name))


@dataclass(frozen=True)
class Request:
    """What is asked for, and from what.

    Attributes:
        config: with the folders of its packages.
        model, autoencoder: the configurations of the packages; no autoencoder where none is needed.
        known: the manifest of the training latents, if they are compared.
    """

    config: GenerateConfig
    model: dict[str, Any]
    autoencoder: dict[str, Any] | None
    known: Manifest | None

    @classmethod
    def of(cls, config: GenerateConfig) -> "Request":
        """The request, checked.

        Raises:
            UserError: if the packages, the sampler and the training latents do not go together.
        """
        model = read_package_config(config.model, "model")
        autoencoder = _autoencoder(config, model) if config.save.volumes else None
        try:
            sampler_table(config.sampler, Process(DiffusionConfig(**model["diffusion"])))
        except ValueError as error:
            raise UserError(f"sampler.{error}") from error
        known = None
        if config.gate.latents:
            known = read_manifest(config.gate.latents, "latents")
            trained_on = model["autoencoder"], tuple(model["architecture"]["input_size"])
            if (known.autoencoder, known.shape[1:]) != trained_on:
                raise UserError(
                    f"gate.latents {config.gate.latents} are of another autoencoder or shape than those that "
                    f"{config.model} was trained on; give the latents of its training, or null"
                )
        return cls(config, model, autoencoder, known)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the model, in the order of its labels."""
        return tuple(self.model["classes"])

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what is read."""
        # statistics, process and limits decide, too, and the fingerprint is of the weights and the architecture
        inputs = {"model": digest({key: value for key, value in self.model.items() if key != "training"})}
        if self.autoencoder:
            inputs["autoencoder"] = self.autoencoder["fingerprint"]
        if self.known:
            inputs["gate.latents"] = self.known.digest
        return inputs

    def plan(self, ledger: Ledger) -> Plan:
        """The campaign, with what is there."""
        return campaign.plan(self.config.campaign, self.classes, ledger.table(SCHEMA, _KNOWN_COLUMNS))

    def crew(self, there: GenerateConfig, plan: Plan, *, folder: str | None) -> Crew:
        """Who makes what ``plan`` lacks, with absolute paths, into ``folder``; without one nothing is written."""
        model, gate = self.model, there.gate
        allowed = dict(widened(model["limits"], gate.slack)) if gate.limits and there.save.volumes else {}
        known = None
        if self.known and gate.latents:
            known = _read_known.remote(storage.absolute(gate.latents), self.known, model["mean"], model["std"])
            allowed["novelty"] = (gate.novelty, float("inf"))
        writer = self.writer(allowed, folder)
        return Crew.of(there, writer, known, -(-(plan.total - plan.done) // there.batch_size))

    def writer(self, allowed: Limits, folder: str | None) -> Writer:
        """What judges samples by what is ``allowed``, and writes them into ``folder``, if there is one."""
        fingerprints = self.model["fingerprint"], self.inputs.get("autoencoder", "")
        sidecar = common_sidecar(dataclasses.asdict(self.config.sampler), *fingerprints)
        return Writer(folder, self.config.save, allowed, self.model["geometry"], self.model["suffix"], sidecar)


@ray.remote(num_cpus=0)  # it must find room beside workers that hold all CPUs and wait for it
def _read_known(folder: str, manifest: Manifest, mean: Sequence[float], std: Sequence[float]) -> Known:
    return read_known(folder, manifest, mean, std)


def _autoencoder(config: GenerateConfig, model: dict[str, Any]) -> dict[str, Any]:
    if config.autoencoder is None:
        raise UserError("autoencoder is null, but save.volumes is true; give the package, or set save.volumes to false")
    return fitting_autoencoder(config.autoencoder, model["autoencoder"], config.model)


def _absolute(config: GenerateConfig) -> GenerateConfig:
    return absolute_paths(config, "output", "model", *(["autoencoder"] if config.autoencoder else []))


def _decoders(config: GenerateConfig) -> int:
    return config.pools.decoders if config.save.volumes else 0


def _rows_in_manifest(folder: str) -> int:
    uri = storage.join(folder, MANIFEST)
    return pq.read_metadata(pa.BufferReader(storage.read_bytes(uri))).num_rows if storage.exists(uri) else 0


def _say_plan(config: GenerateConfig, request: Request, plan: Plan) -> None:
    asked = ", ".join(f"{len(kept)} {name}" for name, kept in zip(plan.classes, plan.kept, strict=True))
    what = [name for name in ("volumes", "latents") if getattr(config.save, name)]
    say(f"generate: {asked}, of which {plan.done} are there; {' and '.join(what)} to {config.output}")
    if config.gate.limits and config.save.volumes and not request.model["limits"]:
        say(
            f"generate: {config.model} knows no limits of its training volumes; samples need only be finite",
            level="warning",
        )


def _check_complete(config: GenerateConfig, plan: Plan, tally: Tally) -> None:
    """Make sure that every sample is there.

    Raises:
        GateError: if all attempts at some were rejected; the others stay.
    """
    if lost := plan.exhausted(config.gate.attempts):
        check = tally.rejected.most_common(1)[0][0] if tally.rejected else "a check"
        raise GateError(
            f"{len(lost)} of {plan.total} samples are missing in {config.output}: {config.gate.attempts} attempts at "
            f"each (first {lost[0].sample_id}) were rejected, mostly for {check}; raise gate.attempts, lower "
            "sampler.guidance_scale, or train the model further"
        )
