"""The inspector's page: its numbers, that it is safe and small, and that it works in a browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.api.passages import Passage
from longmem_fairseq.api.reading import THIS_TEXT, TokenReading
from longmem_fairseq.inspector import Inspection, inspect_text, make_page
from longmem_fairseq.inspector.inspection import gain_by_distance
from tests.helpers.model_folders import WINDOW, story

DATA = re.compile(r'(?<=id="data">)(.*?)(?=</script>)')
TEXT = story(60, seed=3) + "</script><b>&amp;"
NASTY = "<img src=x onerror=alert(1)>\u2028.txt"


@pytest.fixture(scope="module")
def inspected(models):
    """A text with markup, read after a document whose name is markup."""
    lm = LongMem.from_pretrained(models["longmem"])
    lm.memorize(story(30, seed=1) + "<i>{{data}}", names=NASTY)
    return lm, inspect_text(lm, TEXT)


def passage(document, offset, head=0, gate=0.5, weight=0.5):
    return Passage(head, gate, weight, 1.0, document, offset, "before ", "text", " after")


def by_hand(*tokens):
    """An inspection of tokens (gain, passages)."""
    gains = np.array([gain for gain, _ in tokens])
    readings = [TokenReading(f" {i}", passages) for i, (_, passages) in enumerate(tokens)]
    return Inspection(gains, gains - 3, readings)


def data_of(page):
    return json.loads(re.search(DATA, page)[1])


# --- numbers ---


def test_gains_are_scores_with_memory_less_those_without(inspected):
    lm, inspection = inspected
    scores = lm.score(TEXT)
    without = lm.score(TEXT, memory=False).log_probs
    assert [reading.token for reading in inspection.readings] == scores.tokens
    np.testing.assert_allclose(inspection.gain, (scores.log_probs - without).numpy())
    np.testing.assert_allclose(inspection.log_probs, scores.log_probs.numpy())
    assert inspection.readings == lm.retrieved(TEXT, per_head=3)
    assert abs(inspection.gain[:WINDOW]).max() > 0.01


def test_gain_by_distance_by_hand():
    tokens = [(0.0, [])] * 2 + [(9.0, [])] * 298
    for position, gain, passages in (
        (100, 1.0, [passage(THIS_TEXT, 90)]),
        (101, 2.0, [passage(THIS_TEXT, 38), passage("a", 0, weight=0.4)]),
        (102, 4.0, [passage(THIS_TEXT, 38)]),
        (103, 8.0, [passage(THIS_TEXT, 39), passage(THIS_TEXT, 0, head=1, gate=0.1, weight=0.9)]),
        (299, -1.0, [passage(THIS_TEXT, 299 - 128)]),
        (298, -4.0, [passage(THIS_TEXT, 298 - 255)]),
        (200, 5.0, [passage("a", 190, weight=0.6), passage(THIS_TEXT, 0)]),
    ):
        tokens[position] = (gain, passages)
    nothing = [0.0] * 2 + [9.0] * 291
    error = float(np.std(nothing, ddof=1)) / len(nothing) ** 0.5
    bars = gain_by_distance(by_hand(*tokens))
    assert [bar.label for bar in bars] == [
        "nothing read",
        "under 64",
        "64 to 127",
        "128 to 255",
        "another document",
    ]
    assert [bar.count for bar in bars] == [293, 2, 2, 2, 1]
    assert [bar.mean for bar in bars] == pytest.approx([np.mean(nothing), 1.5, 6.0, -2.5, 5.0])
    assert [bar.error for bar in bars] == pytest.approx([error, 0.5, 2.0, 1.5, 0.0])


def test_the_page_holds_every_token_and_every_passage_once(inspected):
    lm, inspection = inspected
    data = data_of(make_page(inspection, "title", "memory"))
    assert "".join(data["tokens"]) == TEXT
    np.testing.assert_allclose(data["gains"], inspection.gain, atol=5.1e-4)
    np.testing.assert_allclose(data["logProbs"], inspection.log_probs, atol=5.1e-4)
    assert data["gates"] == {"0": 0.5, "1": 0.5}
    assert sorted(data["documents"]) == sorted([NASTY, THIS_TEXT])
    places = [tuple(place) for place in data["passages"]]
    assert len(set(places)) == len(places)
    for reading, (_, passages) in zip(data["readings"], inspection.readings, strict=True):
        assert len(reading) == 3 * len(passages)
        for i, p in enumerate(passages):
            head, number, weight = reading[3 * i : 3 * i + 3]
            assert head == p.head and weight == pytest.approx(p.weight, abs=5.1e-4)
            document, *place = places[number]
            assert (data["documents"][document], *place) == p[4:]


def test_the_plot_shows_means_and_counts(inspected):
    inspection = by_hand((0.0, []), (1.0, [passage("a", 3)]), (2.0, [passage("a", 5)]))
    page = make_page(inspection, "title", "memory")
    plot = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    texts = re.findall(r"<text[^>]*>(.*?)</text>", plot)
    assert texts == ["nothing read", "+0.000 (1)", "another document", "+1.500 (2)"]
    widths = [float(width) for width in re.findall(r'<rect[^>]*width="([\d.]+)"', plot)]
    assert widths[0] == 0 < widths[1]
    assert "3 tokens. Perplexity 7.39 with memory, 20.09 without; memory gave +1.000" in page


# --- safety and size ---


def test_no_text_becomes_markup(inspected):
    page = make_page(inspected[1], TEXT, NASTY)
    assert page.count("</script>") == 2 and "<img" not in page and "<b>&amp;" not in page
    assert "<h1>" + html.escape(TEXT) + "</h1>" in page
    assert "<" not in re.search(DATA, page)[1] and "{{" not in re.sub(DATA, "", page)


def test_the_page_needs_no_network(inspected):
    page = re.sub(DATA, "", make_page(inspected[1], "title", "memory"))
    assert re.findall(r"(?:https?:)?//\w|\bsrc=|\bhref=|url\(|@import|fetch\(|import\(", page) == []
    assert "default-src 'none'" in page


def test_2000_tokens_are_less_than_5_megabytes():
    """Of 16 heads that hardly ever read the same."""
    generator = np.random.default_rng(1)
    readings = []
    for i in range(2000):
        offsets = generator.integers(0, 16384, 48).tolist()
        passages = [
            Passage(
                j // 3, 0.5, 0.123456789, 1.0, "a book", 4 * offset, "w" * 30, "w" * 15, "w" * 30
            )
            for j, offset in enumerate(offsets)
        ]
        readings.append(TokenReading(f" {i}", passages))
    gain = generator.normal(size=2000)
    page = make_page(Inspection(gain, gain - 3, readings), "title", "memory")
    assert 10**6 < len(page.encode()) < 5 * 10**6


# --- in a browser ---

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --dump-dom"
)
# The page lies in a frame, because a window is at least 500 pixels wide. What *act* returns is printed.
HARNESS = """<!DOCTYPE html><pre id="result"></pre>
<iframe id="frame" width="{width}" height="844" style="border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = document.getElementById("frame").contentWindow, page = view.document;
  const tokens = page.querySelectorAll("[data-token]"), panel = page.getElementById("panel");
  const click = i => {{
    tokens[i].scrollIntoView({{block: "start"}});
    const box = tokens[i].getClientRects()[0];
    page.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).click();
  }};
  const press = (key, more) => page.activeElement.dispatchEvent(
    new view.KeyboardEvent("keydown", {{key, bubbles: true, ...more}}));
  const act = () => {{ {act} }};
  document.getElementById("result").textContent = JSON.stringify(act());
}};
</script>"""


@pytest.fixture
def browse(inspected, tmp_path):
    """Runs a script in the page, in a frame of that width; returns what it returns."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: install the package chromium")

    def run(act, width=1280, *flags):
        page = make_page(inspected[1], "A title", "memory")
        harness = HARNESS.format(page=html.escape(page), width=width, act=act)
        (tmp_path / "harness.html").write_text(harness, encoding="utf-8")
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *flags]
        command += [f"--window-size={max(width, 500)},900", f"file://{tmp_path / 'harness.html'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(
            html.unescape(re.search(r'id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1])
        )

    return run


@pytest.mark.parametrize("width", [1280, 390])
def test_a_click_shows_the_passages_of_a_token(browse, inspected, width):
    readings = inspected[1].readings
    number = next(i for i in range(len(readings) - 20, len(readings)) if readings[i].token.strip())
    title, items, chosen = browse(
        f"""click({number});
        return [panel.querySelector("h2").textContent,
          [...panel.querySelectorAll("li")].map(item => item.textContent),
          [...page.querySelectorAll("[aria-selected=true]")].map(span => span.dataset.token)];""",
        width,
    )
    assert title == f"Token {number}: {readings[number].token}" and chosen == [str(number)]
    passages = readings[number].passages
    assert len(items) == len(passages) == 6
    for item, p in zip(items, passages, strict=True):
        quote = p.before.lstrip() + p.text + p.after
        assert (
            item
            == f"{quote} {100 * round(p.weight, 3):.1f}% \u00b7 {p.document}, token {p.offset:,}"
        )


def test_the_page_can_be_used_with_the_keyboard(browse, inspected):
    """One stop for the tab key; arrows, home and end go on, but not with the control key, which is the
    browser's; a click is kept until escape."""
    last = len(inspected[1].readings) - 1
    found = browse(
        """const at = () => Number(page.querySelector("[aria-selected=true]").dataset.token);
        const stops = page.querySelectorAll('#text [tabindex="0"]');
        stops[0].focus();
        const places = [stops.length, at()];
        for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "End",
          "ArrowRight", "Home", "ArrowLeft"]) { press(key); places.push(at()); }
        press("End", {ctrlKey: true}); places.push(at());
        const over = () => new view.PointerEvent("pointerover", {bubbles: true});
        const hover = i => tokens[i].dispatchEvent(over());
        hover(5); places.push(at());
        click(7); hover(5); places.push(at());
        press("Escape"); hover(5); places.push(at());
        press("Enter"); hover(6); places.push(at());
        places.push(page.querySelectorAll('#text [tabindex="0"]').length, panel.tabIndex);
        return places;"""
    )
    assert found == [1, 0, 1, 2, 1, 11, 1, last, last, 0, 0, 0, 5, 7, 5, 5, 1, 0]


def test_the_panel_covers_no_token_that_the_keyboard_goes_to(browse):
    """On a phone, where it lies over the text, here in letters that fill several screens."""
    covered, height = browse(
        """page.getElementById("text").style.fontSize = "3rem";
        tokens[0].focus();
        const covered = [...tokens].map(() => {
          press("ArrowRight");
          const token = page.activeElement.getBoundingClientRect();
          return token.bottom - panel.getBoundingClientRect().top;
        });
        return [Math.max(...covered), page.documentElement.scrollHeight];""",
        390,
    )
    assert covered <= 0 and height > 2 * 844


def test_texts_are_shown_as_texts(browse, inspected):
    number = next(
        i for i, (_, passages) in enumerate(inspected[1].readings) if passages[0].document == NASTY
    )
    text, inside, images, scripts = browse(
        f"""click({number});
        return [page.getElementById("text").textContent, panel.textContent,
          page.querySelectorAll("img, b b, i b").length, page.scripts.length];"""
    )
    assert text == TEXT and NASTY in inside and images == 0 and scripts == 2


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_and_loads_nothing(browse, width):
    overflow, panel_below, resources = browse(
        """click(60);
        const boxes = ["text", "panel"].map(id => page.getElementById(id).getBoundingClientRect());
        return [page.documentElement.scrollWidth - view.innerWidth, boxes[1].left < boxes[0].right,
          view.performance.getEntriesByType("resource").length];""",
        width,
    )
    assert overflow <= 0 and panel_below == (width == 390) and resources == 0


def test_the_page_is_dark_where_people_want_it(browse):
    colors = "const s = view.getComputedStyle(page.body); return [s.backgroundColor, s.color];"
    light, dark = browse(colors), browse(colors, 1280, "--force-dark-mode")
    assert light == ["rgb(252, 252, 251)", "rgb(27, 27, 31)"]
    assert dark == ["rgb(21, 21, 23)", "rgb(236, 236, 239)"]
