"""The CSV and the JSON of the matched protocol: every column, every fact, and nothing that JSON lacks."""

import csv
import io
import json

import matched_synthetic as synthetic
import numpy as np
import pytest

from jaxprobe.matched.records import MATCHED_COLUMNS, matched_json, matched_rows
from jaxprobe.matched.summary import summarise
from jaxprobe.outputs import csv_bytes, json_bytes


@pytest.fixture(scope="module")
def made():
    results = synthetic.results(np.full(6, 0.3), np.full(6, 0.1), facts=[30, 30, 30, 30, 3, 30])
    sizes = synthetic.sizes(results)
    return results, sizes, summarise(results, sizes, draws=999)


def test_a_row_per_model_and_relation(made):
    results, _, summary = made
    rows = list(csv.DictReader(io.StringIO(csv_bytes(MATCHED_COLUMNS, matched_rows(summary)).decode())))
    assert [(row["model"], row["relation"]) for row in rows] == [
        (title, name) for title, model in results.items() for name in model.relations
    ]
    for row in rows:
        facts = results[row["model"]].relations[row["relation"]].facts
        assert float(row["delta_nats_per_token"]) == pytest.approx(facts.delta_nats, rel=1e-12)
        few = len(facts.tokens) < 5
        assert (row["delta_nats_per_token_low"] == "") == few and (row["difference_p_holm"] == "") == few
        assert float(row["percentile_among_random_low"]) <= float(row["percentile_among_random"])
        assert row["more_sensitive"] == ("" if few else "Mamba")
        difference = summary.comparisons["token"][row["relation"]].difference
        for end in ("", "_low", "_high"):
            value = getattr(difference, end.strip("_") or "value")
            assert row[f"difference_nats{end}"] == ("" if value is None else str(value))
        for measure in ("token", "byte", "word"):
            baseline, delta = (float(row[f"{name}_nats_per_{measure}"]) for name in ("baseline", "delta"))
            before, after = (
                float(row[f"{when}_perplexity_per_{measure}"]) for when in ("baseline", "edited")
            )
            assert before == pytest.approx(np.exp(baseline)) and after == pytest.approx(
                np.exp(baseline + delta)
            )
            assert (row[f"edited_perplexity_per_{measure}_high"] == "") == few
        controls = summary.relations[row["model"]][row["relation"]].controls
        apart = controls["random"].disjoint
        assert row["percentile_among_disjoint"] == ("" if apart is None else str(apart.value))
        assert int(row["disjoint_random_sets"]) == controls["random"].disjoint_sets
        for kind, sets in controls.items():
            assert float(row[f"{kind}_shared"]) == sets.shared
            assert float(row[f"{kind}_energy_low"]) == sets.energy[0]
            assert float(row[f"{kind}_energy_high"]) == sets.energy[1]
        found = summary.relations[row["model"]][row["relation"]].selectivity
        assert float(row["selectivity_nats"]) == found.ratio.value
        assert (row["selectivity_nats_low"] == "") == (found.ratio.low is None)
        assert float(row["selectivity_percent"]) == found.percent
        assert int(row["norm_matched_beyond_tolerance"]) == controls["norm_matched"].far
        assert row["units"].split() == [str(unit) for unit in range(synthetic.UNITS)]


def test_one_model_leaves_the_comparison_empty():
    results = synthetic.results(np.full(2, 0.3))
    summary = summarise(results, synthetic.sizes(results), draws=99)
    assert all(row["difference_p"] is None and row["more_sensitive"] is None for row in matched_rows(summary))


def test_json_holds_every_facts_scores(made):
    results, sizes, summary = made
    read = json.loads(json_bytes(matched_json(results, sizes, summary, {"command": "x"})))
    assert read["schema_version"] == 2 and read["manifest"] == {"command": "x"}
    assert len(read["answer"]) == 2 and read["verdicts"]["token"]["overall"] == "Mamba"
    name = synthetic.RELATIONS[0]
    facts, kept = results["GPT-2"].relations[name].facts, read["results"]["GPT-2"]["relations"][name]
    assert kept["facts"]["after"] == facts.after.tolist() and kept["facts"]["tokens"] == facts.tokens.tolist()
    assert kept["sizes"]["bytes"] == (4.0 * facts.tokens).tolist()
    assert np.allclose(
        kept["controls"]["random"]["after"], results["GPT-2"].relations[name].controls["random"].sum(1)
    )
    told = read["summary"]["relations"]["GPT-2"][name]["controls"]["norm_matched"]
    assert told["disjoint"]["draws"] == told["disjoint_sets"] == 20 and told["shared"] == 0
    assert len(kept["units"]) == synthetic.WIDTH and kept["linearity"] is None
    assert np.shape(read["results"]["Mamba"]["layers"][name]) == (5, len(facts.tokens))
