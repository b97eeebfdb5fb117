"""Makes a trained pair the one the project ships: measures it, writes its model cards, copies it.

    python -m training.publish --wikitext=DIR --run=DIR

`--run` is `training.train`'s --out. A pair that misses a bar, or was not trained on the same
rows, is refused.
"""

import json
import shutil
from pathlib import Path

from absl import flags

from jaxprobe.convert import load
from jaxprobe.errors import ProbeError
from training import card, command, evaluate, pair

RUN = flags.DEFINE_string("run", None, "folder with mamba-facts/ and gpt2-facts/", required=True)


def main() -> None:
    """Measures, checks, writes the cards, copies."""
    sources = {name: Path(RUN.value) / f"{name}-facts" for name in pair.MODELS}
    training = {name: json.loads((path / "training.json").read_text()) for name, path in sources.items()}
    if training["mamba"]["text"] != training["gpt2"]["text"]:
        raise ProbeError(f"{RUN.value}: the two models were not trained on the same rows")
    test_text = pair.read_wikitext(Path(evaluate.WIKITEXT.value), "test")
    models = {name: evaluate.measure(load(path), test_text) for name, path in sources.items()}
    bars = evaluate.compare(models["mamba"], models["gpt2"])
    table = evaluate.table(models, bars)
    print(table)
    if not all(bar["met"] for bar in bars.values()):
        raise ProbeError("the pair misses a bar and is not published")
    for name, source in sources.items():
        target = evaluate.ASSETS / source.name
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(source, target)
        text = card.render(name, models, training[name], table)
        (target / "README.md").write_text(text, encoding="utf-8")
        print(f"{name}: published in {target}")


if __name__ == "__main__":
    command.run(main)
