"""The report in headless Chromium: what a reader does, and what an attacker would."""

import shutil
import time

import pytest
from bench_runs import dialogue, made_up, picture, verdict

from verl_steer.bench.files import PlayedTurn
from verl_steer.bench.pictures import put_image
from verl_steer.bench.report.bench_report import evaluate_all, write_report
from verl_steer.dialogue import Kind

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
Select = pytest.importorskip("selenium.webdriver.support.ui").Select
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver on PATH (Debian: chromium, chromium-driver)"
)
ATTACK = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"></script><!--"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bench of 120 dialogues, one of which is hostile wherever a text can stand."""
    folder = made_up(tmp_path_factory.mktemp("runs") / "run", 120, name=f"student {ATTACK}")
    shown = put_image(folder, picture(77))
    hostile = dialogue(
        "zz-hostile",
        2,
        subset=f"SPA{ATTACK}",
        category=ATTACK,
        images=((shown,), ()),
        system=ATTACK,
        kind=Kind.BENIGN,
        turns=(PlayedTurn(question=f"unheard-of {ATTACK}", reply=ATTACK, strategy=ATTACK), PlayedTurn(question="?")),
    )
    lines = (folder / "dialogues.jsonl").read_text() + hostile.model_dump_json() + "\n"
    (folder / "dialogues.jsonl").write_text(lines)
    with (folder / "verdicts" / "oracle.jsonl").open("a") as file:
        file.write(verdict("zz-hostile", 1, 3, reason=ATTACK).model_dump_json() + "\n")
    write_report(evaluate_all([folder], None), folder / "report")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A fresh Chromium that keeps its console's lines."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1280,1000",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, folder):
    """The page, freshly loaded; no console error may have come by the end of the test."""
    browser.get("about:blank")
    browser.get((folder / "report" / "index.html").as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def css(page, selector):
    return page.find_elements("css selector", selector)


def until(condition):
    """Waits for up to five seconds."""
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within five seconds")


def search(page, words):
    field = css(page, "#search")[0]
    field.clear()
    field.send_keys(words)
    until(lambda: len(css(page, "#list button")) <= 1)


def test_search_finds_the_one_dialogue_and_shows_it(page):
    assert "121 of 121" in css(page, "#count")[0].text
    search(page, "unheard-of")
    assert "1 of 121" in css(page, "#count")[0].text
    css(page, "#list button")[0].click()
    assert css(page, "#detail h3")[0].text == "zz-hostile"
    assert "unheard-of" in css(page, "#detail .asked")[0].text
    assert page.current_url.endswith("#d=0/zz-hostile")
    assert not css(page, "#run-label")[0].is_displayed()  # there is one run only


def test_an_address_leads_back_to_its_dialogue(page):
    address = page.current_url + "#d=0/zz-hostile"
    page.get("about:blank")
    page.get(address)
    assert css(page, "#detail h3")[0].text == "zz-hostile"


def test_filters_narrow_the_list_and_more_can_be_shown(page):
    assert len(css(page, "#list button")) == 40
    css(page, "#more")[0].click()
    assert len(css(page, "#list button")) == 80
    Select(css(page, "#outcome")[0]).select_by_visible_text("a failed turn")
    failed = int(css(page, "#count")[0].text.split()[0])
    Select(css(page, "#kind")[0]).select_by_visible_text("red_team")
    both = int(css(page, "#count")[0].text.split()[0])
    assert 0 < both < failed < 121
    assert all("red team" in item.text for item in css(page, "#list .about"))


def test_a_picture_is_visible(page):
    search(page, "zz-hostile")
    css(page, "#list button")[0].click()
    image = css(page, "#detail .shown img")[0]
    until(lambda: page.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 64)
    assert image.is_displayed()


def test_injected_markup_is_inert_text(page):
    search(page, "zz-hostile")
    css(page, "#list button")[0].click()
    time.sleep(0.3)
    assert page.title.startswith("STEER-Bench: student <script>")
    assert ATTACK in css(page, "#detail .replied")[0].text
    assert len(css(page, "script")) == 2
    assert not css(page, "img[onerror]") and not css(page, "#detail script")


def test_harm_is_veiled_until_it_is_asked_for(page):
    Select(css(page, "#outcome")[0]).select_by_visible_text("a failed turn")
    Select(css(page, "#kind")[0]).select_by_visible_text("red_team")
    css(page, "#list button")[0].click()
    veils = css(page, "#detail .asked .veil")
    assert veils and len(veils) == len(css(page, "#detail .asked"))
    bad = css(page, "#detail .replied.bad")[0]
    assert "Reply that failed" in bad.text
    bad.find_element("css selector", ".veil").click()
    assert "Reply that failed" not in bad.text and len(bad.text) > 100
    next(b for b in css(page, "#detail .bar button") if "texts" in b.text).click()
    assert not css(page, "#detail .veil")


def test_a_narrow_screen_scrolls_in_one_direction_only(page):
    page.set_window_size(500, 900)  # Chromium makes no narrower window
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
        pick = css(page, "#list button")[0]
        page.execute_script("arguments[0].scrollIntoView()", pick)
        pick.click()
        assert css(page, "#detail")[0].rect["width"] == 400
        css(page, "#detail .close")[0].click()
        assert not css(page, "#detail")[0].is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.set_window_size(1280, 1000)


def test_a_redacted_page_holds_no_text_and_no_picture(folder, browser):
    out = folder / "redacted"
    write_report(evaluate_all([folder], None), out, redact=True)
    html = (out / "index.html").read_text()
    assert "unheard-of" not in html and "as it is" not in html and "data:image/" not in html
    browser.get((out / "index.html").as_uri())
    assert "redacted" in css(browser, "#detail")[0].text
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_two_runs_are_told_apart(browser, tmp_path):
    folders = [made_up(tmp_path / name, 30, name=name) for name in ("first", "second")]
    write_report(evaluate_all(folders, None), tmp_path / "report")
    browser.get((tmp_path / "report" / "index.html").as_uri())
    Select(css(browser, "#run")[0]).select_by_visible_text("second")
    assert "30 of 60" in css(browser, "#count")[0].text
    assert {item.text.split(" · ")[0] for item in css(browser, "#list .about")} == {"second"}
