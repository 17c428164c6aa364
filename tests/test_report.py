"""The HTML report in a browser: it opens alone, sorts, filters, compares, and runs nothing that it shows."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from recorded import HOSTILE, RecordedSearch, deepcache_grid

from pytest_diffaccel import matrix
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.report.html.page import write_report

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small recorded search."""
    search = RecordedSearch(tmp_path_factory.mktemp("recorded"))
    search.fill()
    return written(search)


def written(search: RecordedSearch, *options: str) -> Path:
    page = search.path / "report.html"
    golden = ["--golden", str(search.golden)]
    prompts = ["--prompts", str(search.prompts)]
    assert main(["report", "--store", str(search.store), "-o", str(page), *golden, *prompts, *options]) == 0
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser: Any) -> Callable[..., Any]:
    """Opens a page; when it is left, it must have said nothing on its console and asked no network for anything."""

    @contextmanager
    def opened(path: Path, **options: Any) -> Iterator[Any]:
        context = browser.new_context(viewport={"width": 1440, "height": 1000}, **options)
        said: list[str] = []
        asked: list[str] = []
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        context.route(lambda url: url.startswith("http"), lambda route: route.abort())
        page.goto(path.as_uri())
        yield page
        context.close()
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []

    return opened


# Words that stand on more than one line.
BROKEN_WORDS = """
cells => cells.map(cell => cell.firstChild).filter(Boolean).flatMap(text =>
  Array.from(text.data.matchAll(/[^ ]+/g), word => {
    const range = document.createRange();
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    return range.getClientRects().length > 1 ? word[0] : "";
  })).filter(Boolean)
"""


def shown(page: Any, column: int) -> list[str]:
    """Texts of a column of the rows that are to be seen."""
    return page.locator(f"table.candidates tbody tr:visible td:nth-child({column})").all_inner_texts()


def overhang(page: Any, boxes: str) -> int:
    """By how many pixels the contents of boxes are wider than these, at the most."""
    return int(
        page.evaluate(
            f"Math.max(...Array.from(document.querySelectorAll('{boxes}'), (box) => box.scrollWidth - box.clientWidth))"
        )
    )


def test_it_names_the_model_source_and_counts_verdicts(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        assert "Model source: embedded stand-in, not SD1.5" in page.locator("header").inner_text()
        counts = page.locator(".counts").inner_text()
    assert "9\nmeasured" in counts
    assert "1\nskipped with reason" in counts
    assert "1\nfailed" in counts


def test_every_chart_is_drawn_by_script_in_place_of_its_picture(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        figures = page.locator(".chart")
        assert figures.count() == 4  # what was gained, sensitivity, samples, kinds of steps
        for place in range(figures.count()):
            figures.nth(place).scroll_into_view_if_needed()
            figures.nth(place).locator(".plot.live svg").wait_for()
            assert not figures.nth(place).locator(".plot:not(.live)").is_visible()


def test_reasons_stand_in_the_table_and_further_figures_are_folded(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        heads = page.locator("table.candidates th").all_inner_texts()
        assert all(shown(page, heads.index("reason") + 1))
        more = page.locator("table.candidates tr.winner details").first
        assert "cached_steps=10" not in more.inner_text()
        more.locator("summary").click()
        assert "acted: cached_steps=10" in more.inner_text().splitlines()
        assert more.inner_text().splitlines()[-1] == "samples: 4, verified"


@pytest.mark.parametrize(("width", "is_said"), [(1440, False), (760, True), (390, False)])
def test_a_table_that_scrolls_sideways_says_so(report: Path, browser: Any, width: int, is_said: bool) -> None:
    """On a wide page nothing has to, on a phone rows are cards."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(report.as_uri())
    hints = page.locator("#cells > .cell > .hint")
    assert hints.count() == 2  # of what to use, and of candidates
    assert hints.nth(1).is_visible() is is_said
    assert (overhang(page, "#cells > .cell > .scroll") > 1) is is_said
    page.close()


def test_on_a_phone_no_parameter_breaks_inside_a_word(report: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(report.as_uri())
    params = page.locator("table.candidates tbody tr:visible td:nth-child(2)")
    assert params.first.inner_text().startswith("cache_interval=")
    assert params.evaluate_all(BROKEN_WORDS) == []
    page.locator("#table-0").scroll_into_view_if_needed()
    page.get_by_label("Verdict").select_option("skipped")
    assert shown(page, 3) == ["skipped"]
    page.close()


def test_print_shows_whole_figures_and_pictures_that_fit_the_paper(report: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 1000})
    page.goto(report.as_uri())
    page.locator("#pareto-0 .plot.live svg").wait_for()
    page.emulate_media(media="print")
    assert not page.locator("#pareto-0 .plot.live").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    # Rivals that are faster than anything else are cut off.
    texts = (
        page.locator(".plot:not(.live) text")
        .filter(has_not_text="+")
        .evaluate_all("all => all.map(text => text.getBoundingClientRect()).map(box => [box.left, box.right])")
    )
    assert min(left for left, _ in texts) >= 0
    assert max(right for _, right in texts) <= 700
    for column in (4, 5):
        assert (
            page.locator(f"table.candidates tbody tr:visible td:nth-child({column})").evaluate_all(BROKEN_WORDS) == []
        )
        lines = page.locator(f"table.candidates tr.winner td:nth-child({column})").evaluate_all(
            "cells => cells.map(cell => { const range = document.createRange(); range.selectNodeContents(cell); "
            "return range.getClientRects().length; })"
        )
        assert set(lines) == {1}
    page.close()


def test_a_head_sorts_up_then_down_and_unknown_figures_stay_last(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        speedup = page.get_by_role("button", name="speed-up [95%]")
        speedup.click()
        up = shown(page, 4)
        speedup.focus()
        page.keyboard.press("Enter")
        down = shown(page, 4)
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    values = [float(text.split("x")[0]) for text in up[:-2]]
    assert values == sorted(values)
    assert len(set(values)) > 5
    assert [float(text.split("x")[0]) for text in down[:-2]] == values[::-1]
    assert up[-2:] == down[-2:] == ["", ""]


def test_filters_narrow_the_table(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        count = page.locator(".filters output")
        page.get_by_label("Find").fill("cache_interval=3 branch_id=0")
        assert shown(page, 2) == ["cache_interval=3, cache_branch_id=0"]
        assert count.inner_text() == "1 of 11 candidates"
        page.get_by_label("Find").fill("")
        page.get_by_label("Verdict").select_option("skipped")
        assert shown(page, 3) == ["skipped"]
        page.get_by_label("Verdict").select_option("")
        page.get_by_label("At least").fill("2.0")
        assert all(float(text.split("x")[0]) >= 2 for text in shown(page, 4))
        assert 0 < len(shown(page, 4)) < 9


def test_the_slider_lays_one_picture_over_the_other(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        blink = page.locator("details.winner[open] .blink").first
        blink.scroll_into_view_if_needed()
        slider, over = blink.locator("input"), blink.locator("img").nth(1)
        assert over.evaluate("image => image.style.opacity") == "0"
        slider.fill("60")
        assert over.evaluate("image => image.style.opacity") == "0.6"
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert over.evaluate("image => image.style.opacity") == "0.65"
        assert over.evaluate("image => image.naturalWidth") > 0


def test_pictures_lead_to_full_ones_beside_the_page(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        links = page.locator("details.winner a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert links
    assert all((report.parent / link).is_file() for link in links)
    assert all(not Path(link).is_absolute() for link in links)


def scroll_to_chart(page: Any) -> None:
    page.locator("#pareto-0").scroll_into_view_if_needed()
    # That a page was scrolled is told in its next frame, and hides what pointing shows.
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_pointing_at_a_winner_shows_its_settings_and_pictures(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report) as page:
        plot = page.locator("#pareto-0 .plot.live svg")
        plot.wait_for()
        scroll_to_chart(page)
        # Winners are ringed: the only hollow symbols.
        ring = plot.locator('path[stroke="currentColor"][stroke-width="1.8"]').first
        ring.hover(force=True)
        tip = page.locator("#tip")
        tip.wait_for()
        text = tip.inner_text()
        assert "cache_interval=" in text
        assert "LPIPS" in text
        assert tip.locator("img").count() == 3
        page.mouse.move(2, 2)
        tip.wait_for(state="hidden")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one with CLIP scores of its winners and of some rivals."""
    search = RecordedSearch(tmp_path_factory.mktemp("scored"))
    search.fill()
    search.score(2, 3, 5)
    return written(search)


def figures_up(page: Any) -> list[float]:
    """Figures beside the axis of quality, from the bottom up."""
    texts = page.locator('#pareto-0 .plot.live svg .role-axis-label text[text-anchor="end"]').evaluate_all(
        "all => all.map(text => [-text.getBoundingClientRect().top, text.textContent])"
    )
    return [float(figure.replace("\u2212", "-")) for _, figure in sorted(texts)]


def test_a_chart_says_of_how_many_pictures_a_point_of_fewer_steps_is(scored: Path, opened: Callable[..., Any]) -> None:
    """Most are scored on fewer than the winners: no more are drawn once it is clear that they lose more."""
    with opened(scored) as page:
        plot = page.locator("#pareto-0 .plot.live svg")
        page.locator("#pareto-0").scroll_into_view_if_needed()
        plot.wait_for()
        plot.locator("text", has_text="+").nth(8).hover()
        tip = page.locator("#tip")
        tip.wait_for()
        assert "scored pictures" in tip.inner_text()


def test_the_reader_chooses_by_keyboard_what_quality_is_told_by(scored: Path, opened: Callable[..., Any]) -> None:
    with opened(scored) as page:
        plot = page.locator("#pareto-0 .plot.live svg")
        page.locator("#pareto-0").scroll_into_view_if_needed()
        plot.wait_for()
        axis, said = page.get_by_label("Quality by"), page.locator(".axis output")
        assert axis.locator("option").all_inner_texts() == [
            *("LPIPS", "PSNR", "SSIM"),
            *("clip_score", "change of clip_score"),
        ]
        assert axis.input_value() == "lpips"
        assert "LPIPS to the unaccelerated picture (lower is better)" in plot.text_content()
        assert said.inner_text() == ""
        axis.focus()
        for words in ("PSNR to the", "SSIM to the", "clip_score (", "change of clip_score"):
            page.keyboard.press("ArrowDown")
            plot.filter(has_text=words).wait_for()
            assert "(higher is better)" in plot.text_content()
            assert page.locator("#pareto-0 .plot.live").count() == 1
            up = figures_up(page)
            assert len(up) > 2
            assert up == sorted(up)
        assert page.locator("#pareto-0").get_attribute("aria-label").startswith("Speed-up against change of clip_score")
        page.keyboard.press("Home")
        plot.filter(has_text="LPIPS to the").wait_for()


def test_candidates_that_lack_a_metric_are_said_and_stay_on_the_chart(scored: Path, opened: Callable[..., Any]) -> None:
    with opened(scored) as page:
        plot = page.locator("#pareto-0 .plot.live svg")
        axis = page.get_by_label("Quality by")
        axis.select_option("clip_score")
        plot.filter(has_text="clip_score (higher is better)").wait_for()
        assert "Without clip_score: 6 of 9 measured candidates." in page.locator(".axis output").inner_text()
        scroll_to_chart(page)
        ticks = plot.locator(".mark-rect.role-mark path")
        assert ticks.count() == 6
        ticks.first.hover(force=True)
        tip = page.locator("#tip")
        tip.wait_for()
        assert "cache_interval=" in tip.inner_text()
        assert "clip_score" not in tip.inner_text()
        plot.locator('path[stroke="currentColor"][stroke-width="1.8"]').first.hover(force=True)
        tip.filter(has_text="28 [").wait_for()
        assert "clip_score" in tip.inner_text()
        assert tip.locator("img").count() == 3


def test_without_script_everything_is_there_to_read(report: Path, opened: Callable[..., Any]) -> None:
    with opened(report, java_script_enabled=False) as page:
        assert len(shown(page, 1)) == 11
        assert page.locator("#pareto-0 svg").is_visible()
        assert "unrelated pictures: 0.165 and more" in page.locator("#pareto-0 svg").text_content()
        assert page.locator("details.winner[open] img").count() > 0
        assert not page.locator(".filters").first.is_visible()
        assert not page.locator(".axis").first.is_visible()
        assert "RuntimeError" in page.locator("#failures").inner_text()


@pytest.mark.parametrize("javascript", [True, False])
def test_nothing_that_it_shows_is_run(report: Path, opened: Callable[..., Any], javascript: bool) -> None:
    with opened(report, java_script_enabled=javascript) as page:
        failures = page.locator("#failures")
        assert HOSTILE in failures.locator("pre").first.inner_text()
        assert HOSTILE in page.locator("table.candidates tr.skipped").inner_text()
        assert HOSTILE in page.locator("details.winner").first.evaluate("element => element.textContent")
        if javascript:
            assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x]").count() == 0


def test_the_policy_lets_no_other_script_run(report: Path, browser: Any, tmp_path: Path) -> None:
    page_with_more = tmp_path / "report.html"
    text = report.read_text(encoding="utf-8")
    page_with_more.write_text(text.replace("</header>", f"</header>{HOSTILE}", 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(page_with_more.as_uri())
    assert page.evaluate("window.hacked") is None
    page.close()


def test_rows_download_as_csv(report: Path, opened: Callable[..., Any], tmp_path: Path) -> None:
    with opened(report) as page, page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
        download.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert {row["pipe"] for row in rows} == {"SD1.5"}
    measured = [row for row in rows if row["speedup"]]
    assert all(float(row["speedup_low"]) <= float(row["speedup"]) <= float(row["speedup_high"]) for row in measured)
    # A prompt that a spreadsheet would take for a formula.
    assert not any(row["worst_prompt"].startswith("=") for row in rows)
    assert any(HOSTILE in row["reason"] for row in rows)


def test_a_phone_shows_it_without_scrolling_sideways(report: Path, browser: Any) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.goto(report.as_uri())
        page.locator("#pareto-0").scroll_into_view_if_needed()
        page.locator("#pareto-0 .plot.live svg").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        red = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
        assert (red < 100) is dark
        page.close()


def test_missing_pictures_leave_a_note(tmp_path: Path, opened: Callable[..., Any]) -> None:
    search = RecordedSearch(tmp_path / "search")
    search.fill(grid=deepcache_grid()[:2])
    shutil.rmtree(search.work / "images")
    with opened(written(search)) as page:
        assert page.locator("details.winner").count() == 0
        assert "No pictures" in page.locator("section.cell").inner_text()


@pytest.mark.slow
def test_27_full_cells_stay_under_20_mb(tmp_path: Path, opened: Callable[..., Any]) -> None:
    search = RecordedSearch(tmp_path / "search")
    grid = [
        {"DeepCache": {"cache_interval": interval, "cache_branch_id": branch}}
        for interval in range(2, 22)
        for branch in range(12)
    ]
    cells = matrix.cells(matrix.PIPES, matrix.SCHEDULERS, matrix.STEPS)
    one, all_cells = tmp_path / "one.html", tmp_path / "all.html"
    write_report(one, search.material(cells[:1], grid))
    write_report(all_cells, search.material(cells, grid))
    assert one.stat().st_size < 5e6
    assert all_cells.stat().st_size < 20e6
    with opened(all_cells) as page:
        page.locator("#cell-26 h2").scroll_into_view_if_needed()
        page.locator("#pareto-26 .plot.live svg").wait_for()
