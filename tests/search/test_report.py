"""The page and the table of a search whose trials have different keys."""

import pytest

from voxfleet.report.search import TrialRow, page

KEYS = ["model.window_size", "model.global_every"]


def row(number, keys, score, samples=9, **more):
    costs = {"parameters": 1000, "steps_per_s": 5.0, "trained_s": 1.0, "fit_s": 2.0, "fits": 1, "front": False}
    curve = [(samples, score)]
    facts = {"first": score, "status": "finished", "curve": curve, **costs, **more}
    return TrialRow(number=number, keys=keys, score=score, samples=samples, **facts)


@pytest.fixture
def rows():
    """In the best of them a condition switched a key off; the last one failed before it was scored."""
    return [
        row(2, {"model.window_size": None}, 0.1),
        row(0, {"model.window_size": [2, 2, 2], "model.global_every": 2}, 0.2),
        row(
            1,
            {"model.window_size": [2, 2, 2], "model.global_every": 4},
            float("inf"),
            samples=0,
            first=None,
            steps_per_s=None,
            status="failed: <b>",
            curve=[],
        ),
    ]


def test_every_row_of_the_table_has_all_keys(rows):
    records = [entry.record(KEYS) for entry in rows]
    assert len({tuple(record) for record in records}) == 1
    assert [record["model.global_every"] for record in records] == [None, "2", "4"]
    assert [record["model.window_size"] for record in records] == ["null", "[2, 2, 2]", "[2, 2, 2]"]


def test_the_page_shows_keys_that_are_off_and_trials_that_failed(rows):
    more = {"importance": {}, "facts": {}, "removed": [], "merged": []}
    html = page("q", rows, metric="val_loss", keys=KEYS, **more)
    assert "3 trials. Best: trial 2, val_loss 0.1 after 9 samples, model.window_size null." in html
    assert "failed: &lt;b&gt;" in html
    assert html.count('<td class="number">inf</td>') == 0
