"""What an answer holds for is said: edit, layer of how many, checkpoints, models left out, the notice."""

import checkpoints
import pytest
from support import TINY

from jaxprobe import loading, shipped
from jaxprobe.run_configs import Compute, Perturbation
from jaxprobe.scope import scope

SAME = {"Mamba": [[1, 2], [3]], "GPT-2": [[4, 5], [6]]}  # as many tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scope")
    return {
        loading.TITLES[key]: loading.open_any(str(checkpoints.write(folder / f"a-{key}", config)), Compute())
        for key, config in TINY.items()
    }


def test_the_first_sentence_names_edit_layer_and_checkpoints(pair):
    found = scope(pair, Perturbation(protocol="matched", mode="noise", noise_std=0.5, top_k=3), SAME)
    assert found.about("On none of 3 relations they differ.") == (
        "With 3 units of block_out at layer 1 of Mamba (a-mamba, layers 0 to 2) and GPT-2 (a-gpt2, layers 0 "
        "to 2) given noise of standard deviation 0.5, on none of 3 relations they differ."
    )
    assert ", Mamba is" in found.about("Mamba is more sensitive.")
    assert found.notes == ()  # the same depth, none left out, none of the package's own


def test_what_limits_the_answer_is_noted(pair):
    alone = scope(pair, Perturbation(protocol="matched", site="delta", top_k=3), {"Mamba": [[1, 2]]})
    assert alone.models.keys() == {"Mamba"}
    assert "GPT-2 is left out: --site=delta, but it has" in alone.paragraph
    own = loading.open_model("shipped", "mamba", Compute())
    other = {"Mamba": [[1, 2], [3]], "GPT-2": [[1, 2], [3, 4]]}
    found = scope({"Mamba": own, "GPT-2": pair["GPT-2"]}, Perturbation(), other)
    assert found.models["Mamba"] == "mamba-facts, layers 0 to 6"
    depths, tokens, notice = found.notes
    assert tokens.startswith("The models cut texts into tokens of different lengths")
    assert "layer 1 of Mamba's 7, layer 1 of GPT-2's 3" in depths and "share of the depth" in depths
    assert notice == f"{shipped.notice()}." and found.paragraph.endswith(notice)


def test_units_as_a_part_of_two_widths(pair):
    asked = Perturbation(protocol="matched", site="mixer_out", top_fraction=0.5, mode="resample")
    found = scope(pair, asked, SAME)
    assert found.units == "3 units of mixer_out at layer 1"
    assert found.done == "given the activation of another fact of the relation"
