"""The pages as a reader meets them: wide and narrow, light and dark, with a mouse, a keyboard or a screen reader."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import RESULTS
from front_factories import make_study, make_trial, make_trials
from seed import FACTORED, factored_facts, joined_trials
from served import Server, serving
from tiny_study import wait_for

from autocompress.config import load_config
from autocompress.front import explain
from autocompress.front.choose import pick
from autocompress.front.summary import front_points, layer_rows
from autocompress.records import StudyState
from autocompress.study.store import StudyStore

PAGES = ("studies", "study", "trial", "compare", "bare", "login", "missing")


@pytest.fixture
def address(ids: dict[str, str]) -> dict[str, str]:
    one, other = ids["digits"], ids["digits-sweep"]
    return {
        "studies": "/", "study": f"/studies/{one}", "trial": f"/studies/{one}/trials/26",
        "compare": f"/compare?study={one}&study={other}", "bare": f"/studies/{ids['bare']}", "login": "/login",
        "missing": "/studies/s0000000000000000", "large": f"/studies/{ids['large']}",
    }  # fmt: skip


def visit(open_page: Any, site: Server, address: dict[str, str], name: str, **how: Any) -> Any:
    if name == "missing":
        how["expect"] = ("404",)
    page = open_page(site, address[name], signed_in=name != "login", **how)
    # Three dimensions drawn in software take their time: opened once, on a wide page.
    if name == "study" and how.get("width", 1280) > 1000:
        for summary in page.locator("details.wide > summary").all():
            summary.click()
        page.locator("#figure-importance .main-svg").first.wait_for(state="attached")
        page.locator("#figure-accuracy_3d canvas").first.wait_for(state="attached")
    return page


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_every_page_fits_breaks_no_rule_of_accessibility_and_has_its_picture_taken(
    width, scheme, site, address, open_page
) -> None:
    RESULTS.mkdir(exist_ok=True)
    rules, told = axe_script(), {}
    for name in PAGES:
        page = visit(open_page, site, address, name, width=width, scheme=scheme)
        page.evaluate(rules)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        told[name] = [f"{v['id']}: {n['target']} {n.get('failureSummary', '')}" for v in found for n in v["nodes"]]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.screenshot(path=RESULTS / f"{name}-{width}-{scheme}.png", full_page=True)
        page.close()
    assert told == {name: [] for name in PAGES}


def axe_script() -> str:
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("needs axe: pip install .[browser]")
    return (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8") + ";0"


@pytest.mark.slow
def test_the_pictures_of_the_readme(site, address, open_page) -> None:
    RESULTS.mkdir(exist_ok=True)
    for name, height in (("studies", 820), ("study", 880), ("trial", 720)):
        page = open_page(site, address[name], width=1100, height=height)
        if name == "study":
            limit(page, "maxDrop", 40)
        for title in page.locator("#h-front, #h-layers").all():
            title.evaluate("(title) => title.scrollIntoView()")
        page.screenshot(path=RESULTS / f"readme-{name}.png")
        assert (RESULTS / f"readme-{name}.png").stat().st_size < 150_000


def limit(page: Any, name: str, step: int) -> None:
    """Move a slider to one of its 100 steps, the last one as a reader does without a mouse."""
    slider = page.locator(f"#limit-{name}")
    slider.fill(str(step + 1))
    slider.press("ArrowLeft")


def test_the_sliders_dim_what_fails_and_name_the_best_that_remains(site, address, open_page) -> None:
    study, trials = make_study(), make_trials(90)
    page = open_page(site, address["study"])
    limit(page, "maxDrop", 20)  # of 100 steps over 5 points
    page.locator(".answer", has_text="of the front remain").wait_for()
    assert page.locator('output[for="limit-maxDrop"]').inner_text() == "1.0 points"
    front = [p for p in front_points(study, trials) if p.origin != "baseline"]
    for rule in ("knee", "small", "fast", "accurate"):
        page.locator("#limit-rule").select_option(rule)
        best = pick(front, study.baseline, rule, max_drop=0.01)
        page.locator(".answer b", has_text=f"Trial {best.trial}:").wait_for()
    kept = {p.trial for p in front if (study.baseline.test or 0) - (p.test or 0) <= 0.01 + 1e-9}
    faint = (
        "document.getElementById('figure-accuracy_size').data.filter(t => t.name === 'front, validation')"
        ".flatMap(t => t.customdata.filter((_, i) => Array.isArray(t.marker.opacity) && t.marker.opacity[i] < 0.2))"
    )
    beyond = {p.trial for p in front if p.origin != "anchor"} - kept
    # The figure follows the sliders a frame later, and the page lets nobody compile a condition in it.
    wait_for(lambda: set(page.evaluate(faint)) == beyond, seconds=60, what=f"the dimming of {sorted(beyond)}")
    assert kept - {best.trial} <= {p.trial for p in front}
    page.locator("#sliders button", has_text="No limits").click()
    page.locator('output[for="limit-maxDrop"]', has_text="no limit").wait_for()


def test_limits_that_nothing_keeps_are_said_in_words(site, address, open_page) -> None:
    page = open_page(site, address["study"])
    limit(page, "maxDrop", 0)
    limit(page, "maxSize", 0)
    page.locator(".answer", has_text="No point of the front keeps these limits").wait_for()
    assert page.locator("#sliders .primary").count() == 0


def test_a_point_can_be_clicked_and_opened(site, address, open_page) -> None:
    page = open_page(site, address["study"])
    mark = page.locator("#figure-accuracy_size .scatterlayer .trace path.point").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    link = page.locator("#chosen a.primary")
    link.wait_for()
    number = re.search(r"\d+", link.inner_text())[0]
    link.click()
    page.locator("body[data-ready]").wait_for(state="attached")
    assert page.url.endswith(f"/trials/{number}")


def test_the_table_behind_the_figures_has_every_measured_trial_and_turns_its_pages(site, address, open_page) -> None:
    measured = sorted(t.trial for t in make_trials(90) if t.measurement and t.measurement.val is not None)
    page = open_page(site, address["study"])
    page.locator("#trials-shown").select_option("measured")
    page.locator(".sort[data-key=trial]").click()
    seen: list[int] = []
    while True:
        seen += [int(text) for text in page.locator(".trials tbody th").all_inner_texts()]
        following = page.get_by_role("button", name="Next")
        if following.is_disabled():
            break
        following.click()
    assert seen == measured


def test_the_keyboard_alone_goes_from_the_top_of_a_study_to_a_trial(site, address, open_page) -> None:
    page = open_page(site, address["study"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.trials tbody') !== null"):
            break
    number = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/trials/{number}$"))


def test_low_ranks_and_cascades_are_told_in_words(site, ids, open_page) -> None:
    trials = joined_trials()
    (rank,) = [row.rank for row in layer_rows(factored_facts(), trials[2]) if row.name == FACTORED]
    assert rank > 0
    page = open_page(site, f"/studies/{ids['joined']}")
    assert "cascade, two networks in one file" in page.locator("#trials").inner_text()
    page = open_page(site, f"/studies/{ids['joined']}/trials/2")
    assert "factored: 1 layer to low rank, to save 50% of each" in page.locator("#plan").inner_text()
    page.locator("details.as-table summary").first.click()
    row = page.locator("#table-layers tr", has_text=FACTORED)
    assert row.locator("td").last.inner_text() == f"two factors of rank {rank}"
    page = open_page(site, f"/studies/{ids['joined']}/trials/30")
    assert page.locator("#layers-note").inner_text() == "Two networks; their layers: trial 2 and trial 1."
    assert page.locator("#plan li").first.inner_text().startswith("two networks: trial 2 answers, trial 1 where")
    assert not page.locator("figure").first.is_visible(), "it has no layers and no curve of its own"
    assert "the mean over samples" in page.locator("#tiles").inner_text()
    assert page.locator("#export").count() == 1
    assert page.locator("#refine").count() == 0
    page = open_page(site, f"/studies/{ids['joined']}/trials/31")
    page.locator("#message", has_text="None of 28 ways to join two results keeps").wait_for()
    assert page.locator("#layers-note").inner_text() == "No file was made."
    assert page.locator("#plan li, .actions button").count() == 0


def test_every_figure_has_a_name_and_a_table_beside_it(site, address, open_page) -> None:
    page = visit(open_page, site, address, "study")
    names = page.locator(".canvas").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert len(names) == len(set(names)) == 7
    for name in ("hypervolume", "time", "importance"):
        page.locator(f"#table-{name} tbody tr").first.wait_for(state="attached")
    page = open_page(site, address["trial"])
    layers = page.locator("#table-layers tbody tr")
    assert layers.count() == 20
    assert page.locator("#table-curve tbody tr").count() == 24


def test_thousands_of_trials_are_few_elements_and_all_of_them_points(site, address, open_page) -> None:
    page = open_page(site, address["large"])
    assert page.evaluate("document.querySelectorAll('*').length") < 6000
    assert page.locator(".trials tbody tr").count() <= 25
    drawn = page.evaluate(
        "(() => { const c = document.querySelector('#figure-accuracy_size canvas.cloud');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )
    assert drawn > 5000  # pixels: the crowd is really there
    page.locator("#trials-shown").select_option("all")
    page.locator(".count", has_text="of 3,000").wait_for()


def test_new_trials_arrive_without_a_reload(site, ids, open_page) -> None:
    name = "early"
    with StudyStore(site.workspace) as store:
        store.claim(name)
        store.update(name, state=StudyState.RUNNING)
        page = open_page(site, f"/studies/{ids[name]}")
        page.locator("#state", has_text="running").wait_for()
        page.locator("#trials-shown").select_option("all")
        page.locator(".count", has_text="1 to 7 of 7").wait_for()
        page.evaluate("document.body.dataset.mine = 'kept'")
        store.add_trials(name, make_trials(19, 2)[7:17])
        page.locator(".count", has_text="1 to 17 of 17").wait_for()
        assert page.locator("body").get_attribute("data-mine") == "kept"
        assert page.locator("#link-state").inner_text() == "Live"
        store.update(name, state=StudyState.INTERRUPTED)
        store.release(name)
        page.locator("#notice", has_text="interrupted").wait_for()
        page.get_by_role("button", name="Resume").wait_for()


def test_the_limits_of_a_study_stay_while_smaller_files_arrive(tmp_path, open_page) -> None:
    tables = {
        "model": {"factory": "resnet20"},
        "data": {"factory": "digits"},
        "search": {"max_size": "200kB", "max_drop": 0.1},
    }
    config = load_config(tables, name="bounded")
    with serving(tmp_path) as server, StudyStore(tmp_path) as store:
        store.create(make_study(name="bounded", config=config.model_dump(mode="json"), state=StudyState.RUNNING))
        trials = make_trials(19, 2)
        store.add_trials("bounded", trials[:1])
        store.claim("bounded")
        (entry,) = server.get("/api/v1/studies").json["items"]
        page = open_page(server, f"/studies/{entry['id']}")
        page.locator("#trials-shown").select_option("all")
        page.locator(".count", has_text="1 to 1 of 1").wait_for()
        store.add_trials("bounded", trials[1:])
        page.locator(".count", has_text="1 to 19 of 19").wait_for()
        assert page.locator('output[for="limit-maxSize"]').inner_text() == "200 kB"
        assert page.locator('output[for="limit-maxDrop"]').inner_text() == "10.0 points", "twice the usual range"
        limit(page, "maxSize", 99)
        chosen = page.locator('output[for="limit-maxSize"]').inner_text()
        assert page.locator("#beyond").is_hidden()
        store.add_trials("bounded", [make_trial(19, 0.9, 9_000, 0.05)])
        page.locator(".count", has_text="1 to 20 of 20").wait_for()
        page.locator("#beyond", has_text="1 point of the front loses more than the figures show").wait_for()
        assert page.locator('output[for="limit-maxSize"]').inner_text() == chosen
        store.update("bounded", state=StudyState.INTERRUPTED)
        store.release("bounded")


def discard(site: Server, study: str) -> None:
    """End a search and delete its study: the other tests count them."""
    site.post(f"/api/v1/studies/{study}/cancel")
    wait_for(lambda: site.send("DELETE", f"/api/v1/studies/{study}").status == 204, seconds=60, what="its end")


def test_a_study_is_deleted_after_a_question(site, open_page) -> None:
    made = site.post("/api/v1/studies", {"builtin": "digits", "name": "doomed"}).json
    site.post(f"/api/v1/studies/{made['id']}/cancel")
    page = open_page(site, f"/studies/{made['id']}")
    page.locator("#state", has_text="cancelled").wait_for()
    question = page.get_by_role("dialog", name="Delete doomed?")
    for answer in ("Escape", "Keep it"):
        page.locator("#delete").click()
        question.wait_for()
        page.keyboard.press(answer) if answer == "Escape" else question.get_by_role("button", name=answer).click()
        question.wait_for(state="detached")
        assert page.evaluate("document.activeElement.id") == "delete", "the reader is where the question came from"
    assert site.get(f"/api/v1/studies/{made['id']}").status == 200
    page.locator("#delete").click()
    question.get_by_role("button", name="Delete it for good").click()
    page.wait_for_url(f"{site.url}/")
    assert site.get(f"/api/v1/studies/{made['id']}").status == 404
    page.locator("#done a", has_text="digits-sweep").wait_for()
    assert page.locator("#done a", has_text="doomed").count() == 0


def test_a_study_that_runs_offers_no_deletion(site, open_page) -> None:
    made = site.post("/api/v1/studies", {"builtin": "digits", "name": "busy"}).json
    try:
        page = open_page(site, f"/studies/{made['id']}", expect=("404",))  # it may be reading when the study goes
        page.locator("#cancel").wait_for()
        assert page.locator("#delete").count() == 0
    finally:
        discard(site, made["id"])
    page.locator("#notice", has_text="was deleted").wait_for()


def test_a_name_of_a_hundred_letters_fits_a_phone(site, open_page) -> None:
    made = site.post("/api/v1/studies", {"builtin": "digits", "name": "x" * 100}).json
    try:
        for path in ("/", f"/studies/{made['id']}"):
            page = open_page(site, path, width=390)
            page.get_by_text("x" * 100).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
            page.close()  # or it asks for the study once more when that is gone
    finally:
        discard(site, made["id"])


def test_events_take_nothing_out_of_the_readers_hands(site, ids, open_page) -> None:
    page = open_page(site, "/")
    mark = f"compare {ids['digits']}"
    page.locator(f"[data-focus='{mark}']").focus()
    page.evaluate("document.activeElement.id = 'before'")
    made = site.post("/api/v1/studies", {"builtin": "digits", "name": "another"}).json
    try:
        page.locator("#before").wait_for(state="detached")  # the list was made again
    finally:
        discard(site, made["id"])
    assert page.evaluate("document.activeElement.dataset.focus") == mark


def test_names_of_layers_leave_room_for_their_bars(site, address, open_page) -> None:
    page = open_page(site, address["trial"], width=390)
    names = page.locator("#figure-layers .yaxislayer-above text").all_text_contents()
    assert len(names) == 4 * 20
    assert max(map(len, names)) <= 18
    assert page.evaluate("document.getElementById('figure-layers')._fullLayout.xaxis._length") > 150


def test_what_the_server_refuses_is_said_at_its_field(site, address, open_page) -> None:
    page = open_page(site, address["studies"], expect=("422",))
    page.locator("#budget").fill("soon")
    page.locator("#start").click()
    error = page.locator("[data-field~='search.budget'] .error")
    error.wait_for()
    assert "soon" in error.inner_text()
    assert page.locator("#budget").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "budget"
    page.locator("#budget").fill("90s")
    page.locator("#max-drop").fill("a lot")
    page.locator("#start").click()
    page.locator("[data-field='search.max_drop'] .error", has_text="a lot is no number").wait_for()
    assert page.locator("[data-field~='search.budget'] .error").count() == 0


def test_the_form_asks_for_what_it_says(site, address, open_page) -> None:
    page = open_page(site, address["studies"])
    page.locator("#budget").fill("90s")
    page.locator("#max-drop").fill("1")
    page.locator("#max-size").fill("50")
    page.locator("[name=objective][value=latency]").uncheck()
    page.locator("#launch-form summary").click()
    page.locator("#name").fill("from-the-form")
    with page.expect_request(lambda r: r.method == "POST") as sent:
        page.locator("#start").click()
    page.wait_for_url(re.compile("/studies/s"))
    page.get_by_role("button", name="Cancel the search").wait_for()
    body = json.loads(sent.value.post_data)
    assert body == {
        "builtin": "digits", "budget": "90s", "name": "from-the-form", "device": "local",
        "set": {"search.max_drop": 0.01, "search.max_size": "50kB", "search.objectives": ["accuracy", "size"]},
    }  # fmt: skip
    page.get_by_role("button", name="Cancel the search").click()
    page.get_by_role("button", name="Really? Press again to end it").click()
    page.locator("#state", has_text="cancelled").wait_for()


def test_a_trial_gives_its_command_and_starts_a_search_around_it(site, address, open_page) -> None:
    page = open_page(site, address["trial"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    page.locator("#notice", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "autocompress export digits --pick trial:26 --out digits-trial-26"
    page.locator("#refine-budget").fill("3m")
    page.locator("#refine").click()
    page.locator("#notice a", has_text="digits-around-26").wait_for()
    (made,) = site.get("/api/v1/studies?name=digits-around-26").json["items"]
    assert made["budget_s"] == 180
    site.post(f"/api/v1/studies/{made['id']}/cancel")


def test_the_comparison_has_the_numbers_of_the_interface(site, address, open_page) -> None:
    document = site.get("/api/v1" + address["compare"]).json
    page = open_page(site, address["compare"])
    shown = page.locator("#summary").inner_text()
    assert f"{document['studies'][1]['hypervolume_difference']['val']:+.3f}" in shown
    assert page.locator("#matched tbody tr").count() == len(document["matched"])
    assert page.locator("#levels tbody tr").count() == 5


def test_a_wrong_token_is_told_and_the_right_one_leads_back(site, address, open_page) -> None:
    page = open_page(site, address["login"], signed_in=False, expect=("401",))
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.locator("#token-error").wait_for()
    page.locator("#token").fill("t" * 43)
    page.get_by_role("button", name="Sign in").click()
    page.locator("body[data-ready]").wait_for(state="attached")
    assert page.locator("h1").inner_text() == "Studies"


def test_the_theme_is_the_readers_and_stays(site, address, open_page) -> None:
    page = open_page(site, address["study"])
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.locator("#theme").click()
    page.reload()
    page.locator("body[data-ready]").wait_for(state="attached")
    assert page.locator("#theme-name").inner_text() == "dark"
    assert page.evaluate(paper) != light
    ink = page.evaluate("document.getElementById('figure-accuracy_size').layout.font.color")
    assert ink == "rgb(170, 180, 190)"
    page.evaluate("localStorage.clear()")


def test_print_is_light_and_leaves_the_controls_out(site, address, open_page) -> None:
    page = open_page(site, address["study"], scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#limit-maxDrop").is_visible()
    assert page.locator(".trials").is_visible()


def test_the_pages_write_numbers_as_the_command_line_does(site, address, open_page) -> None:
    values = [0.0, 1e-5, 0.00051, 0.0094, 0.0095, 0.1, 0.999, 1.0, 9.99, 9.996, 63.4, 99.96, 119.6, 7199.0, 9000.0,
              61_044, 999_600, 1_094_138, 99_960_000, 2.5e9]  # fmt: skip
    page = open_page(site, address["studies"])
    told = page.evaluate(
        "async (values) => { const f = await import('/static/format.js');"
        "return values.map((v) => [f.bytes(v), f.ms(v), f.duration(v), f.drop(v), f.drop(-v, 'minimize')]); }",
        values,
    )
    expected = [
        [explain.format_bytes(v), explain.format_ms(v), explain.format_duration(v), explain.format_drop(v),
         explain.format_drop(-v, direction="minimize")]
        for v in values
    ]  # fmt: skip
    assert told == expected
