"""What an evaluation finds about one synthetic set: all its figures, and whether it may be released."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from voxfleet import storage
from voxfleet.config.evaluation import EvaluateConfig
from voxfleet.engine import comparison, release
from voxfleet.engine.comparison import Both, Figure
from voxfleet.engine.lpips import lpips_figure
from voxfleet.engine.measures import Measured
from voxfleet.engine.positions import Position, position_figures
from voxfleet.engine.release import Neighbourhood, People

GATE = "Release gate"


@dataclass(frozen=True)
class Verdict:
    """The figures of a synthetic set.

    Attributes:
        figures: by group; those of GATE decide.
        pairs: rows of the synthetic and the training volumes that are nearest to each other.
        near: distances to the nearest volumes, by space.
        positions: distances of slices at one place each.
    """

    figures: dict[str, list[Figure]]
    pairs: list[tuple[int, int]]
    near: dict[str, Neighbourhood] = field(default_factory=dict)
    positions: list[Position] = field(default_factory=list)

    def with_group(self, group: str, figures: list[Figure]) -> "Verdict":
        """This verdict with another group of figures, if there are any."""
        return dataclasses.replace(self, figures=self.figures | {group: figures}) if figures else self

    @property
    def reasons(self) -> list[str]:
        """Why the set must not be released; none if it may be."""
        return [
            f"{figure.name}: {figure.found.value:.3g} (wanted: {figure.wanted})"
            if figure.found
            else f"{figure.name}: cannot be judged, as {figure.reason}"
            for figure in self.figures[GATE]
            if figure.passed is False or not figure.found
        ]

    @property
    def words(self) -> str:
        """``release: pass``, or fail and why."""
        return f"release: fail: {'; '.join(self.reasons)}" if self.reasons else "release: pass"

    def document(self) -> dict[str, Any]:
        """The verdict as JSON."""
        figures = [(group, dataclasses.asdict(figure)) for group, found in self.figures.items() for figure in found]
        return {
            "release": "fail" if self.reasons else "pass",
            "reasons": self.reasons,
            "figures": {figure.pop("key"): {"group": group, **figure} for group, figure in figures},
            "positions": [dataclasses.asdict(one) for one in self.positions],
        }


def judge(
    real: Measured, synthetic: Measured, config: EvaluateConfig, pairs: int, mirrored: Measured | None = None
) -> Verdict:
    """All figures of the set ``synthetic``, and the ``pairs`` of its volumes that are nearest to training ones.

    ``mirrored`` are the mirror images of the real set, where a model may have been trained on them.
    """
    found: list[tuple[int, int]] = []
    gate: list[Figure] = []
    nearby: dict[str, Neighbourhood] = {}
    by_place: list[Position] = []
    spacing = min(real.how.spacing_mm)
    gate += release.whole_figures(synthetic, spacing)
    people = People.of(real)
    spaces = release.spaces(real)
    asked = dataclasses.replace(config.release, alpha=config.release.alpha / len(spaces))  # Bonferroni
    for space in spaces:
        try:
            near = nearby[space] = release.neighbourhood(space, real, synthetic, people, mirrored)
        except ValueError as error:
            gate.append(Figure(key=f"privacy/{space}", name=f"nearest training volumes ({space})", reason=str(error)))
            continue
        gate += release.privacy_figures(near, real.volumes.subjects[people.training], asked)
        found = release.nearest_pairs(near, synthetic, people, pairs)
    figures = {GATE: gate}
    if synthetic.usable.any():
        both = Both.of(real, synthetic)
        figures |= comparison.compared_figures(both, repeats=config.repeats, seed=config.seed)
        if config.features.lpips:
            uri, draws = storage.absolute(config.features.lpips), {"repeats": config.repeats, "seed": config.seed}
            figures["Diversity"].append(lpips_figure(uri, real, synthetic, **draws))
        by_place = position_figures(both, real.how, repeats=config.repeats, seed=config.seed)
    return Verdict(figures, found, nearby, by_place)
