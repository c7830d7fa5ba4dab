"""The latents job: statistics of channels, maps of real and synthetic latents, what the autoencoder makes of them."""

import dataclasses
import tempfile
from typing import Any

import numpy as np

from voxfleet import __version__, storage
from voxfleet.config.visualisation import LatentsConfig
from voxfleet.engine.console import Progress, say
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.latent_decoding import Decoded, Task, decode
from voxfleet.engine.latent_map import LEAST_UMAP, LatentMap, latent_map, umap_points
from voxfleet.engine.latent_pieces import REAL, SYNTHETIC, TRAIN, LatentSet, Pieces, measure, open_latents
from voxfleet.engine.latent_verdict import NOTES, channel_rows, judge
from voxfleet.engine.output import Output
from voxfleet.engine.registered import located_packages, shared_packages
from voxfleet.metrics.channels import EDGES
from voxfleet.packages import fitting_autoencoder
from voxfleet.report.figures import mosaic
from voxfleet.report.latents import correlations, explained_variance, histograms, page, scatter
from voxfleet.report.page import Check, Picture
from voxfleet.tracking.base import Tracker

FIGURES, PAGE = "latents.json", "report.html"
_KEYS = {REAL: "data", SYNTHETIC: "synthetic"}
_HELD_OUT = ("test", "val", TRAIN)  # where latents to decode are taken from, the first that has some


def run(config: LatentsConfig) -> None:
    """Measure, map, decode, and write the page."""
    with tempfile.TemporaryDirectory() as downloads:
        _run(config, downloads)


def _run(config: LatentsConfig, downloads: str) -> None:
    located = located_packages(config, downloads)
    sets = open_latents(config)
    inputs = {_KEYS[name]: latents.manifest.digest for name, latents in sets.items()}
    if located.autoencoder:
        wanted = sets[REAL].manifest.autoencoder
        inputs["autoencoder"] = fitting_autoencoder(located.autoencoder, wanted, config.data)["fingerprint"]
    output = Output("latents", config.output, config, inputs)
    if output.is_done(FIGURES):
        return
    with job_session(output, workers=bool(config.autoencoder)) as tracker:
        for name, latents in sets.items():
            tracker.log_dataset(name, latents.folder, latents.manifest.digest)
        shared = shared_packages(located, downloads, config.output)
        there = absolute_paths(shared, "output", *(["autoencoder"] if config.autoencoder else []))
        pieces = measure(there.output, sets)
        classes = sets[REAL].manifest.classes
        found = latent_map(pieces, classes)
        decoded = _decoded(there, sets, found) if there.autoencoder else None
        results = Results(config, sets, inputs, pieces, found, decoded)
        _write(there, results, tracker)
        for check in results.checks:
            if check.passed is False:
                say(f"latents: fail: {check.name}: {check.value} (wanted: {check.wanted})", level="warning")
        say(f"latents: page in {storage.join(config.output, PAGE)}")


def _decoded(config: LatentsConfig, sets: dict[str, LatentSet], found: LatentMap) -> Decoded:
    """Some held-out latents with and without noise, and a strip of each set."""
    real, ends = sets[REAL], {}
    of_real = int((found.splits != SYNTHETIC).sum())
    for name, split, before in ((REAL, TRAIN, 0), (SYNTHETIC, SYNTHETIC, of_real)):
        rows = {class_name: found.typical(split, label) for label, class_name in enumerate(real.manifest.classes)}
        there = [(class_name, row - before) for class_name, row in rows.items() if row is not None]
        if len(there) > 1:
            (first, one), (last, other) = there[:2]
            ends[f"{name}: {first} to {last}"] = sets[name].read([one, other])[0]
    mu, logvar = real.read(_chosen(found, config.volumes))
    total = 2 * len(mu) + config.points * len(ends)
    progress = Progress("latents", total, "volumes")
    decoded = decode(config, Task(mu, logvar, ends, real.manifest.mean, real.manifest.std))
    progress.finish(f"{total} volumes decoded")
    return decoded


def _chosen(found: LatentMap, number: int) -> list[int]:
    """Rows of the real set: ``number`` of one split, of each class in turn."""
    split = next(name for name in _HELD_OUT if name in found.splits)
    rows = np.flatnonzero(found.splits == split)
    turn = np.zeros(len(rows), dtype=int)
    for label in np.unique(found.labels[rows]):
        mine = found.labels[rows] == label
        turn[mine] = np.arange(mine.sum())
    return rows[np.lexsort((found.labels[rows], turn))][:number].tolist()


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was found, and how it is shown."""

    config: LatentsConfig
    sets: dict[str, LatentSet]
    inputs: dict[str, str]
    pieces: dict[str, Pieces]
    map: LatentMap
    decoded: Decoded | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the real set."""
        return self.sets[REAL].manifest.classes

    @property
    def checks(self) -> list[Check]:
        """The verdict, line by line."""
        manifest = self.sets[REAL].manifest
        return judge({name: found.sums for name, found in self.pieces.items()}, manifest.std, self.decoded)

    @property
    def channels(self) -> dict[str, list[dict[str, Any]]]:
        """A row a channel, by set."""
        manifest = self.sets[REAL].manifest
        return {name: channel_rows(found.sums, manifest.mean, manifest.std) for name, found in self.pieces.items()}

    def pictures(self) -> dict[str, tuple[str, Picture]]:
        """Section and picture of each file."""
        found = self._maps()
        sums = {name: pieces.sums for name, pieces in self.pieces.items()}
        counts = histograms(EDGES, {name: part.histogram for name, part in sums.items()})
        found["channels"] = (
            "Channels",
            Picture(counts, "standardised latents of the training split (and synthetic ones), beside a Gaussian"),
        )
        matrices = correlations({name: part.correlation for name, part in sums.items()})
        found["correlation"] = ("Channels", Picture(matrices, "correlation of the channels over all voxels"))
        return found | self._volumes()

    def _maps(self) -> dict[str, tuple[str, Picture]]:
        points, share = self.map.coordinates, 100 * self.map.explained
        look = (self.map.labels, self.map.splits, self.classes)
        axes = [f"principal axis {i + 1} ({share[i]:.1f} % of the training split's variance)" for i in (0, 1)]
        caption = "all latents along the two principal axes of the training split"
        found = {"pca": ("Map: principal axes", Picture(scatter(points[:, :2], *look, axes), caption))}
        caption = "how much of the training split's variance the principal axes hold"
        found["explained"] = ("Map: principal axes", Picture(explained_variance(self.map.explained), caption))
        if self.umap_reason is None:
            drawn = scatter(umap_points(points, self.config.seed), *look, ["UMAP 1", "UMAP 2"])
            caption = f"UMAP of the first {points.shape[1]} principal coordinates: neighbours stay neighbours, but "
            caption += "distances between groups mean little"
            found["umap"] = ("Map: UMAP", Picture(drawn, caption))
        return found

    @property
    def umap_reason(self) -> str | None:
        """Why there is no map by UMAP; None if there is one."""
        if not self.config.has_umap:
            asked = self.config.umap is None
            return "umap-learn is not installed (pip install 'voxfleet[umap]')" if asked else "umap is false"
        too_few = len(self.map.labels) < LEAST_UMAP
        return f"{len(self.map.labels)} latents are less than {LEAST_UMAP}" if too_few else None

    def _volumes(self) -> dict[str, tuple[str, Picture]]:
        if self.decoded is None:
            return {}
        weights = [f"{weight:.2f}" for weight in np.linspace(0, 1, self.config.points)]
        found = {}
        for number, (name, volumes) in enumerate(self.decoded.strips.items()):
            caption = f"{name}, along the arc between the standardised latents nearest to the centres of both classes"
            found[f"strip-{number}"] = ("From one class to the other", Picture(mosaic(volumes, weights), caption))
        both = np.stack([self.decoded.means, self.decoded.draws], axis=1).reshape(-1, *self.decoded.means.shape[1:])
        titles = [text for value in self.decoded.psnr for text in ("mean", f"draw: {value:.1f} dB")]
        caption = "held-out latents: the mean of the posterior decoded, and a draw from it"
        found["noise"] = ("The posterior's noise", Picture(mosaic(both, titles), caption))
        return found

    def document(self) -> dict[str, Any]:
        """All figures."""
        decoded = self.decoded and {
            **{key: getattr(self.decoded, key) for key in ("low", "high", "outside")},
            "psnr": self.decoded.psnr.tolist(),
        }
        return {
            "voxfleet": __version__,
            "inputs": self.inputs,
            "classes": list(self.classes),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "channels": self.channels,
            "correlation": {name: found.sums.correlation.tolist() for name, found in self.pieces.items()},
            "noise_share": {name: found.sums.total_noise_share for name, found in self.pieces.items()},
            "explained": self.map.explained.tolist(),
            "groups": [
                {key: None if value != value else value for key, value in dataclasses.asdict(group).items()}  # NaN
                for group in self.map.groups
            ],
            "decoded": decoded,
            "umap": self.umap_reason or "drawn",
        }

    def html(self, pictures: dict[str, tuple[str, Picture]]) -> str:
        """The page."""
        sections: dict[str, list[Picture]] = {}
        for section, picture in pictures.values():
            sections.setdefault(section, []).append(picture)
        titles = {REAL: "Channels: latents of the training split", SYNTHETIC: "Channels: synthetic latents"}
        tables = {titles[name]: rows for name, rows in self.channels.items()}
        if self.map.groups:
            tables["Classes"] = [
                {"latents": g.name, "n": g.n, "separation": g.separation, "spread": g.spread} for g in self.map.groups
            ]
        notes = [*NOTES, *([f"There is no map by UMAP: {self.umap_reason}."] if self.umap_reason else [])]
        if self.decoded is None:
            notes.append("Nothing was decoded, as no autoencoder was given: set autoencoder.")
        return page(self._lead(), self.checks, tables, sections, notes)

    def _lead(self) -> str:
        counts = [f"{(self.map.splits == name).sum()} {name}" for name in dict.fromkeys(self.map.splits.tolist())]
        shape = " x ".join(map(str, self.sets[REAL].manifest.shape))
        return (
            f"Latents of {shape} (channels x voxels): {', '.join(counts)}; classes {', '.join(self.classes)}. The "
            "page shows where single people lie and what they look like: it is as confidential as the latents."
        )


def _write(config: LatentsConfig, results: Results, tracker: Tracker) -> None:
    """Pictures, page, and last the figures, which mark the folder as complete."""
    document, pictures = results.document(), results.pictures()
    for name, (_, picture) in pictures.items():
        storage.write_bytes(storage.join(config.output, f"{name}.png"), picture.png)
        tracker.log_artifact(storage.join(config.output, f"{name}.png"))
    storage.write_bytes(storage.join(config.output, PAGE), results.html(pictures).encode())
    tracker.log_artifact(storage.join(config.output, PAGE))
    tracker.log_metrics([_metrics(document)])
    tracker.log_document(FIGURES, document)
    storage.write_json(storage.join(config.output, FIGURES), document)


def _metrics(document: dict[str, Any]) -> dict[str, float]:
    """The figures as a record takes them."""
    found = {f"noise_share/{name}": value for name, value in document["noise_share"].items()}
    found |= {f"explained/{number + 1}": value for number, value in enumerate(document["explained"][:2])}
    if decoded := document["decoded"]:
        found |= {"outside": decoded["outside"], "psnr_of_draws": float(np.mean(decoded["psnr"]))}
    return found | {"failed": float(sum(check["passed"] is False for check in document["checks"]))}
