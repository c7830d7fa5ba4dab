"""The classify job: classifiers trained on real, on synthetic, and on both, all tested on the same real people.

n subjects, C classes.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from voxfleet import __version__, storage
from voxfleet.config.classification import ClassifyConfig
from voxfleet.data.folds import NO_FOLD, REAL, SYNTHETIC, SYNTHETIC_ONLY, TEST, Regime
from voxfleet.data.shards import table_bytes
from voxfleet.engine.classifiers import HELD_OUT, PACKAGE, Study, Training, Unit
from voxfleet.engine.cluster import gpus_per_worker
from voxfleet.engine.console import Progress, say
from voxfleet.engine.job import absolute_paths, job_session
from voxfleet.engine.output import LEDGER, Output
from voxfleet.engine.units import Ledger, Pool, Rows, run_units
from voxfleet.metrics.classification import ACCURACY, AUC, agreement, classification_figures
from voxfleet.metrics.statistics import Interval, delong
from voxfleet.packages import read_package_config
from voxfleet.report.classification import Comparison, RegimeRow, page, shown
from voxfleet.tracking.base import Tracker

FIGURES, PREDICTIONS, PAGE = "figures.json", "predictions.parquet", "report.html"
_PACKAGED = Regime(PACKAGE, "the package", True, 0.0)
_NOTES = (
    "Every interval holds 95 %: DeLong's for AUC and its differences, Wilson's for the others. Accuracy, sensitivity "
    "and specificity are of calling each subject by its most probable class. An AUC takes two people of each class.",
    "An epoch has as many draws, each class equally often, in every regime: trainings on more volumes are not longer.",
    "The best epoch is chosen on volumes that are kept out of the training: real ones where there are any, else "
    "synthetic ones.",
    "The test split decides between real and synthetic volumes, if the generative model was trained on the train split "
    "of these volumes alone: nothing here checks what it has seen.",
    "The generative model may have seen the people of the held-out folds: there, regimes with synthetic volumes may "
    "look too good.",
)


def run(config: ClassifyConfig) -> None:
    """Train, test and write the page."""
    paths = ("output", "real", *(["synthetic"] if config.synthetic else []))
    study = Study.open(absolute_paths(config, *paths))
    output = Output("classify", config.output, config, study.digests)
    if output.is_done(FIGURES):
        return
    units = study.units()
    with job_session(output, workers=True) as tracker:
        for name, digest in study.digests.items():
            tracker.log_dataset(name, getattr(config, name), digest)
        ledger = Ledger(storage.join(study.config.output, LEDGER))
        gpus = gpus_per_worker(config.resources)
        progress = Progress("classify", len(units), "classifiers")
        volumes = ray.put(study.read()) if units.keys() - ledger.done() else None
        rows = run_units(
            {name: dataclasses.asdict(unit) for name, unit in units.items()},
            Training,
            ledger,
            progress,
            pool=Pool(workers=config.resources.workers, cpus=config.resources.cpus_per_worker, gpus=gpus),
            arguments=(study, volumes, gpus > 0),
        )
        results = Results(study, {name: (units[name], found) for name, found in rows.items()})
        _write(study, results, tracker)
        progress.finish(f"{len(units)} classifiers, page in {storage.join(config.output, PAGE)}")
        for row in results.comparisons()[0].rows:
            say(f"  {row.title:<24} AUC {shown(row.figures.get(AUC)) or '-'}, accuracy {shown(row.figures[ACCURACY])}")


class Results:
    """The predictions of all classifiers, and what follows from them."""

    def __init__(self, study: Study, found: dict[str, tuple[Unit, Rows]]) -> None:
        self.study, self.found = study, found

    def predictions(self) -> pa.Table:
        """One row a classifier and volume."""
        table = self.study.table
        classes = np.array(table.classes)
        return pa.Table.from_pylist(
            [
                {
                    **dataclasses.asdict(unit),
                    "part": row["part"],
                    "name": str(table.names[row["row"]]),
                    "subject_id": str(table.subjects[row["row"]]),
                    "class": str(classes[table.labels[row["row"]]]),
                    **{f"p_{name}": p for name, p in zip(table.classes, row["probabilities"], strict=True)},
                    **{key: row[key] for key in ("best_epoch", "val_loss", "seconds")},
                }
                for unit, rows in self.found.values()
                for row in rows
            ]
        )

    def scores(self, regime: Regime, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Of each subject of ``part``: mean probabilities (n, C) over images and classifiers, and label (n,)."""
        table = self.study.table
        rows = [
            (row["row"], row["probabilities"])
            for unit, found in self.found.values()
            if unit.regime == regime.key
            for row in found
            if row["part"] == part
        ]
        places, probabilities = np.array([place for place, _ in rows]), np.array([values for _, values in rows])
        _, first, subject, counts = np.unique(
            table.subjects[places], return_index=True, return_inverse=True, return_counts=True
        )
        sums = np.zeros((len(first), len(table.classes)))
        np.add.at(sums, subject, probabilities)
        return sums / counts[:, None], table.labels[places[first]]

    def comparisons(self) -> list[Comparison]:
        """All regimes on the test split, and on the held-out folds."""
        table = self.study.table
        people = len(np.unique(table.subjects[table.of(TEST)]))
        others = len(np.unique(table.subjects[table.folds != NO_FOLD]))
        c = self.study.config
        return [
            Comparison(
                f"Test split: {people} people",
                f"No classifier was trained on them. A score is the mean over {c.folds} folds and {c.seeds} seeds.",
                self._rows(TEST),
            ),
            Comparison(
                f"Held-out folds: {others} people",
                "The splits train and val, each person scored by the classifiers that were trained without the fold of "
                f"that person; the mean over {c.seeds} seeds. The generative model may have seen them.",
                self._rows(HELD_OUT),
            ),
        ]

    def _rows(self, part: str) -> list[RegimeRow]:
        positive, found = self.study.positive, []
        real, _ = self.scores(REAL, part)
        for regime in self.study.config.regimes:
            scores, labels = self.scores(regime, part)
            figures = classification_figures(scores, labels, positive)
            is_positive = labels == positive
            difference, p_value = (None, None)
            if regime != REAL and AUC in figures:
                difference, p_value = delong(scores[:, positive], real[:, positive], is_positive)
            found.append(RegimeRow(regime.title, figures, difference, p_value, scores[:, positive], is_positive))
        return found

    def consistency(self) -> dict[str, Interval]:
        """How often synthetic volumes are taken for what they were asked to be, of each class too.

        By the mean of all classifiers that were trained on real volumes alone.
        """
        if not self.study.config.synthetic:
            return {}
        return agreement(*self.scores(REAL, SYNTHETIC), self.study.table.classes)

    def figures(self) -> dict[str, Any]:
        """All figures as a document."""
        keys = [regime.key for regime in self.study.config.regimes]
        parts = {}
        for part, comparison in zip((TEST, HELD_OUT), self.comparisons(), strict=True):
            parts[part] = {key: _document(row) for key, row in zip(keys, comparison.rows, strict=True)}
        packaged = classification_figures(*self.scores(_PACKAGED, TEST), self.study.positive)
        return {
            "voxfleet": __version__,
            "inputs": self.study.digests,
            "classes": list(self.study.table.classes),
            "positive": self.study.table.classes[self.study.positive],
            **parts,
            PACKAGE: {name: dataclasses.asdict(value) for name, value in packaged.items()},
            "consistency": {name: dataclasses.asdict(value) for name, value in self.consistency().items()},
            "notes": list(_NOTES),
        }


def _document(row: RegimeRow) -> dict[str, Any]:
    document: dict[str, Any] = {name: dataclasses.asdict(value) for name, value in row.figures.items()}
    if row.difference is not None:
        document["auc_less_real"] = {**dataclasses.asdict(row.difference), "p_value": row.p_value}
    return document


def _write(study: Study, results: Results, tracker: Tracker) -> None:
    """Predictions, page, record, and last the figures, which mark the folder as complete."""
    figures, comparisons = results.figures(), results.comparisons()
    uri = {name: storage.join(study.config.output, name) for name in (PREDICTIONS, PAGE, PACKAGE, FIGURES)}
    storage.write_bytes(uri[PREDICTIONS], table_bytes(results.predictions()))
    real, fold = (comparison.rows[0].figures for comparison in comparisons)
    consistency = {
        **{f"synthetic, {name}": value for name, value in results.consistency().items()},
        "test split, real people": real[ACCURACY],
        "held-out folds, real people": fold[ACCURACY],
    }
    document = page(_lead(study, comparisons[0]), comparisons, consistency if study.config.synthetic else {}, _NOTES)
    storage.write_bytes(uri[PAGE], document.encode())
    points = {
        f"{part}_{name}/{key}": value["value"]
        for part in (TEST, HELD_OUT)
        for key, values in figures[part].items()
        for name, value in values.items()
    }
    points |= {f"consistency/{name}": value["value"] for name, value in figures["consistency"].items()}
    tracker.log_metrics([points])
    for name in (PREDICTIONS, PAGE):
        tracker.log_artifact(uri[name])
    tracker.log_document(FIGURES, figures)
    tracker.register_package(uri[PACKAGE], read_package_config(uri[PACKAGE], "classifier")["fingerprint"], "final")
    storage.write_json(uri[FIGURES], figures)


def _lead(study: Study, test: Comparison) -> str:
    classes, config = study.table.classes, study.config
    lead = (
        f"Which subjects are {classes[study.positive]} (not {', '.join(np.delete(classes, study.positive))})? "
        f"{config.model.name}, {len(study.units())} classifiers, volumes of {study.manifest.shape} voxels."
    )
    row = next((row for row in test.rows if row.title == SYNTHETIC_ONLY.title and AUC in row.figures), None)
    if row is None:
        return lead
    ratio = row.figures[AUC].value / max(test.rows[0].figures[AUC].value, 1e-9)
    return f"{lead} On the test split, training on synthetic volumes alone reaches {ratio:.2f} of the AUC of real ones."
