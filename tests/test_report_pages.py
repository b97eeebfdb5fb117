"""The pages that commands write, opened in a browser: nothing fails, pictures show, cells are the tables'."""

import csv
import importlib

import checkpoints
import pytest
from browser import chromium, open_page
from support import TINY
from test_delta_pct import CONTROLS, RELATIONS
from test_jacobian import TEXTS
from test_report import number

from jaxprobe import cli
from jaxprobe.flags import delta_pct as delta_flags
from jaxprobe.flags import jacobian as jacobian_flags

PAGES = {"jacobian": "jacobian_report", "seed": "delta_pct_report", "matched": "matched_report"}
CELLS = """all => all.map(table => [...table.rows].map(row => [...row.cells].map(
    cell => [cell.textContent.trim(), cell.dataset.number ?? cell.dataset.text ?? ""])))"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def written(browser, tmp_path_factory):
    """What each command wrote: kind -> folder. Without a browser nothing is run."""
    root = tmp_path_factory.mktemp("pages")
    given = {name: checkpoints.write(root / name, config) for name, config in TINY.items()}
    given |= {"compile_cache": "off", "device": "cpu"}
    checkpoints.write_json(root / "relations.json", RELATIONS)
    (root / "controls.txt").write_text(CONTROLS, encoding="utf-8")

    def run(kind, command, flags, **more):
        made = importlib.import_module(f"jaxprobe.{command}")
        every = given | more | {"out": root / "out" / kind}
        argv = ["program", *(f"--{name}={value}" for name, value in every.items())]
        assert cli.run(made.run, flags, made.__doc__, argv) == 0
        return root / "out" / kind

    facts = {"relations": root / "relations.json", "controls": root / "controls.txt", "top_k": 3}
    matched = {"protocol": "matched", "random_sets": 6, "mode": "scale", "scale": "0,0.5"}
    return {
        "jacobian": run("jacobian", "jacobian", jacobian_flags, text=TEXTS[0], layer=1, num_samples=3),
        "seed": run("seed", "delta_pct", delta_flags, **facts),
        "matched": run("matched", "delta_pct", delta_flags, **facts, **matched),
    }


@pytest.mark.drawn
@pytest.mark.parametrize("kind", PAGES)
def test_the_page_a_command_writes(browser, written, kind):
    page, said, asked = open_page(browser, written[kind] / f"{PAGES[kind]}.html")
    assert said == [] and asked == []
    names = page.locator("figure img").evaluate_all(
        "all => all.map(i => i.complete && i.naturalWidth > 0 && i.dataset.name)"
    )
    assert sorted(names) == sorted(file.name for file in (written[kind] / "images").glob("*.svg"))
    ids = page.locator("section.table").evaluate_all("all => all.map(e => e.id.slice('table-'.length))")
    assert sorted(ids) == sorted(file.stem for file in (written[kind] / "tables").glob("*.csv")) and ids
    for name, rows in zip(ids, page.locator("section.table table").evaluate_all(CELLS), strict=True):
        with (written[kind] / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            labels, *lines = csv.reader(file)
        assert [label for label, _ in rows[0]] == labels
        for line, row in zip(lines, rows[1:], strict=True):
            for cell, (seen, value) in zip(line, row, strict=True):
                assert value == cell, (name, line)  # every digit
                if seen not in ("–", value):
                    assert float(number(seen)) == pytest.approx(float(cell), rel=6e-4), (name, line)
    page.context.close()


@pytest.mark.drawn
@pytest.mark.parametrize("kind", PAGES)
def test_the_page_fits_paper(browser, written, kind):
    page, _, _ = open_page(browser, written[kind] / f"{PAGES[kind]}.html")
    page.emulate_media(media="print")
    wide = page.locator(".tables.wide").count()
    # Pixels within the margins: A4 upright is the narrower there, letter on its side.
    for width, within in ((688, "header, figure, .table:not(.wide)"), *[(949, ".table")] * wide):
        page.set_viewport_size({"width": width, "height": 800})
        ends = page.locator(f":is({within}) *").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect().right)"
        )
        assert max(ends) <= width
    for table in page.locator("table").all():
        assert table.is_visible() and table.locator("tbody > tr > :last-child").first.is_visible()
    page.context.close()
