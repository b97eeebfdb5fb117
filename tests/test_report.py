"""The page as a reader meets it, in a browser; the same tables as CSV and LaTeX."""

import csv
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from browser import chromium, open_page

from jaxprobe import outputs
from jaxprobe.figures import render, subplots
from jaxprobe.report import content, html, latex
from jaxprobe.report.content import Column, Figure, Report, Table
from jaxprobe.report.files import files as report_files
from jaxprobe.statistics.paired import median_interval

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;b&gt;{{ 7 * 7 }}</style></pre>"
ROWS = [
    ["banana", 2, 1.5, "x", None],
    ["apple", 10, -2.25e-7, "y, z", 3.0],
    [HOSTILE, 1, math.nan, "", 1e300],
    ["cherry", 3, 0.1 + 0.2, "line\nbreak", -1.0],
]
COLUMNS = [
    Column("fruit", HOSTILE), Column("count", "how many"), Column("weight"), Column("note"), Column("last"),
]  # fmt: skip


def drawn() -> Figure:
    figure, ((axes,),) = subplots(1, 1, (8, 3))
    axes.plot([1, 2, 3], [1, 4, 9])
    axes.set(title="squares")
    return Figure("squares", HOSTILE, HOSTILE, HOSTILE, render(figure))


@pytest.fixture(scope="module")
def report() -> Report:
    tables = [
        Table("fruits", "Fruits " + HOSTILE, HOSTILE, COLUMNS, ROWS, [["mean", 4, 0.5, "", None]]),
        Table("wide", "Many columns", "", [Column(f"column {i}") for i in range(40)], [[0.5] * 40]),
        Table("none", "Nothing found", "", [Column("a"), Column("b")], []),
    ]  # fmt: skip
    figures = [drawn(), Figure("twice", "The same ids", "", "", drawn().formats)]
    long = "a_word_that_is_far_too_long_for_the_width_of_a_telephone_" * 5
    return Report(HOSTILE, HOSTILE, HOSTILE, [HOSTILE, long], figures, tables, {HOSTILE: [HOSTILE, math.nan]})


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    made = tmp_path_factory.mktemp("report") / "report.html"
    made.write_bytes(html.page(report))
    return made


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def opened(browser, path):
    page, said, asked = open_page(browser, path, viewport={"width": 1200, "height": 900})
    yield page
    assert said == [] and asked == []
    page.context.close()


def cells(page, table: str, column: int) -> list[str]:
    return page.locator(f"#table-{table} tbody tr > :nth-child({column + 1})").all_inner_texts()


def heading(page, table: str, column: int):
    return page.locator(f"#table-{table} thead th").nth(column)


def test_pictures_are_shown(opened):
    images = opened.locator("figure img")
    assert images.count() == 2
    assert images.evaluate_all(
        "all => all.every(i => i.complete && i.naturalWidth > 0 && i.naturalHeight > 0)"
    )
    # The room kept for a picture is its own shape: nothing moves when it is drawn.
    assert images.first.evaluate(
        "i => Math.abs(i.getAttribute('width') / i.getAttribute('height') - i.naturalWidth / i.naturalHeight)"
    ) < 0.01  # fmt: skip
    assert images.first.get_attribute("alt") == HOSTILE
    with opened.expect_download() as found:
        opened.locator("#figure-squares .files a").click()
    assert found.value.suggested_filename == "squares.svg"
    assert found.value.path().read_bytes() == drawn().formats["svg"]


def test_what_is_said_is_text_and_not_code(opened, report):
    assert opened.title() == HOSTILE
    assert opened.locator("h1").inner_text() == HOSTILE
    assert opened.locator(".question").inner_text() == opened.locator(".answer p").inner_text() == HOSTILE
    assert HOSTILE in opened.locator("figcaption").first.inner_text()
    assert cells(opened, "fruits", 0)[2] == HOSTILE
    opened.locator("#table-fruits summary").click()
    assert opened.locator("#table-fruits dd").first.inner_text() == HOSTILE
    assert opened.locator("script").count() == 1 and opened.locator("style").count() == 1
    assert opened.locator("img").count() == 2 and opened.locator("b").count() == 0
    opened.locator("summary").last.click()
    assert opened.locator("pre").inner_text() == outputs.json_bytes(report.manifest).decode()


def test_no_script_runs_beside_the_pages_own(browser, path):
    page, said, _ = open_page(browser, path)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"ran = 1\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None and "Content Security Policy" in said[0]
    page.context.close()


def test_tables_hold_what_the_csv_holds(opened, report):
    for table in report.tables:
        read = list(csv.reader(io.StringIO(table.csv().decode())))
        lines = [*table.rows, *table.foot]
        assert read[0] == table.labels == [
            text.strip() for text in opened.locator(f"#table-{table.name} thead button").all_inner_texts()
        ]  # fmt: skip
        assert len(read) == len(lines) + 1
        for line, row, shown in zip(
            lines, read[1:], opened.locator(f"#table-{table.name} :is(tbody, tfoot) tr").all(), strict=True
        ):
            for cell, written, seen in zip(line, row, shown.locator("> *").all_text_contents(), strict=True):
                if isinstance(cell, str):
                    assert written == seen == cell
                elif cell is None or math.isnan(cell):
                    assert written == "" and seen == "–"
                else:
                    assert float(written) == cell  # every digit
                    assert float(number(seen)) == pytest.approx(cell, rel=6e-4)


def number(text: str) -> str:
    raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    return text.translate(raised).replace("×10", "e")


def test_a_click_sorts_numbers_by_size_and_texts_by_letters(opened):
    weights = heading(opened, "fruits", 2)
    assert weights.get_attribute("aria-sort") == "none"
    weights.locator("button").click()
    assert weights.get_attribute("aria-sort") == "ascending"
    assert cells(opened, "fruits", 0) == ["apple", "cherry", "banana", HOSTILE]  # what is missing is last
    weights.locator("button").click()
    assert weights.get_attribute("aria-sort") == "descending"
    assert cells(opened, "fruits", 0) == ["banana", "cherry", "apple", HOSTILE]
    heading(opened, "fruits", 0).locator("button").click()
    assert weights.get_attribute("aria-sort") == "none"
    assert cells(opened, "fruits", 0)[1:] == ["apple", "banana", "cherry"]
    assert opened.locator("#table-fruits tfoot tr").count() == 1  # stays where it is
    heading(opened, "none", 1).locator("button").click()


def test_the_keyboard_sorts_too(opened):
    count = heading(opened, "fruits", 1)
    count.locator("button").focus()
    opened.keyboard.press("Enter")
    assert cells(opened, "fruits", 1) == ["1", "2", "3", "10"]
    opened.keyboard.press("Space")
    assert cells(opened, "fruits", 1) == ["10", "3", "2", "1"]
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert heading(opened, "fruits", 2).get_attribute("aria-sort") == "ascending"


def test_the_download_is_the_csv(opened, report):
    heading(opened, "fruits", 1).locator("button").click()  # whatever the order on the page
    for table in report.tables:
        with opened.expect_download() as found:
            opened.locator(f"#table-{table.name} a[download]").click()
        assert found.value.suggested_filename == f"{table.name}.csv"
        assert found.value.path().read_bytes() == table.csv()


@pytest.mark.parametrize("width", [360, 700, 1088, 1600])
def test_no_width_makes_the_page_scroll_sideways(browser, path, width):
    page, said, asked = open_page(browser, path, viewport={"width": width, "height": 800})
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:
        table = page.locator("#table-wide .scroll")
        assert table.evaluate("e => e.scrollWidth > e.clientWidth")  # but the table in its own frame does
    assert said == [] and asked == []
    page.context.close()


def test_contents_lead_to_every_figure_and_table(opened, report):
    links = opened.locator("nav a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert all(opened.locator(f"[id='{link[1:]}']").count() == 1 for link in links)
    shown = {*(f"#figure-{f.name}" for f in report.figures), *(f"#table-{t.name}" for t in report.tables)}
    assert shown <= set(links)
    ids = opened.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(set(ids)) == len(ids)


def test_dark_and_print(browser, path):
    page, said, _ = open_page(browser, path, color_scheme="dark")
    ground = "getComputedStyle(document.{}).backgroundColor"
    assert page.evaluate(ground.format("body")) == "rgb(20, 24, 28)"
    assert page.evaluate(ground.format("querySelector('.picture')")) == "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.evaluate(ground.format("body")) == "rgb(255, 255, 255)"
    assert not page.locator("a[download]").first.is_visible()
    assert page.pdf().startswith(b"%PDF") and said == []
    page.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_folded_is_printed(browser, report, tmp_path, scripts):
    folded = dataclasses.replace(report.tables[0], folded=True)
    file = tmp_path / "folded.html"
    file.write_bytes(html.page(dataclasses.replace(report, tables=[folded])))
    page = browser.new_context(java_script_enabled=scripts).new_page()
    page.goto(file.as_uri())
    cell = page.locator("#table-fruits td").first
    assert not cell.is_visible()
    page.emulate_media(media="print")
    assert cell.is_visible() and page.locator("#table-fruits dd").first.is_visible()
    if scripts:
        page.locator(".meanings").evaluate("e => e.open = true")
        opened = page.locator("details[open]")
        for event, count in (("beforeprint", 2), ("afterprint", 1)):  # what was open stays open
            page.evaluate(f"dispatchEvent(new Event('{event}'))")
            assert opened.count() == count
    page.context.close()


@pytest.mark.parametrize("count", [2, 9, 12, 16, 24, 30, 60])
def test_no_table_is_wider_than_paper(browser, tmp_path, count):
    words = Column("relation"), *(Column(f"perplexity of_{'many' * 9} {i}") for i in range(count))
    cells = ["word" * 20, *(-1.2345e-4 * 10 ** -(i % 3) for i in range(count))]
    tables = [
        Table("long", "", "", words, [cells] * 3),
        Table("short", "", "", [Column(str(i)) for i in range(count)], [["a", *[0.5] * (count - 1)]]),
        Table("texts", "", "", [Column(str(i)) for i in range(count)], [[f"{'text' * 9}"] * count]),
    ]  # fmt: skip
    file = tmp_path / "wide.html"
    for table in tables:
        file.write_bytes(html.page(Report("", "", "", [], [], [table])))
        width = 949 if "wide" in table.print_class else 688  # pixels within margins: letter, and A4 upright
        page, _, _ = open_page(browser, file, viewport={"width": width, "height": 800})
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, table.name
        assert page.locator("table").evaluate("e => e.scrollWidth") <= width, table.name
        # Nor is a cell over its neighbour.
        over = page.locator("th, td").evaluate_all(
            "all => all.filter(e => e.scrollWidth > e.clientWidth + 1)"
        )
        assert over == [], table.name
        boxes = {
            tuple(map(float, box)) for box in re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", page.pdf())
        }
        assert any(w > h for w, h in boxes) == ("wide" in table.print_class)
        page.context.close()


def test_the_same_report_gives_the_same_page_which_names_no_address(report, path):
    assert html.page(report) == path.read_bytes()
    markup = re.sub(r'"data:[^"]*"', "", path.read_text(encoding="utf-8"))
    assert "http:" not in markup and "https:" not in markup and "url(" not in markup


def test_files_of_a_report(report):
    files = report_files(report, None)
    pictures = {
        f"images/{name}.{suffix}" for name in ("squares", "twice") for suffix in ("png", "svg", "pdf")
    }
    tables = {f"tables/{t.name}.{suffix}" for t in report.tables for suffix in ("csv", "tex")}
    assert files.keys() == pictures | tables
    assert files["tables/fruits.csv"] == report.tables[0].csv()


def test_latex_prints_what_the_text_says(report):
    made = latex.tabular(report.tables[0]).decode()
    body = [line for line in made.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{p{0.4\linewidth}rrlr}" and body[-1] == r"\end{tabular}"
    assert body[1] == r"\toprule" and body[-2] == r"\bottomrule"
    rows = [line for line in body if line.endswith(r"\\")]
    assert len(rows) == 6 and all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)
    assert r"apple & $10$ & $-2.250\times 10^{-7}$ & y, z & $3.000$ \\" in body
    assert r"banana & $2$ & $1.500$ & x & -- \\" in body
    escaped = latex.escape(r"100% of $x_1^2$ & {a}~#\b" + "\nσ₁ × ‖J‖")
    assert escaped == (
        r"100\% of \$x\_1\textasciicircum{}2\$ \& \{a\}\textasciitilde{}\#\textbackslash{}b "
        r"$\sigma$$_1$ $\times$ $\|$J$\|$"
    )


@pytest.mark.parametrize(
    ("cell", "text"),
    [(1234567, "1234567"), (1234.5, "1234"), (0.1 + 0.2, "0.3000"), (-1e-9, "−1.000×10⁻⁹"), (0.0, "0"),
     (99999.0, "1.000×10⁵"), (-3, "−3"), (math.inf, "–"), (None, "–"), ("-", "-")],
)  # fmt: skip
def test_numbers_are_read_at_four_digits(cell, text):
    assert content.shown(cell) == text


def test_a_table_that_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match="2 cells in a row of 1"):
        Table("t", "", "", [Column("a")], [[1, 2]])
    with pytest.raises(ValueError, match="share a label"):
        Table("t", "", "", [Column("a"), Column("a")], [])


@pytest.mark.parametrize("count", [1, 5, 6, 9, 30, 64, 65, 2000])
def test_the_interval_of_a_median_has_its_confidence(count):
    rng = np.random.default_rng(0)
    found = [median_interval(row) for row in rng.standard_cauchy((4000, count))]
    confidence = found[0].confidence
    assert confidence >= 0.95 or count < 6
    held = np.mean([each.low <= 0 <= each.high for each in found])
    assert abs(held - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / 4000) + 1e-9
    ordered = np.arange(30.0)
    assert (median_interval(ordered).low, median_interval(ordered).high) == (9.0, 20.0)  # of published tables
