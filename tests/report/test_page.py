"""The page itself, in a real browser: its numbers, its manners, and that nothing foreign becomes a part of it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mapolicy import PolicyBundle
from mapolicy.bundle.load import open_bundle
from mapolicy.policy.import_policy import import_policy
from mapolicy.report import figures, samples
from mapolicy.report.gather import Report, gather
from mapolicy.report.metrics import read_run
from mapolicy.report.page import page
from mapolicy.report.picture_files import picture_files
from tests.helpers.browser import WIDTHS, Visit, chromium

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}"
LINES = '{"epoch": 1, "loss": 2.5, "alpha": 0.01}\n{"epoch": 2, "loss": 1.5, "alpha": 0.02}\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.toml").write_text('dataset = "digits"\nepochs = 2\n')
    (folder / "metrics.jsonl").write_text(LINES)
    return read_run(folder)


@pytest.fixture(scope="module")
def full(bundle_file: Path, bundle: PolicyBundle, make_train_config, run) -> Report:
    splits = samples.open_splits(bundle, make_train_config(**bundle.data_settings()), torch.device("cpu"))
    return gather(open_bundle(bundle_file), bundle, run, splits, against=bundle, samples=60)


@pytest.fixture(scope="module")
def written(full: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(page(full))
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def tags(content: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Every element with the names of its attributes."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes) -> None:
            found.append((tag, tuple(name for name, _ in attributes)))

    Reader().feed(content.decode())
    return found


def test_it_is_whole_and_asks_for_nothing(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    for part in ("where", "probabilities", "magnitudes", "samples", "losses", "classes", "learning", "changes"):
        assert f'<section id="{part}"' in text
        assert f'href="#{part}"' in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in text
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "an address is there twice"


def test_the_folders_of_its_writer_stay_at_home(full: Report, written: Path, bundle_file: Path) -> None:
    assert str(bundle_file) in full.origin
    assert str(bundle_file.parent) not in written.read_text(encoding="utf-8")


def test_pictures_are_the_figures_of_the_paper(full: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(figures.SETTINGS, "savefig.dpi", 20)  # to be quick
    names = {name.partition(".")[0] for name in picture_files(full)}
    assert names == {"probabilities", "classes", "changes", "learning", "magnitudes", "samples", "losses"}


def test_a_run_alone_and_a_dataset_level_policy(run, tmp_path: Path) -> None:
    alone = page(Report(run=run)).decode()
    assert 'id="learning"' in alone
    assert 'id="where"' not in alone
    import_policy("autoaugment-cifar10").save(tmp_path / "a.safetensors")
    report = gather(open_bundle(tmp_path / "a.safetensors"), None)
    text = page(report).decode()
    assert "25 sub-policies" in text
    policy = report.dataset_level
    assert policy is not None
    rotates = sum(step.probability for steps in policy.sub_policies for step in steps if step.operation == "Rotate")
    assert f'<th scope="row">Rotate</th><td class="number">{100 * rotates / 25:.2f}</td>' in text
    assert set(picture_files(report)) == {"operations.png", "operations.svg"}


def saying(bundle: PolicyBundle, full: Report, text: str) -> Report:
    """The report with this text wherever others may have written something."""
    classes = (text, *bundle.manifest.dataset.classes[1:])
    changed = bundle.manifest.draft(
        note=f"{text}\n{text}",
        licence=text,
        versions={"python": text},
        dataset=bundle.manifest.dataset.model_copy(update={"classes": classes}).model_dump(),
        search={"settings": bundle.manifest.search.settings | {"optimizer": text}},
    )
    assert full.described
    assert full.run
    assert full.changes
    assert full.classes
    manifest = changed.model_dump()
    return replace(
        full,
        origin=f"https://host/{text}",
        described={**full.described, **{name: manifest[name] for name in ("note", "licence", "versions", "dataset")}},
        class_names=classes,
        classes=replace(full.classes, rows=classes, details=[[text] * 14] * 10),
        run=replace(full.run, folder=text, settings={text: text}, result={text: [text]}, curves={}),
        response=None,
        changes=replace(full.changes, facts=[(text, text, text)]),
        no_data=text,
    )


def test_foreign_text_makes_no_element(bundle: PolicyBundle, full: Report) -> None:
    honest, evil = (page(saying(bundle, full, text)) for text in ("x", HOSTILE))
    assert tags(evil) == tags(honest)
    assert evil.decode().count("&lt;script&gt;alert(1)") > 20
    assert "49" not in re.findall(r"onerror=alert\(1\)&gt;[^<]{0,20}", evil.decode())[0], "a template in a text is text"


def test_what_does_not_print_is_not_on_the_page(run) -> None:
    odd = replace(run, folder="a\u202eb\x1b[31m\x00", settings={"\u2066k": "v\x9b"}, curves={})
    text = page(Report(run=odd)).decode()
    assert "a?b?[31m?" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", text)


# In the browser.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_renders_and_fits(browser, written: Path, width: int, scheme: str) -> None:
    with browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
        visit = Visit(tab)
        tab.goto(written.as_uri())
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [written.as_uri()]
        assert not visit.overflows()
        for summary in tab.locator("summary").all():
            summary.click()
        assert not visit.overflows()
        ink, paper = tab.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")
        stroke = tab.evaluate("getComputedStyle(document.querySelector('#learning svg text')).fill")
        assert stroke == ink, "charts are in the page's ink"
        assert visit.complaints == []


def test_the_heat_map_says_what_the_bundle_says(browser, written: Path, bundle_file: Path) -> None:
    probabilities, names = PolicyBundle.load(bundle_file).probabilities.double(), None
    with browser.new_page(viewport={"width": 1440, "height": 900}) as tab:
        visit = Visit(tab)
        tab.goto(written.as_uri())
        table = tab.locator("#table-probabilities")
        cells = "[...row.querySelectorAll('td[data-value]')].map(c => [Number(c.dataset.value), c.textContent])"
        rows = table.locator("tbody tr").evaluate_all(f"rows => rows.map(row => {cells})")
        found = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
        assert torch.equal(found, probabilities)
        for row, expected in zip(rows, probabilities.tolist(), strict=True):
            assert [text for _, text in row] == [f"{100 * p:.3f}" for p in expected]

        names = table.locator("tbody th").all_text_contents()
        cell = table.locator("tbody tr").nth(2).locator("td[data-value]").nth(5)
        cell.hover()
        box = tab.get_by_role("tooltip")
        assert box.is_visible()
        expected = f"{names[2]}, then {names[5]}: p = {100 * probabilities[2, 5]:.4f} %"
        assert box.text_content().startswith(expected)
        where = box.bounding_box()
        assert where["x"] >= 0
        assert where["x"] + where["width"] <= 1440
        tab.locator("h1").hover()
        assert not box.is_visible()
        assert visit.complaints == []


def test_the_keyboard_reaches_every_cell(browser, written: Path) -> None:
    with browser.new_page(viewport={"width": 360, "height": 800}) as tab:
        tab.goto(written.as_uri())
        tab.locator("#probabilities button").last.focus()
        tab.keyboard.press("Tab")

        def place() -> list[int]:
            return tab.evaluate(
                "(c => [[...c.closest('tbody').rows].indexOf(c.parentElement), c.cellIndex - 1])"
                "(document.activeElement)"
            )

        assert place() == [0, 0]
        box = tab.get_by_role("tooltip")
        assert "AutoContrast, then AutoContrast" in box.text_content()
        for key, expected in (
            *(("ArrowRight", [0, 1]), ("ArrowDown", [1, 1]), ("End", [1, 13]), ("ArrowRight", [1, 13])),
            *(("PageDown", [13, 13]), ("ArrowDown", [13, 13]), ("Home", [13, 0]), ("PageUp", [0, 0])),
        ):
            tab.keyboard.press(key)
            assert place() == expected, key
        tab.keyboard.press("End")
        for _ in range(13):
            seen = tab.evaluate(
                "(c => { const r = c.getBoundingClientRect();"
                " return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) === c })"
                "(document.activeElement)"
            )
            assert seen, f"column {place()[1]} lies under the row's name"
            tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("End")
        where = box.bounding_box()
        assert box.is_visible()
        assert where["x"] >= 0
        assert where["x"] + where["width"] <= 360
        assert where["width"] > 300, "squeezed at the edge"
        assert tab.evaluate("document.activeElement.getAttribute('aria-describedby')") == "box"
        tab.keyboard.press("Escape")
        assert not box.is_visible()
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.closest('#table-probabilities')") is None, "one stop for the table"


def test_sorting_by_sums_and_back(browser, written: Path, bundle: PolicyBundle) -> None:
    probabilities = bundle.probabilities.double()
    names = bundle.manifest.operations.names
    with browser.new_page() as tab:
        tab.goto(written.as_uri())
        table = tab.locator("#table-probabilities")
        tools = tab.locator("#probabilities .tools")
        by_sum, listed = tools.get_by_role("button", name="by sum"), tools.get_by_role("button", name="as listed")

        def shown() -> tuple[list[str], list[str], torch.Tensor]:
            heads = table.locator("thead th[data-place] span").all_text_contents()
            cells = table.locator("tbody td[data-value]").evaluate_all("all => all.map(c => Number(c.dataset.value))")
            values = torch.tensor(cells, dtype=torch.float64).reshape(14, 14)
            return table.locator("tbody th").all_text_contents(), heads, values

        by_sum.first.click()
        rows = probabilities.sum(1).argsort(descending=True, stable=True)
        found = shown()
        assert found[0] == [names[row] for row in rows]
        assert found[1] == list(names)
        assert torch.equal(found[2], probabilities[rows])
        by_sum.last.click()
        columns = probabilities.sum(0).argsort(descending=True, stable=True)
        found = shown()
        assert found[1] == [names[column] for column in columns]
        assert torch.equal(found[2], probabilities[rows][:, columns])
        sums = [float(text) for text in table.locator("tfoot td[data-place]").all_text_contents()]
        assert sums == sorted(sums, reverse=True), "the sums go with their columns"
        assert by_sum.last.get_attribute("aria-pressed") == "true"
        listed.first.click()
        listed.last.click()
        found = shown()
        assert (found[0], found[1]) == (list(names), list(names))
        assert torch.equal(found[2], probabilities)


def test_a_hostile_bundle_runs_nothing(browser, bundle: PolicyBundle, full: Report, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    path.write_bytes(page(saying(bundle, full, HOSTILE)))
    with browser.new_page() as tab:
        visit = Visit(tab)
        tab.on("dialog", lambda dialog: pytest.fail("something ran"))
        tab.goto(path.as_uri())
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
        assert tab.locator("script").count() == 1
        assert tab.locator("img:not([src^='data:'])").count() == 0
