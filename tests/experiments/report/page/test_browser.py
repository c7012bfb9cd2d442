"""The page in a real browser: what it shows, state in the URL's hash, keyboard, dark mode, hostile names."""

import numpy as np
import pytest

from experiments.report.attributions import Attributions
from tests.experiments.report.page.browser import dom, needs_browser, read
from tests.experiments.report.page.made import attributions, images, page
from tests.experiments.report.page.test_page import HOSTILE

pytestmark = needs_browser

SHOWN = """
const sections = $$("#panel .estimator").map((section) => ({
  label: section.querySelector("h4").textContent,
  sides: [...section.querySelectorAll(".sides > div")].map((side) => [...side.querySelectorAll(".thumb")].map((thumb) => ({
    id: Number(thumb.querySelector(".caption").textContent.slice(1)), score: thumb.querySelector(".score").textContent,
  }))),
}));
return { hash: location.hash, title: $("#subject-title").textContent, sections };
"""


def text(score: float) -> str:
    assert 0.01 <= abs(score) < 9.99
    return f"{float(f'{score:.6g}'):+.2f}".replace("-", "−")


def test_a_query_has_its_images_side_by_side(tmp_path):
    """Claim: at a hash, the query of that kind is shown with the proponents and opponents of a full sort, with their scores."""
    sets = [attributions(4, 40), attributions(4, 40, ("a", "b", "c"), "generated", seed=5)]
    query = sets[1].queries.index[2]
    shown = read(page(tmp_path, *sets), SHOWN, f"#view=query&kind=generated&query={query}&hide=b")
    assert shown["title"] == f"Query #{query}"
    assert [section["label"] for section in shown["sections"]] == ["a", "c"]
    for section in shown["sections"]:
        scores = sets[1].scores[section["label"]][2]
        order = np.argsort(-scores, kind="stable")
        for side, positions in zip(section["sides"], (order[:8], order[::-1][:8]), strict=True):
            assert [one["id"] for one in side] == sets[1].train.index[positions].tolist()
            assert [one["score"] for one in side] == [text(scores[position]) for position in positions]


def test_a_training_image_has_the_queries_that_it_serves(tmp_path):
    """Claim: the view of an image lists, for each estimator, the queries that have it among their 16 largest or smallest scores."""
    made = attributions(12, 40)
    position = 7
    shown = read(page(tmp_path, made), SHOWN, f"#view=image&image={made.train.index[position]}")
    assert shown["title"] == f"Training image #{made.train.index[position]}"
    for section, scores in zip(shown["sections"], made.scores.values(), strict=True):
        for side, sign in zip(section["sides"], (-1, 1), strict=True):
            ranks = [int(np.flatnonzero(np.argsort(sign * row, kind="stable") == position)[0]) for row in scores]
            expected = {int(made.queries.index[q]): text(scores[q, position]) for q, rank in enumerate(ranks) if rank < 16}
            assert {one["id"]: one["score"] for one in side} == expected


def test_the_hash_holds_the_state(tmp_path):
    """Claim: every choice is in the hash; another hash, and the browser's back, change the page; a bad one is the first query."""
    sets = [attributions(4, 40), attributions(3, 40, kind="generated", seed=5)]
    path = page(tmp_path, *sets)
    ids, other = sets[0].queries.index.tolist(), sets[1].queries.index.tolist()
    found = read(
        path,
        f"""
        const seen = [];
        const look = async () => {{ await wait(); seen.push(location.hash, $("#subject-title").textContent); }};
        $$("#picker .pick")[2].click(); await look();
        $('#kinds input[value="1"]').click(); await look();
        $('#tops input[value="16"]').click(); await look();
        $("#estimators input").click(); await look();
        $("#panel .thumb").click(); await look();
        history.back(); await look();
        location.hash = "#view=query&kind=validation&query={ids[3]}"; await look();
        location.hash = "#view=nonsense&kind=x&query=-1&top=7&hide=zzz"; await look();
        return seen;
        """,
    )
    hashes, titles = found[::2], found[1::2]
    assert hashes[:4] == [
        f"#view=query&kind=validation&query={ids[2]}",
        f"#view=query&kind=generated&query={other[0]}",
        f"#view=query&kind=generated&query={other[0]}&top=16",
        f"#view=query&kind=generated&query={other[0]}&top=16&hide=kfac",
    ]
    best = sets[1].train.index[sets[1].scores["trak"][0].argmax()]
    assert hashes[4] == f"#view=image&kind=generated&image={best}&top=16&hide=kfac"
    assert hashes[5] == hashes[3]
    queries = [ids[2], other[0], other[0], other[0], None, other[0], ids[3], ids[0]]
    assert titles == [f"Training image #{best}" if one is None else f"Query #{one}" for one in queries]


def test_the_keyboard_is_enough(tmp_path):
    """Claim: arrows, Home and End move through the queries with the focus; a thumbnail has a name; the status says where one is."""
    made = attributions(6, 40)
    found = read(
        page(tmp_path, made),
        """
        const seen = [];
        const look = () => seen.push([$("#subject-title").textContent, document.activeElement.getAttribute("aria-selected")]);
        await press("ArrowRight"); look();
        $('#picker [tabindex="0"]').focus();
        for (const key of ["ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"]) { await press(key); look(); }
        const tabbable = $$("#picker .pick").filter((option) => option.tabIndex === 0).length;
        const nameless = $$("button, input, img, [role=listbox], [role=region], a").filter((one) => !(one.getAttribute("aria-label")
          || one.getAttribute("aria-labelledby") || one.textContent.trim() || one.labels?.length || one.hasAttribute("alt")));
        return { seen, tabbable, nameless: nameless.map((one) => one.outerHTML), status: $("#status").textContent,
          thumb: $("#panel .thumb").getAttribute("aria-label") };
        """,
    )
    ids = made.queries.index
    titles = [f"Query #{ids[place]}" for place in (1, 2, 5, 5, 4, 0)]
    assert found["seen"] == [[titles[0], None], *([title, "true"] for title in titles[1:])]
    assert found["tabbable"] == 1
    assert found["nameless"] == []
    assert found["status"] == f"Query #{ids[0]}, 1 of 6"
    best = made.scores["kfac"][0].argmax()
    assert found["thumb"].startswith(f"Training image #{made.train.index[best]}, label {made.train.label[best]}, score +")


def test_find(tmp_path):
    """Claim: the field finds queries by id, label or a part of their name; Enter chooses the first."""
    names = ["cats/one.png", "dogs/two.png", "cats/three.png"]
    made = Attributions("folder", images(3, names=names), images(30, seed=3), {"a": np.random.default_rng(0).random((3, 30))})
    found = read(
        page(tmp_path, made),
        """
        const find = async (words) => { $("#find").value = words; $("#find").dispatchEvent(new Event("input")); await wait(); };
        await find("CATS");
        const cats = $$("#picker .pick").map((option) => option.getAttribute("aria-label"));
        await find("3");
        $("#find").focus();
        await press("Enter");
        return { cats, title: $("#subject-title").textContent };
        """,
    )
    assert found["cats"] == ["#0, cats/one.png, label 0", "#6, cats/three.png, label 2"]
    assert found["title"] == "Query #3"


@pytest.mark.parametrize("system", ["light", "dark"])
def test_dark_mode(tmp_path, system):
    """Claim: the page follows the system, and its button changes that and stays changed."""
    dark = ["--blink-settings=preferredColorScheme=0"] if system == "dark" else ["--blink-settings=preferredColorScheme=1"]
    found = read(
        page(tmp_path, attributions()),
        """
        const look = () => [getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128,
          $("#theme").getAttribute("aria-pressed")];
        const before = look();
        $("#theme").click();
        const after = look();
        return { before, after, stored: localStorage.getItem("theme") };
        """,
        "",
        *dark,
    )
    is_dark = system == "dark"
    assert found["before"] == [is_dark, str(is_dark).lower()]
    assert found["after"] == [not is_dark, str(not is_dark).lower()]
    assert found["stored"] == ("light" if is_dark else "dark")


def test_a_narrow_screen_does_not_scroll_sideways(tmp_path):
    """Claim: at 390 pixels the page itself is no wider than the screen, in both views."""
    made = attributions(6, 60, ("kfac", "a_much_longer_estimator_name damping=1e-07 draws.n=250"))
    path = page(tmp_path, made)
    for hash in ("", f"#view=image&image={made.train.index[0]}"):
        found = read(path, "return [document.documentElement.scrollWidth, innerWidth];", hash, "--window-size=390,844")
        assert found[0] <= found[1] <= 500


def test_hostile_names_do_nothing(tmp_path):
    """Claim: with its own policy the page runs, and names with markup stay text, in every place where they are shown."""
    queries, train = images(5, names=HOSTILE, seed=1), images(20, names=[f"{HOSTILE[i % 5]}{i}" for i in range(20)], seed=2)
    made = Attributions(HOSTILE[2], queries, train, {name: np.random.default_rng(0).random((5, 20)) for name in HOSTILE})
    path = page(tmp_path, made)
    shown = dom(path)
    assert 'id="subject-title"' in shown
    assert shown.count("<script") == 2
    found = read(
        path,
        """
        const odd = [];
        for (const option of $$("#picker .pick")) {
          option.click();
          await wait();
          odd.push(...$$("#explorer script, #explorer [onerror], #explorer img:not(.pixels)").map((one) => one.outerHTML));
        }
        return { odd, labels: $$("#panel h4").map((one) => one.textContent) };
        """,
    )
    assert found == {"odd": [], "labels": HOSTILE}


def test_a_page_without_scores_has_a_theme_too(tmp_path):
    """Claim: the script runs on pages without images to explore."""
    assert read(page(tmp_path), 'return [$("#theme").hidden, $("#explorer")];') == [False, None]
