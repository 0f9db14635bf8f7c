"""The page in a real browser, against the service with its bundled networks and with the arithmetic ones of
tests/app/conftest.py. Skipped where playwright or a Chromium is missing."""

import contextlib
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ultralytics

from app.service import Service
from app.settings import Settings
from tests.app.cli.conftest import LiveServer
from tests.app.conftest import FakePair, pair_folder, picture_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
expect = sync_api.expect

BUS = Path(ultralytics.__file__).parent / "assets" / "bus.jpg"
HARD, EASY, EXTREME = 0.45, 0.41, 0.55  # difficulties, at p = 0.5 of the arithmetic networks' calibration
ROUTE_COLOURS = {"easy": (0, 158, 115), "hard": (230, 159, 0), "extremely hard": (204, 121, 167)}
FAILED_REQUEST = (
    "Failed to load resource"  # Chromium's own line for every 4xx and 5xx, which are not the page's fault
)
PHONE = {"width": 360, "height": 740}

__all__ = ["pair_folder"]


def chromium_path(playwright: Any) -> str:
    bundled = playwright.chromium.executable_path
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None and not Path(bundled).exists():
        pytest.skip("needs a Chromium: apt-get install chromium, or playwright install chromium")
    return found or bundled


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of the module, not of the session: playwright keeps an event loop running, which others could not bear."""
    with sync_api.sync_playwright() as playwright:
        arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        browser = playwright.chromium.launch(executable_path=chromium_path(playwright), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundled(browser: Any) -> Iterator[LiveServer]:  # noqa: ARG001  without a browser there is nothing to load it for
    """The service as it is delivered."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.service.warm", lambda *_: None)
        settings = Settings(_env_file=None, device="cpu", runtime="eager", mode="fixed")
        server = LiveServer(Service(settings))
    yield server
    server.stop()


@pytest.fixture
def live(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LiveServer]]:
    """`live(admin_token="x", ...)`: a service whose thresholds at p = 0.5 are k1 = 0.42 and k2 = 0.52."""
    monkeypatch.setattr("app.service.load_pair", lambda *_: FakePair(None))
    monkeypatch.setattr("app.service.warm", lambda *_: None)
    started: list[LiveServer] = []

    def start(**settings: Any) -> LiveServer:
        usual = {"mode": "fixed", "policy": "band", "min_score": 0.3}
        service = Service(Settings(_env_file=None, pair=str(pair_folder), **usual | settings))
        started.append(LiveServer(service))
        return started[-1]

    yield start
    for server in started:
        server.stop()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens a server's page. Nothing may go wrong in it unnoticed, and nothing may be asked of anybody else."""
    contexts, wrong, asked = [], [], set()

    def open_page(server: LiveServer, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: line.type in ("error", "warning") and wrong.append(line.text))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in wrong if not line.startswith(FAILED_REQUEST)] == []
    assert {
        url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1)", url)
    } == set()


def test_the_description_of_the_api_is_drawn_and_asks_nobody_else(
    live: Callable[..., LiveServer], visit: Visit
) -> None:
    page = visit(live())
    page.get_by_role("link", name="API", exact=True).click()
    expect(page.get_by_role("heading", name="DynPose")).to_be_visible()
    expect(page.get_by_role("button", name="Authorize")).to_be_visible()
    page.locator("#operations-pose-pose_pose_post").get_by_role("button").first.click()
    expect(page.get_by_text("Find the people of one or more pictures and their keypoints.")).to_be_visible()


def png(name: str, *difficulties: float) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": picture_of(list(difficulties))}


def choose(page: Any, *files: Any) -> None:
    page.set_input_files("#files", list(files))


def drop(page: Any, data: bytes, name: str, event: str = "drop") -> None:
    """What the browser would tell the page of a file that is dropped on it, or pasted."""
    page.evaluate(
        """([bytes, name, event]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
            const init = {bubbles: true, cancelable: true};
            const told = event === "paste"
                ? new ClipboardEvent("paste", {...init, clipboardData: data})
                : new DragEvent("drop", {...init, dataTransfer: data});
            document.getElementById("stage").dispatchEvent(told);
        }""",
        [list(data), name, event],
    )


def turn(page: Any, slider: str, value: float) -> None:
    expect(page.locator(slider)).to_be_enabled()
    page.locator(slider).evaluate(
        "(it, value) => { it.value = value; it.dispatchEvent(new Event('input')); }", str(value)
    )


def answered(page: Any, people: int) -> None:
    expect(page.locator("#table tbody tr")).to_have_count(people, timeout=60_000)


def column(page: Any, index: int) -> list[str]:
    return page.locator(f"#table tbody tr td:nth-child({index})").all_inner_texts()


def routes(page: Any) -> list[str]:
    return column(page, 3)


def pixels(page: Any, colour: tuple[int, int, int]) -> int:
    """How many of the picture's canvas have a colour exactly."""
    return page.locator("#picture").evaluate(
        """(canvas, [r, g, b]) => {
            const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
            pen.drawImage(canvas, 0, 0);
            const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let i = 0; i < data.length; i += 4) found += data[i] === r && data[i + 1] === g && data[i + 2] === b;
            return found;
        }""",
        list(colour),
    )


def test_a_dropped_photo_shows_its_people_in_the_colours_of_their_routes(bundled: LiveServer, visit: Visit):
    page = visit(bundled)
    expect(page.locator("#people")).to_be_hidden()
    drop(page, BUS.read_bytes(), "bus.jpg")
    answered(page, 4)
    for route, colour in ROUTE_COLOURS.items():
        assert (pixels(page, colour) > 500) == (route in routes(page)), route
    assert (
        page.locator("#picture").get_attribute("aria-label")
        == "bus.jpg with 4 people, listed in the table below"
    )
    difficulties = [float(text) for text in column(page, 2)]
    assert difficulties == sorted(difficulties)
    assert page.locator("#crops > li").count() == 4
    assert "4 people" in page.inner_text("#moved")


def test_the_slider_asks_again_and_says_who_moved_and_what_it_cost(bundled: LiveServer, visit: Visit):
    page = visit(bundled)
    choose(page, str(BUS))
    answered(page, 4)
    turn(page, "#p", 0)
    expect(page.locator("#cost-now")).to_have_text("p = 0.00")
    assert {net.partition(",")[0] for net in column(page, 4)} == {"small"}
    assert not page.is_checked("#follow")
    turn(page, "#p", 0.7)  # on the way: only where the slider stays is asked for
    turn(page, "#p", 1)
    expect(page.locator("#cost-now")).to_have_text("p = 1.00")
    assert column(page, 4) == ["large, moved"] * 4
    assert re.match(
        r"From p = 0\.00 to 1\.00: 4 people moved from the small to the large net; "
        r"router and pose nets took [\d.,]+ ms",
        page.inner_text("#moved"),
    )
    assert pixels(page, ROUTE_COLOURS["hard"]) > 500
    rows = page.locator("#cost tbody tr").all_inner_texts()
    assert [re.sub(r"[\d.,]+", "0", row).split("\t") for row in rows] == [
        [name, "0", "0", change]
        for name, change in zip(
            ("Router and pose nets", "Whole answer", "Round trip"),
            [re.sub(r"[\d.,]+", "0", row).split("\t")[-1] for row in rows],
            strict=True,
        )
    ]
    assert page.locator("#tries circle").count() == 3
    page.check("#follow")
    expect(page.locator("#cost-now")).to_have_text("p = 0.50")


def test_both_nets_are_shown_on_demand(bundled: LiveServer, visit: Visit):
    page = visit(bundled)
    choose(page, str(BUS))
    answered(page, 4)
    page.click("#compare")
    expect(page.locator("#crops.both canvas")).to_have_count(8, timeout=60_000)
    assert page.locator("#crops .chosen").count() == 4
    assert re.search(r"the small net took .* ms and the large one .* ms", page.inner_text("#compare-note"))
    apart = page.locator("#crops .quiet").all_inner_texts()
    assert len(apart) == 4
    assert any(not text.startswith("Joints 0 %") for text in apart)
    page.click("#compare")
    expect(page.locator("#crops canvas")).to_have_count(4)


def test_what_both_nets_are_asked_of_one_picture_changes_nothing_of_another(live, visit: Visit):
    page = visit(live())
    choose(page, png("a.png", HARD), png("b.png", EASY))
    expect(page.locator("#album button.done")).to_have_count(2)
    held: list[Any] = []
    page.route("**/pose?estimator=small", lambda route: held.append(route))
    page.click("#compare")
    expect(page.locator("#compare-note")).to_contain_text("Asking both nets")
    page.locator("#album button").nth(1).click()
    for _ in range(500):
        page.wait_for_timeout(20)
        if len(held) == 2:
            break
    with contextlib.suppress(sync_api.Error):  # nobody waits for this one any more
        held[0].fulfill(status=500, body="{}")
    held[1].continue_()
    expect(page.locator("#crops.both canvas")).to_have_count(2)
    expect(page.locator("#compare-note")).to_contain_text("the small net took")


def test_a_bad_picture_is_named_in_a_sentence_and_the_others_are_answered(live, visit: Visit):
    page = visit(live())
    text = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"}
    choose(page, png("good.png", EASY, HARD), text, png("other.png", HARD))
    answered(page, 2)
    message = page.locator("#messages li")
    expect(message).to_contain_text("“notes.jpg” cannot be read: not a picture of a known format")
    expect(page.locator("#album button.done")).to_have_count(2)
    expect(page.locator("#album button.failed")).to_have_count(1)
    page.click("#album button.failed")
    expect(page.locator("#overlay-note")).to_contain_text("no answer for notes.jpg")
    page.get_by_role("button", name="other.png with 1 person").click()
    answered(page, 1)
    page.get_by_role("button", name="Dismiss this message").click()
    expect(message).to_have_count(0)
    drop(page, b"x", "notes.txt")
    page.click("#clear")
    expect(page.locator("#invitation")).to_be_visible()


def test_pictures_are_pasted_and_photographed(live, visit: Visit):
    page = visit(live())
    drop(page, picture_of([HARD], "JPEG"), "pasted.jpg", event="paste")
    expect(page.locator("#picture")).to_have_attribute("aria-label", re.compile("pasted.jpg"))
    page.click("#camera")
    expect(page.locator("#camera-dialog")).to_be_visible()
    page.click("#snap")  # waits until it is enabled, with the first frame
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(page.locator("#picture")).to_have_attribute("aria-label", "camera.jpg with 0 people")
    expect(page.locator("#nobody")).to_be_visible()
    assert page.locator("#camera-view").evaluate("it => it.srcObject") is None
    page.click("#camera")
    expect(page.locator("#snap")).to_be_focused()
    page.click("#turn-camera")
    expect(page.locator("#snap")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#camera-dialog")).to_be_hidden()


def test_without_a_camera_no_button_offers_one(live, visit: Visit, browser: Any):
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    page = context.new_page()
    page.goto(live().url)
    expect(page.locator("#state.ready")).to_be_visible()
    assert page.locator("#camera").is_hidden()
    context.close()
    del visit


def test_a_format_that_the_browser_does_not_know_still_has_its_people(live, visit: Visit):
    page = visit(live())
    choose(page, {"name": "scan.tiff", "mimeType": "image/tiff", "buffer": picture_of([EASY], "TIFF")})
    answered(page, 1)
    expect(page.locator("#overlay-note")).to_contain_text("cannot show scan.tiff")
    assert pixels(page, ROUTE_COLOURS["easy"]) > 20


def test_the_service_s_own_p_is_turned_and_what_follows_it_is_asked_again(live, visit: Visit):
    server = live()
    page = visit(server)
    choose(page, png("row.png", EASY, HARD, EXTREME))
    answered(page, 3)
    assert routes(page) == ["easy", "hard", "extremely hard"]
    expect(page.locator("#apply")).to_be_disabled()
    turn(page, "#service-p", 1)
    expect(page.locator("#service-p-value")).to_have_text("0.50 → 1.00")
    page.click("#apply")
    expect(page.locator("#config-note")).to_contain_text("Turned from 0.50 to 1.00")
    expect(page.locator("#cost-now")).to_have_text("p = 1.00")
    assert routes(page) == ["hard"] * 3
    assert server.service.config.live.p == 1


def patch(server: LiveServer, p: float) -> None:
    body, kind = json.dumps({"p": p}).encode(), {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/config", body, kind, method="PATCH")).close()


def test_a_p_between_the_slider_s_steps_is_no_change_that_waits(live, visit: Visit):
    page = visit(live(p=0.333))
    expect(page.locator("#service-p-value")).to_have_text("0.33")
    expect(page.locator("#apply")).to_be_disabled()
    turn(page, "#service-p", 0.34)
    expect(page.locator("#service-p-value")).to_have_text("0.33 → 0.34")


def test_somebody_else_s_change_is_seen_and_not_overwritten(live, visit: Visit):
    server = live()
    page = visit(server)
    expect(page.locator("#service-p-value")).to_have_text("0.50")
    patch(server, 0.25)
    expect(page.locator("#service-p-value")).to_have_text("0.25")
    page.route("**/metrics", lambda route: route.abort())  # so that the page cannot know of the next one
    turn(page, "#service-p", 0.75)
    patch(server, 0.1)
    page.click("#apply")
    expect(page.locator("#config-note")).to_contain_text("p is 0.10 now")
    assert server.service.config.live.p == 0.1
    page.click("#apply")
    expect(page.locator("#config-note")).to_contain_text("Turned from 0.10 to 0.75")
    expect(page.locator("#state")).to_have_text("The service cannot be reached.")


def test_the_admin_token_is_asked_for_when_it_is_needed_and_stays_in_the_tab(live, visit: Visit):
    server = live(admin_token="s3cret")
    page = visit(server)
    field = page.locator("#admin-token")
    expect(field).to_be_hidden()
    turn(page, "#service-p", 0.3)
    page.click("#apply")
    expect(field).to_be_focused()
    expect(page.locator("#config-note")).to_contain_text("needs its admin token")
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#config-note")).to_contain_text("refuses this token")
    assert page.evaluate("sessionStorage.length") == 0
    field.fill("s3cret")
    field.press("Enter")
    expect(page.locator("#config-note")).to_contain_text("Turned from 0.50 to 0.30")
    assert server.service.config.live.p == 0.3
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage['dynpose.admin']]") == [
        0,
        "",
        "s3cret",
    ]
    page.reload()
    turn(page, "#service-p", 0.4)
    page.click("#apply")
    expect(page.locator("#config-note")).to_contain_text("to 0.40")


def test_the_token_for_pictures_is_asked_for_once(live, visit: Visit):
    page = visit(live(pose_token="open"))
    choose(page, png("row.png", EASY), png("other.png", HARD))
    field = page.locator("#pose-token")
    expect(field).to_be_focused()
    expect(page.locator("#messages li")).to_contain_text("asks for a token")
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#messages li")).to_contain_text("refuses this token")
    field.fill("with ünlaut")
    field.press("Enter")
    expect(page.locator("#messages li")).to_contain_text("without spaces or accents")
    field.fill("open")
    field.press("Enter")
    answered(page, 1)
    expect(page.locator("#album button.done")).to_have_count(2)
    expect(page.locator("#pose-token-form")).to_be_hidden()
    expect(page.locator("#messages li")).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [(429, "overloaded", "The service is busy"), (503, "not_ready", "not ready yet (warming)")],
)
def test_a_busy_or_starting_service_is_waited_for(live, visit: Visit, status: int, code: str, says: str):
    page = visit(live())
    refusals = iter([True])

    def refuse(route: Any) -> None:
        if not next(refusals, False):
            return route.continue_()
        detail = "the service is not ready: warming" if status == 503 else "no room now"
        body = json.dumps({"status": status, "code": code, "detail": detail})
        return route.fulfill(
            status=status, body=body, headers={"Retry-After": "2", "Content-Type": "application/problem+json"}
        )

    page.route("**/pose?*", refuse)
    choose(page, png("row.png", EASY))
    expect(page.locator("#messages li")).to_contain_text(f"{says}. Asking again in 2 s.")
    answered(page, 1)
    expect(page.locator("#messages li")).to_have_count(0)


def test_a_service_that_is_replaced_is_waited_for(live, visit: Visit):
    server = live()
    page = visit(server)
    expect(page.locator("#state.ready")).to_be_visible()
    server.service.status = "draining"
    choose(page, png("row.png", EASY))
    expect(page.locator("#messages li")).to_contain_text("shutting down or being replaced")
    expect(page.locator("#state")).to_contain_text("Not ready: draining")
    server.service.status = "ready"
    answered(page, 1)
    expect(page.locator("#state.ready")).to_be_visible()


def test_a_service_that_is_away_is_named_and_asked_again(live, visit: Visit):
    page = visit(live())
    page.route("**/pose?*", lambda route: route.abort())
    choose(page, png("row.png", EASY))
    expect(page.locator("#messages li")).to_contain_text("cannot be reached. Asking again in")
    page.unroute("**/pose?*")
    answered(page, 1)
    expect(page.locator("#messages li")).to_have_count(0)


def test_of_many_pictures_each_can_be_shown_again(live, visit: Visit):
    """Only some stay decoded; the row's buttons stay what they are while answers come."""
    page = visit(live())
    choose(page, *(png(f"{index}.png", EASY) for index in range(9)))
    page.evaluate("window.first = document.querySelector('#album button')")
    expect(page.locator("#album button.done")).to_have_count(9)
    assert page.evaluate("window.first === document.querySelector('#album button')")
    for name in ("8.png", "0.png"):
        page.locator(f"#album button[aria-label^='{name}']").click()
        expect(page.locator("#picture")).to_have_attribute("aria-label", re.compile(f"^{name} with 1 person"))
        expect(page.locator("#overlay-note")).to_be_hidden()


def test_a_photo_that_cannot_be_read_any_more_is_to_be_chosen_again(live, visit: Visit, tmp_path: Path):
    page = visit(live())
    photo = tmp_path / "row.png"
    photo.write_bytes(picture_of([EASY]))
    page.set_input_files("#files", str(photo))
    answered(page, 1)
    photo.unlink()
    page.fill("#p", "1")
    expect(page.locator("#messages li")).to_contain_text("“row.png” cannot be read any more")


def test_settings_are_known_where_a_proxy_hides_the_metrics(live, visit: Visit):
    server = live()
    page = visit(server)
    page.route("**/metrics", lambda route: route.fulfill(status=403))
    page.route("**/readyz", lambda route: route.fulfill(status=404))
    page.reload()
    expect(page.locator("#service-p")).to_be_enabled()


def test_the_live_figures_come_from_the_metrics_while_the_page_is_looked_at(live, visit: Visit):
    server = live()
    page = visit(server)
    expect(page.locator("#state")).to_contain_text("Ready: fake pair on cpu")
    expect(page.locator("#pictures-rate")).to_have_text("0.0")
    choose(page, png("row.png", EASY, HARD, HARD, EXTREME))
    expect(page.locator("#ratio")).to_have_attribute(
        "aria-label", "25 % easy, 50 % hard, 25 % extremely hard"
    )
    expect(page.locator("#people-rate")).not_to_have_text("0.0")
    assert float(page.inner_text("#p50")) > 0
    assert "50 % of 4 people, asked for 50 %" in page.inner_text("#ratio-words")
    scrapes: list[str] = []
    page.on("request", lambda request: request.url.endswith("/metrics") and scrapes.append(request.url))
    hide = """(state) => {
        Object.defineProperty(document, "visibilityState", {value: state, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, "hidden")
    page.wait_for_timeout(300)
    scrapes.clear()
    page.wait_for_timeout(2500)
    assert scrapes == []
    page.evaluate(hide, "visible")
    page.wait_for_timeout(300)
    assert len(scrapes) == 1


def test_prometheus_text_is_read_and_two_scrapes_make_a_quantile(live, visit: Visit):
    page = visit(live())
    before = 'h_bucket{le="0.1"} 5\nh_bucket{le="1"} 5\nh_bucket{le="+Inf"} 5\nc_total{a="x"} 9\nc_total{a="y"} 1\n'
    now = (
        "# HELP h_bucket text\n"
        'h_bucket{le="0.1"} 5\nh_bucket{le="1"} 15.0\nh_bucket{le="+Inf"} 15\nc_total{a="x"} 2 1700000000\n'
        'c_total{a="y"} 4e0\nodd{q="a \\"b\\" \\\\ {c}",r="+"} -Inf\n'
    )
    found = page.evaluate(
        """async ([before, now]) => {
            const it = await import("/static/prometheus.js");
            const [a, b] = [it.parse(before), it.parse(now)];
            return {
                odd: b.at(-1).labels, low: b.at(-1).value === -Infinity, sum: it.total(b, "c_total"),
                none: Number.isNaN(it.total(b, "c")), restarted: it.growth(a, b, "c_total", {a: "x"}),
                grown: it.growth(a, b, "c_total", {a: "y"}), median: it.quantile(a, b, "h", 0.5),
                still: it.quantile(b, b, "h", 0.5),
            };
        }""",
        [before, now],
    )
    assert found == {
        "odd": {"q": 'a "b" \\ {c}', "r": "+"},
        "low": True,
        "sum": 6,
        "none": True,
        "restarted": 2,
        "grown": 3,
        "median": pytest.approx(0.55),
        "still": None,
    }


def test_a_phone_shows_everything_without_scrolling_sideways(live, visit: Visit):
    page = visit(live(admin_token="x"), viewport=PHONE, has_touch=True, is_mobile=True)
    bad = {"name": f"{'long' * 30}.jpg", "mimeType": "image/jpeg", "buffer": b"no"}
    choose(page, png("row.png", EASY, HARD, EXTREME), bad, *[png(f"{n}.png", HARD) for n in range(8)])
    answered(page, 3)
    turn(page, "#p", 0.9)
    expect(page.locator("#cost-now")).to_have_text("p = 0.90")
    turn(page, "#service-p", 1)
    page.click("#apply")
    expect(page.locator("#admin-token")).to_be_visible()
    page.click("#compare")
    expect(page.locator("#crops.both canvas")).to_have_count(6)
    expect(page.locator("#messages li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".wide").evaluate("it => it.scrollWidth - it.clientWidth") <= 0
    small = page.locator("button:visible, .button:visible, input[type=range]:visible").evaluate_all(
        "all => all.map(it => it.getBoundingClientRect()).filter(it => it.height < 24 || it.width < 24).length"
    )
    assert small == 0


def test_the_keyboard_alone_reaches_and_moves_everything(live, visit: Visit):
    page = visit(live())
    choose(page, png("row.png", EASY, HARD))
    answered(page, 2)
    expect(page.locator("#service-p")).to_be_enabled()
    page.evaluate("document.activeElement.blur()")
    order = []
    for _ in range(20):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    wanted = [
        "Skip to the picture",
        "API",
        "files",
        "camera",
        "clear",
        "p",
        "follow",
        "compare",
        "1",
        "2",
        "service-p",
    ]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)
    page.focus("#p")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#cost-now")).to_have_text("p = 0.55")
    before = pixels(page, ROUTE_COLOURS["easy"])
    page.get_by_role("button", name="Person 2: show alone").focus()
    assert pixels(page, ROUTE_COLOURS["easy"]) < before
    width = page.locator("#table tbody tr:nth-child(2) button").evaluate(
        "it => getComputedStyle(it).outlineWidth"
    )
    assert width == "3px"


UNNAMED = """() => {
    const named = (it) => (it.getAttribute("aria-label") || it.textContent.trim()
        || [...(it.labels ?? [])].map((label) => label.textContent.trim()).join(""));
    const wrong = [...document.querySelectorAll("button, input, a, canvas[role], [role=img], [role=region], ul, table")]
        .filter((it) => it.id !== "album" && it.id !== "messages" || it.hidden === false)
        .filter((it) => !named(it)).map((it) => it.outerHTML.slice(0, 80));
    const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
    const refers = [...document.querySelectorAll("[for], [aria-labelledby], [aria-describedby]")]
        .flatMap((it) => ["for", "aria-labelledby", "aria-describedby"].map((name) => it.getAttribute(name)))
        .filter((id) => id && !document.getElementById(id));
    const images = [...document.querySelectorAll("img:not([alt])")].length;
    const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((it) => Number(it.tagName[1]));
    return {wrong, twice: ids.filter((id, index) => ids.indexOf(id) !== index), refers, images,
        jumps: levels.filter((level, index) => index > 0 && level > levels[index - 1] + 1), first: levels[0]};
}"""


def test_everything_has_a_name_and_headings_an_order(live, visit: Visit):
    page = visit(live())
    choose(page, png("row.png", EASY, HARD), png("other.png", HARD))
    answered(page, 2)
    page.click("#compare")
    expect(page.locator("#crops.both canvas")).to_have_count(4)
    assert page.evaluate(UNNAMED) == {
        "wrong": [],
        "twice": [],
        "refers": [],
        "images": 0,
        "jumps": [],
        "first": 1,
    }
    assert page.locator("html").get_attribute("lang") == "en"
    for region in ("#messages", "#moved", "#compare-note", "#config-note"):
        assert page.locator(region).get_attribute("aria-live") == "polite"
    assert page.locator("main").count() == page.locator("header").count() == page.locator("nav").count() == 1


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


COLOURS = """(selector) => {
    const it = document.querySelector(selector);
    let behind = it;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [getComputedStyle(it).color, getComputedStyle(behind).backgroundColor, getComputedStyle(it).borderTopColor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_controls_stand_out_in_light_and_in_dark(live, visit: Visit, scheme: str):
    page = visit(live(), color_scheme=scheme)
    choose(page, png("row.png", EASY, HARD), {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no"})
    answered(page, 2)
    expect(page.locator("#messages li")).to_have_count(1)
    for words in ("body", "h1", ".top p", "nav a", "h2", ".primary", "#clear", "#p-ends", "#routes small", "#moved",
                  "#cost thead th", "figcaption", "#table td", "#state", "#figures dt", "#messages span",
                  "#album span", "#album .failed span"):  # fmt: skip
        colour, behind, _ = page.evaluate(COLOURS, words)
        assert contrast(colour, behind) >= 4.5, (words, colour, behind)
    _, behind, edge = page.evaluate(COLOURS, "#clear")
    assert contrast(edge, behind) >= 3
    assert (luminance(page.evaluate(COLOURS, "body")[1]) < 0.1) == (scheme == "dark")
    for tag in ROUTE_COLOURS.values():
        assert contrast(f"rgb{tag}", "rgb(20, 20, 20)") >= 4.5


def test_nothing_moves_for_those_who_asked_for_less_motion(live, visit: Visit):
    for motion, moving in (("reduce", False), ("no-preference", True)):
        page = visit(live(), reduced_motion=motion)
        look = "it => [getComputedStyle(it).animationName, getComputedStyle(it).transitionDuration]"
        assert (page.locator("#busy").evaluate(look)[0] != "none") is moving
