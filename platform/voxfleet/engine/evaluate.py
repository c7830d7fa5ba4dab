"""The evaluate job: real and synthetic volumes compared by figures, a release gate, and one page."""

import hashlib
from typing import Any

import numpy as np
import ray
import torch

from voxfleet import __version__, storage
from voxfleet.config.evaluation import MIRRORED, REAL, EvaluateConfig
from voxfleet.data.label_maps import find_label_maps, label_map_digests
from voxfleet.data.sets import VolumeSet, open_set
from voxfleet.data.synthetic import MANIFEST, RELEASE
from voxfleet.engine.cluster import gpus_per_worker, ray_errors
from voxfleet.engine.comparison import Figure
from voxfleet.engine.console import Progress, say
from voxfleet.engine.drawing import drawn
from voxfleet.engine.job import job_session
from voxfleet.engine.lpips import read_network
from voxfleet.engine.measures import (
    EFFICIENTNET,
    INCEPTION,
    Measured,
    Measurer,
    Measuring,
    read_measured,
    slice_positions,
    units,
)
from voxfleet.engine.output import LEDGER, Output, digest
from voxfleet.engine.saliency import look, saliency_figures, saliency_pictures
from voxfleet.engine.summary import summary
from voxfleet.engine.units import Ledger, Pool, run_units
from voxfleet.engine.verdict import GATE, Verdict, judge
from voxfleet.errors import GateError, UserError
from voxfleet.metrics.image import psnr, ssim
from voxfleet.metrics.statistics import Interval
from voxfleet.packages import autoencoder_config, load_autoencoder, load_classifier, load_segmenter, read_package_config
from voxfleet.report.figures import loss_curves, mosaic
from voxfleet.report.page import Check, Page, Picture
from voxfleet.tracking.base import Tracker

FIGURES = "figures.json"
_SHOWN = 6  # volumes of a class in a mosaic
_PAIRS = 3  # nearest pairs that are shown
_REBUILT = 64  # test volumes, at most
_REBUILT_AT_ONCE = 4  # a batch of one would take PyTorch's slow convolution on a CPU
_LEAST_PSNR = 25


def run(config: EvaluateConfig) -> None:
    """Measure, compare, draw and write the page.

    Raises:
        GateError: if a set must not be released.
    """
    sets = _open_sets(config)
    package = read_package_config(config.autoencoder, "autoencoder")
    networks = _networks(config)
    maps = {name: find_label_maps(where, sets[name].subjects) for name, where in (config.hippocampi.maps or {}).items()}
    map_digests = {name: label_map_digests(of_set) for name, of_set in maps.items()}
    compared = {
        "sets": {name: volumes.digest for name, volumes in sets.items()},
        "networks": networks,
        "label_maps": {name: digest(of_set) for name, of_set in map_digests.items()},
    }
    output = Output("evaluate", config.output, config)
    if _is_current(config, compared) and output.is_done(FIGURES):
        _enforce(config, storage.read_json(storage.join(config.output, FIGURES))["sets"])
        return
    if config.features.lpips:  # before the cluster starts, as it takes a moment
        read_network(storage.absolute(config.features.lpips), sets[REAL].read(np.array([0]))[0][0].shape)
    histories = {run: storage.read_json(storage.join(run, "history.json")) for run in config.runs}
    with job_session(output, workers=True) as tracker:
        gpus = gpus_per_worker(config.resources)
        real = sets[REAL]
        all_sets = sets if real.mirror_axis is None else {**sets, MIRRORED: real.mirror_images}  # a model may know them
        measuring = _measuring(config, all_sets, package, networks, maps, "cuda" if gpus else "cpu")
        measured = _measure(config, measuring, all_sets, map_digests, gpus)
        mirror_images = measured.pop(MIRRORED, None)
        rebuilt, quality = _rebuild(config, sets[REAL])
        views = look(measuring, measured, config.saliency, gpus)
        verdicts = {
            name: judge(measured[REAL], measured[name], config, _PAIRS, mirror_images).with_group(
                "Saliency", saliency_figures(views, name, repeats=config.repeats, seed=config.seed)
            )
            for name in config.synthetic_sets
        }
        documents = {name: verdict.document() for name, verdict in verdicts.items()}
        plots = drawn(measured, verdicts, REAL)
        sections = plots | _pictures(sets, verdicts, rebuilt) | saliency_pictures(views)
        sections["Training"] = [Picture(loss_curves(points, run), f"run {run}") for run, points in histories.items()]
        page = _page(config, sets, verdicts, quality, sections)
        _stamp(config, sets, documents)
        _write(config, page, {"compared": compared, **quality, "sets": documents}, tracker)
        for name, verdict in verdicts.items():
            say(f"evaluate: {name}: {verdict.words}")
        say(f"evaluate: page in {_page_uri(config)}")
    _enforce(config, documents)


def _enforce(config: EvaluateConfig, documents: dict[str, Any]) -> None:
    """End with an error if a set must not be released."""
    for name, document in documents.items():
        if document["reasons"] and config.release.enforce:
            raise GateError(f"{name} must not be released: {document['reasons'][0]}; see {_page_uri(config)}")


def _open_sets(config: EvaluateConfig) -> dict[str, VolumeSet]:
    """The real and the synthetic sets, by name.

    Raises:
        UserError: if one is not there, or has a class that the real one lacks.
    """
    sets = {REAL: open_set(storage.absolute(config.volumes))}
    if sets[REAL].affine is None:
        raise UserError(f"volumes {config.volumes} are no volume shards; give the folder that prepare made")
    for name, folder in config.synthetic_sets.items():
        sets[name] = open_set(storage.absolute(folder))
        if unknown := sorted(set(sets[name].classes) - set(sets[REAL].classes)):
            raise UserError(f"{folder} has class {unknown[0]}; the real ones are {', '.join(sets[REAL].classes)}")
    return sets


def _is_current(config: EvaluateConfig, compared: dict[str, dict[str, str]]) -> bool:
    """Whether the page is there and shows what would be compared now; a grown campaign is compared anew."""
    uri = storage.join(config.output, FIGURES)
    there = storage.exists(uri) and storage.exists(_page_uri(config))
    return there and storage.read_json(uri)["compared"] == compared


def _measure(
    config: EvaluateConfig,
    measuring: Measuring,
    sets: dict[str, VolumeSet],
    map_digests: dict[str, dict[str, str]],
    gpus: float,
) -> dict[str, Measured]:
    """What is found of each volume, by set; pieces that an earlier run measured are kept."""
    pieces = {name: units(volumes, measuring.basis, map_digests.get(name)) for name, volumes in sets.items()}
    # sets with the same content, under two names, are measured once
    work = {unit: (name, volumes) for name, of_set in pieces.items() for unit, volumes in of_set.items()}
    total = sum(len(volumes) for _, volumes in work.values())
    progress = Progress("evaluate", total, "volumes")
    found = run_units(
        work,
        Measurer,
        Ledger(storage.join(measuring.folder, LEDGER)),
        progress,
        pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
        arguments=(measuring, sets),
        weight=lambda content: len(content[1]),
    )
    networks = "".join(f", {len(measuring.positions[0])} slices a plane by {n}" for n in measuring.slice_networks)
    progress.finish(f"{total} volumes measured{networks}")
    return {
        name: read_measured(measuring, sets[name], [found[unit][0]["file"] for unit in of_set])
        for name, of_set in pieces.items()
    }


def _networks(config: EvaluateConfig) -> dict[str, str]:
    """Digests of the networks by which volumes are measured, by what they are.

    Raises:
        UserError: if one is not there.
    """
    packages = {
        "autoencoder": config.autoencoder,
        "classifier": config.features.classifier,
        "segmenter": config.hippocampi.segmenter,
    }
    known = {
        kind: read_package_config(storage.absolute(folder), kind)["fingerprint"]
        for kind, folder in packages.items()
        if folder
    }
    for name in ("inception", "lpips"):
        if uri := getattr(config.features, name):
            known[name] = hashlib.sha256(storage.read_bytes(storage.absolute(uri))).hexdigest()
    return known


def _measuring(
    config: EvaluateConfig,
    sets: dict[str, VolumeSet],
    package: dict[str, Any],
    networks: dict[str, str],
    maps: dict[str, dict[str, str]],
    device: str,
) -> Measuring:
    real = sets[REAL]
    (first,), (affine,) = real.read(np.array([0]))
    try:
        autoencoder_config(package).latent_shape(first.shape)
    except ValueError as error:
        raise UserError(f"the volumes in {config.volumes} do not fit {config.autoencoder}: {error}") from error
    classifier = config.features.classifier and storage.absolute(config.features.classifier)
    if classifier:
        known = load_classifier(classifier)
        if (known.classes, known.shape) != (real.classes, first.shape):
            raise UserError(
                f"features.classifier {classifier} tells {', '.join(known.classes)} in volumes of {known.shape}; the "
                f"real ones are {', '.join(real.classes)}, {first.shape}; train one on these"
            )
    used = {EFFICIENTNET: config.features.has_efficientnet, INCEPTION: config.features.inception is not None}
    slice_networks = tuple(name for name, is_used in used.items() if is_used)
    positions = slice_positions(first.shape, sum(map(len, sets.values())), config.features.slices)
    label_values = config.hippocampi.label_values.values
    return Measuring(
        folder=storage.absolute(config.output),
        basis=digest([networks, slice_networks, first.shape, affine.tolist(), positions, label_values]),
        shape=first.shape,
        affine=affine,
        positions=positions,
        autoencoder=storage.absolute(config.autoencoder),
        slice_networks=slice_networks,
        inception=config.features.inception and storage.absolute(config.features.inception),
        classifier=classifier,
        segmenter=_segmenter(config, real),
        label_maps=maps,
        label_values=label_values,
        threads=config.resources.cpus_per_worker,
        device=device,
    )


def _segmenter(config: EvaluateConfig, real: VolumeSet) -> str | None:
    """The package by which hippocampi are measured, if that is wanted."""
    if config.hippocampi.segmenter is None:
        return None
    folder = storage.absolute(config.hippocampi.segmenter)
    spacing = np.linalg.norm(np.asarray(real.affine)[:3, :3], axis=0)
    if not np.allclose(known := load_segmenter(folder).spacing_mm, spacing, rtol=1e-3):
        raise UserError(
            f"hippocampi.segmenter {folder} knows voxels of {known} mm, the real ones have {tuple(spacing.tolist())}; "
            "train one on these"
        )
    return folder


def _rebuild(config: EvaluateConfig, real: VolumeSet) -> tuple[dict[int, np.ndarray], dict[str, float]]:
    """Reconstructions of the test volumes that are shown, by row, and how near all are."""
    rows = np.flatnonzero(real.splits == "test")[:_REBUILT]
    by_class = [rows[real.labels[rows] == label] for label in range(len(real.classes))]
    shown = np.concatenate([of_class[: _SHOWN // 2] for of_class in by_class])
    with ray_errors():
        rebuilt, quality = ray.get(_reconstruct.remote(storage.absolute(config.autoencoder), real, rows, shown))
    figures = {
        "psnr": float(np.mean(quality["psnr"])),
        "psnr_min": float(np.min(quality["psnr"])),
        "ssim": float(np.mean(quality["ssim"])),
    }
    return rebuilt, figures


@ray.remote(max_calls=1)  # its worker ends, and gives back what it took
def _reconstruct(
    folder: str, volumes: VolumeSet, rows: np.ndarray, shown: np.ndarray
) -> tuple[dict[int, np.ndarray], dict[str, list[float]]]:
    """Reconstructions (D, H, W) from the posterior's mean of the rows ``shown``, and PSNR and SSIM of all ``rows``."""
    autoencoder = load_autoencoder(folder)
    rebuilt: dict[int, np.ndarray] = {}
    quality: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for part in np.array_split(rows, -(-len(rows) // _REBUILT_AT_ONCE)):
        batch = torch.from_numpy(np.stack(volumes.read(part)[0]))[:, None]
        out = autoencoder.decode(autoencoder.encode(batch)[0])
        quality["psnr"] += psnr(out, batch).tolist()
        quality["ssim"] += ssim(out, batch).tolist()
        rebuilt |= {row: out[i, 0].numpy() for i, row in enumerate(part.tolist()) if row in shown}
    return rebuilt, quality


def _pictures(
    sets: dict[str, VolumeSet], verdicts: dict[str, Verdict], rebuilt: dict[int, np.ndarray]
) -> dict[str, list[Picture]]:
    real = sets[REAL]
    sections: dict[str, list[Picture]] = {}
    for name in verdicts:
        volumes = sets[name]
        sections[f"Synthetic: {name}"] = [
            Picture(_mosaic(volumes, _of_class(volumes, label)), f"{class_name}: synthetic volumes")
            for label, class_name in enumerate(volumes.classes)
        ]
    sections["Real"] = [
        Picture(_mosaic(real, _of_class(real, label, "train")), f"{class_name}: training volumes")
        for label, class_name in enumerate(real.classes)
    ]
    sections["Reconstructed"] = []
    for label, class_name in enumerate(real.classes):
        rows = [row for row in rebuilt if real.labels[row] == label]
        if rows:
            both = [volume for row in rows for volume in (real.read(np.array([row]))[0][0], rebuilt[row])]
            picture = mosaic(np.stack(both), ["test", "rebuilt"] * len(rows))
            sections["Reconstructed"].append(Picture(picture, f"{class_name}: test volumes and their reconstruction"))
    for name, verdict in verdicts.items():
        sections[f"Nearest pairs: {name}"] = _pairs(sets[name], real, verdict)
    return sections


def _pairs(volumes: VolumeSet, real: VolumeSet, verdict: Verdict) -> list[Picture]:
    if not verdict.pairs:
        return []
    shown = [(source, row) for pair in verdict.pairs for source, row in zip((volumes, real), pair, strict=True)]
    read = np.stack([source.read(np.array([row]))[0][0] for source, row in shown])
    titles = [str(source.names[row]) for source, row in shown]
    return [Picture(mosaic(read, titles), "synthetic volumes that are nearest to training volumes, each beside it")]


def _of_class(volumes: VolumeSet, label: int, split: str | None = None) -> np.ndarray:
    chosen = volumes.labels == label
    return np.flatnonzero(chosen & (volumes.splits == split) if split else chosen)[:_SHOWN]


def _mosaic(volumes: VolumeSet, rows: np.ndarray) -> bytes:
    return mosaic(np.nan_to_num(np.stack(volumes.read(rows)[0])), [str(name) for name in volumes.names[rows]])


def _page(
    config: EvaluateConfig,
    sets: dict[str, VolumeSet],
    verdicts: dict[str, Verdict],
    quality: dict[str, float],
    sections: dict[str, list[Picture]],
) -> Page:
    real = sets[REAL]
    several = len(verdicts) > 1
    groups = {
        f"{group}: {name}" if several else group: figures
        for name, verdict in verdicts.items()
        for group, figures in verdict.figures.items()
    }
    tables = {title: [_check(figure) for figure in figures] for title, figures in groups.items()}
    gates = frozenset(title for title in groups if title.startswith(GATE))
    value = f"{quality['psnr']:.1f} dB (lowest {quality['psnr_min']:.1f}; SSIM {quality['ssim']:.3f})"
    fine = quality["psnr"] >= _LEAST_PSNR
    tables["Autoencoder"] = [
        Check("PSNR of reconstructed test volumes (whole volume)", value, f">= {_LEAST_PSNR} dB", fine)
    ]
    counts = ", ".join(f"{len(sets[name])} synthetic volumes ({name})" for name in verdicts)
    return Page(
        title="Voxfleet: synthetic brain volumes",
        lead=f"{counts} beside {len(real)} real ones. Figures stand beside what two sets of real volumes of the same "
        "size give. In pictures, columns are subjects; rows are the middle sagittal, coronal and axial slice.",
        verdicts=[Check(name, verdict.words, passed=not verdict.reasons) for name, verdict in verdicts.items()],
        tables=tables,
        sections={name: pictures for name, pictures in sections.items() if pictures},
        commands=list(config.commands),
        summary=[summary(title, figures, _check, needed=title in gates) for title, figures in groups.items()],
        opened=gates,
    )


def _check(figure: Figure) -> Check:
    if figure.found is None:
        return Check(figure.name, f"left out: {figure.reason}")
    return Check(
        name=figure.name,
        value=_in_words(figure.found),
        wanted=figure.wanted,
        passed=figure.passed,
        n=str(figure.found.n),
        real=_in_words(figure.floor) if figure.floor else "",
    )


def _in_words(found: Interval) -> str:
    """``1.23 [1.1, 1.4]``, without an interval where there is none."""
    if found.low == found.high:
        return f"{found.value:.3g}"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _stamp(config: EvaluateConfig, sets: dict[str, VolumeSet], documents: dict[str, Any]) -> None:
    """Leave the verdict beside each synthetic set, with the content that it is about."""
    for name, document in documents.items():
        stamp = {
            "release": document["release"],
            "reasons": document["reasons"],
            "manifest_digest": sets[name].digest,
            "voxfleet": __version__,
        }
        if storage.exists(storage.join(sets[name].folder, MANIFEST)):
            storage.write_json(storage.join(sets[name].folder, RELEASE), stamp)


def _page_uri(config: EvaluateConfig) -> str:
    return config.page or storage.join(config.output, "report.html")


def _write(config: EvaluateConfig, page: Page, figures: dict[str, Any], tracker: Tracker) -> None:
    """Pictures, page, and last the figures, which mark the folder as complete."""
    pictures = [picture for found in page.sections.values() for picture in found]
    for number, picture in enumerate(pictures):
        storage.write_bytes(storage.join(config.output, f"picture-{number:02d}.png"), picture.png)
    storage.write_bytes(_page_uri(config), page.html().encode())
    tracker.log_metrics([_metrics(figures)])
    tracker.log_artifact(_page_uri(config))
    storage.write_json(storage.join(config.output, FIGURES), figures)
    tracker.log_artifact(storage.join(config.output, FIGURES))


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    """The figures as a record takes them."""
    found = {key: value for key, value in figures.items() if isinstance(value, float)}
    for name, document in figures["sets"].items():
        found[f"{name}/release"] = float(document["release"] == "pass")
        found |= {f"{name}/{key}": f["found"]["value"] for key, f in document["figures"].items() if f["found"]}
    return found
