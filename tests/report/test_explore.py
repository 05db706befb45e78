"""The page of `mapolicy explore`: its numbers, who may ask for it, and that it works in a browser and by keyboard."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest
import torch

from mapolicy import PolicyBundle
from mapolicy.errors import EnvironmentFault, UsageError
from mapolicy.report.explore_server import Site
from mapolicy.report.explorer import AT_ONCE, IMAGES, REFERENCE, Explorer
from mapolicy.report.sample_weights import SampleWeights
from mapolicy.report.samples import open_splits
from mapolicy.transforms.parse import parse_transformations
from tests.helpers.browser import WIDTHS, Visit, chromium

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def explorer(bundle: PolicyBundle, make_train_config) -> Explorer:
    splits = open_splits(bundle, make_train_config(**bundle.data_settings()), CPU)
    return Explorer(SampleWeights(bundle, CPU), splits.train)


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    pytest.importorskip("starlette", reason="starlette is not installed")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    site = Site(explorer)
    thread = threading.Thread(target=site.serve)
    thread.start()
    yield site.address
    site.stop()
    thread.join(timeout=20)
    assert not thread.is_alive()


def asked(address: str, path: str = "", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """An answer whose body was read into `content`."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
    connection.request(method, path if path.startswith("//") else parts.path + path, headers=headers)
    answer = connection.getresponse()
    answer.content = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_weight_and_rank_among_a_training_batch(explorer: Explorer, bundle: PolicyBundle) -> None:
    found = explorer.weigh(7, "Rotate:5,Color:-3")
    policy, sample_weights = bundle.build_policy(), explorer.sample_weights
    chosen = parse_transformations("Rotate:5,Color:-3")
    image = explorer.images[7][None]
    raw = policy(sample_weights.extractor(sample_weights.augmented(image, chosen)), chosen.embed()).item()
    plain = policy(sample_weights.extractor(image), parse_transformations("Identity").embed()).item()
    batch = explorer.reference.sigmoid()
    assert len(batch) == REFERENCE
    assert found["weight"] == pytest.approx(raw / float(batch.mean()), rel=1e-5)
    assert found["as_it_is"] == pytest.approx(plain / float(batch.mean()), rel=1e-5)
    assert (found["rank"], found["of"]) == (1 + sum(float(other) > raw for other in batch), REFERENCE + 1)
    assert found["probability"] == pytest.approx(float(bundle.probabilities[2, 5]))
    assert explorer.weigh(7, "Identity")["after"] == found["before"]
    assert found["after"] != found["before"]
    assert explorer.weigh(7, "Rotate:5,Color:-3") == found


def test_images_to_choose_from(explorer: Explorer) -> None:
    assert len(explorer) == IMAGES
    first, last = explorer.choice(0), explorer.choice(IMAGES - 2)
    assert [entry["image"] for entry in first] == list(range(AT_ONCE))
    assert len(last) == 2
    assert explorer.choice(IMAGES) == []
    assert all(entry["picture"].startswith("data:image/png;base64,") for entry in first)


@pytest.mark.parametrize(
    ("image", "text"), [(-1, "Rotate:1"), (IMAGES, "Rotate:1"), (0, "Rotate:1;Color:1"), (0, "Spin:1"), (0, "")]
)
def test_what_cannot_be_meant(explorer: Explorer, image: int, text: str) -> None:
    with pytest.raises(UsageError):
        explorer.weigh(image, text)


def test_drawn_transformations_can_be_weighed(explorer: Explorer) -> None:
    drawn = [explorer.draw() for _ in range(20)]
    assert len({json.dumps(each) for each in drawn}) > 10
    levels = [each["magnitude1"] for each in drawn]
    assert min(levels) < 0 < max(levels)


# Who may ask.


def test_only_who_knows_the_token_under_our_name(address: str) -> None:
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    token = parts.path.strip("/")
    assert len(token) >= 32
    assert asked(address).status == 200
    assert asked(address, Host=f"localhost:{parts.port}").status == 200
    for path in ("//", f"//{token[:-1]}/", f"//{token}x/", "//images", "//caf%C3%A9/", "//%ff%fe/"):
        answer = asked(address, path)
        assert (answer.status, answer.content) == (404, b""), path  # type: ignore[attr-defined]
    for host in ("evil.test", f"evil.test:{parts.port}", "127.0.0.1", f"127.0.0.1.evil.test:{parts.port}", ""):
        assert asked(address, Host=host).status in (400, 404), host


def test_answers_are_for_this_page_alone(address: str) -> None:
    for path in ("", "images", "draw", f"weigh?image=0&transformation={quote('Rotate:5')}"):
        answer = asked(address, path, Origin="https://evil.test")
        assert answer.status == 200, path
        assert answer.headers["access-control-allow-origin"] is None
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in asked(address).headers["content-security-policy"]


def test_a_wrong_question_has_an_answer(address: str) -> None:
    for path in (
        "weigh",
        "weigh?image=x&transformation=Rotate:1",
        "weigh?image=0&transformation=Spin",
        "images?start=x",
    ):
        answer = asked(address, path)
        assert answer.status == 400, path
        assert json.loads(answer.content)["error"]  # type: ignore[attr-defined]
    assert asked(address, "nothing").status == 404
    assert asked(address, "", "POST").status == 405


def test_a_wrong_number_is_named(address: str) -> None:
    for question in ("weigh?image=x&transformation=Equalize", f"weigh?image={'1' * 5000}", "images?start=-1"):
        answer = asked(address, question)
        assert answer.status == 400
        assert "is not the number of an image" in json.loads(answer.content)["error"]  # type: ignore[attr-defined]


def test_without_its_last_slash_there_is_no_page(address: str) -> None:
    assert asked(address.removesuffix("/")).status == 404


def test_numbers_over_the_wire_are_the_explorers(address: str, explorer: Explorer) -> None:
    answer = asked(address, f"weigh?image=3&transformation={quote('Solarize:9,Equalize')}")
    assert json.loads(answer.content) == explorer.weigh(3, "Solarize:9,Equalize")  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", ["starlette.applications", "uvicorn"])
def test_without_the_framework_it_says_what_to_install(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFault, match=r"is not installed; pip install 'mapolicy\[explore\]'"):
        Site(explorer)


# In the browser.


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def shows(tab, text: str) -> None:
    tab.locator(f"body[data-shown='{text}']").wait_for()


@pytest.mark.parametrize("width", WIDTHS)
def test_pick_and_see(browser, address: str, explorer: Explorer, width: int) -> None:
    with browser.new_page(viewport={"width": width, "height": 800}) as tab:
        visit = Visit(tab)
        tab.goto(address)
        shows(tab, "0 Rotate:5.0,Identity")
        assert not visit.overflows()
        tab.get_by_role("radio").nth(4).check()
        tab.locator("#operation2").select_option("Solarize")
        tab.locator("#magnitude2").fill("-7.5")
        shows(tab, "4 Rotate:5.0,Solarize:-7.5")
        found = explorer.weigh(4, "Rotate:5.0,Solarize:-7.5")
        assert tab.locator("#weight").text_content() == f"weight {found['weight']:.3f}"
        assert tab.locator("#rank").text_content() == f"rank {found['rank']} of {found['of']}"
        assert tab.locator("#after").get_attribute("src") == found["after"]
        assert tab.locator("#before").get_attribute("src") == found["before"]
        tab.locator("#operation1").select_option("Equalize")
        shows(tab, "4 Equalize,Solarize:-7.5")
        assert tab.locator("#magnitude1").is_disabled()
        assert all(url.startswith((address, "data:")) for url in visit.requests)
        assert visit.complaints == []
        assert not visit.overflows()


def test_by_keyboard_alone(browser, address: str) -> None:
    with browser.new_page() as tab:
        visit = Visit(tab)
        tab.goto(address)
        shows(tab, "0 Rotate:5.0,Identity")
        for _ in range(2):
            tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "magnitude1"
        tab.keyboard.press("ArrowRight")
        shows(tab, "0 Rotate:5.1,Identity")
        for name in ("operation2", "draw"):  # the second magnitude is disabled
            tab.keyboard.press("Tab")
            assert tab.evaluate("document.activeElement.id") == name
        before = tab.evaluate("document.body.dataset.shown")
        tab.keyboard.press("Enter")
        tab.locator(f"body:not([data-shown='{before}'])").wait_for()
        tab.keyboard.press("Tab")
        tab.keyboard.press("ArrowRight")
        tab.locator("body[data-shown^='1 ']").wait_for()
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        tab.locator(f"body[data-shown^='{AT_ONCE} ']").wait_for()
        assert visit.complaints == []
