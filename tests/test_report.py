"""The page of a run: whole, self-contained, readable, and honest about what it lacks."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib import import_module

import browser
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
from PIL import Image

import la_core
from la_core import Settings, evaluate, train
from la_core.__main__ import main
from la_core.data import Samples
from la_core.errors import DataError, RunFolderError
from la_core.health import Health
from la_core.mlp import MLP
from la_core.report import figures, page, record
from la_core.report.contents import Contents
from la_core.report.style import STYLE
from la_core.run import Callback

report = import_module("la_core.report")  # the attribute la_core.report is its chief function
SETTINGS = Settings(epochs=4, warmup_epochs=2, batch_size=20, n_clusters=3, n_clusterings=2, learning_rate=0.02)
NAMES = ("tom & jerry", '<script>alert("x")</script>', "ünïcode")
HOSTILE = "run <b>&"


def images(n, seed):
    """Three kinds of pictures: bright above, in the middle, below."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n) % 3
    pictures = rng.integers(0, 90, (n, 12, 12), dtype=np.uint8)
    for picture, kind in zip(pictures, kinds, strict=True):
        picture[4 * kind : 4 * kind + 4] += 140
    return Samples(pictures, kinds)


class Watch(Callback):
    """The health of every epoch, in the metrics of the folder."""

    def __init__(self, folder):
        self.folder, self.health = folder, Health()

    def on_epoch(self, run, record):
        record["health"] = self.health.record(run)
        lines = "".join(json.dumps(r) + "\n" for r in run.history)
        (self.folder / "metrics.jsonl").write_text(lines)


def learn(folder, data, test=None, settings=SETTINGS, names=(), **options):
    backend = la_core.backend("numpy")
    width = int(np.prod(np.shape(data[0])))
    encoder = MLP(backend, (width, 16, 8), settings)
    callbacks = [Watch(folder), report.Recorder(folder, names)]
    return train(data, encoder, backend=backend, settings=settings, test=test, folder=folder, callbacks=callbacks,
                 progress=False, **options)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything that the page can show."""
    folder = tmp_path_factory.mktemp("runs") / HOSTILE
    learn(folder, images(60, 0), images(30, 1), names=NAMES, view=la_core.ImageView(size=12))
    table = {"raw pixels": [0.5, None], "after <i>warm-up</i>": [0.6, 0.7], "after local aggregation": [0.8, 0.9]}
    (folder / "table.json").write_text(json.dumps(table))
    report.report(folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Charts cost most of the time of a page; where they do not matter they stay empty."""
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: "<svg></svg>")


class Page(HTMLParser):
    """What is in a page: its elements with their attributes, and the text of each section."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, folder):
        super().__init__()
        self.elements, self.open, self.sections, self.headings = [], [], {}, []
        self.feed((folder / "report.html").read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        opened, _ = self.open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data):
        for tag, attributes in self.open:
            if tag == "section":
                self.sections[attributes["id"]] = self.sections.get(attributes["id"], "") + data

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


# The page -------------------------------------------------------------------------------------------------------------


def law_asks_nothing_of_a_network(folder):
    shown = Page(folder)
    for tag, attributes in shown.elements:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "action"}:
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:60])
            assert "url(" not in value or "url(#" in value, (tag, name, value)
    assert "@import" not in STYLE
    assert "url(" not in STYLE
    (policy,) = [m["content"] for m in shown.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_every_section_is_there_and_nothing_is_missing(finished):
    shown = Page(finished)
    assert list(shown.sections) == list(page.SECTIONS)
    assert not any("To have it here" in text for text in shown.sections.values())
    links = {a["href"] for a in shown.all("a")}
    assert {f"#{name}" for name in page.SECTIONS} <= links
    assert "80.0%" in shown.sections["accuracy"]
    assert "n_clusterings" in shown.sections["settings"]


def test_the_page_asks_nothing_of_a_network(finished):
    law_asks_nothing_of_a_network(finished)


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://example.org/x.png" alt="">', "<script>1</script>", '<p onclick="1">', '<p style="a:url(x)">'],
)
def test_a_planted_request_is_caught(finished, tmp_path, planted):
    text = (finished / "report.html").read_text(encoding="utf-8")
    closed = planted + ("</p>" if planted.startswith("<p") else "")
    (tmp_path / "report.html").write_text(text.replace("</main>", closed + "</main>"), encoding="utf-8")
    with pytest.raises(AssertionError):
        law_asks_nothing_of_a_network(tmp_path)


def test_names_of_the_user_are_text_and_not_markup(finished):
    shown = Page(finished)
    assert NAMES[1] in shown.sections["galleries"]
    assert NAMES[0] in shown.sections["map"]
    assert not shown.all("script")
    assert not shown.all("b")
    assert not shown.all("i")


def test_names_that_are_not_utf_8_have_a_page(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SECTIONS", {name: page.SECTIONS[name] for name in ("map", "galleries", "settings")})
    folder = shutil.copytree(finished, tmp_path / "run")
    facts = json.loads((folder / record.JSON).read_text())
    facts["class_names"] = ["caf\udce9", "ünïcode", "\N{CAT}"]  # é in Latin-1, as Python reads it
    (folder / record.JSON).write_text(json.dumps(facts))
    report.report(folder)
    shown = Page(folder)
    for section in ("map", "galleries"):
        assert all(name in shown.sections[section] for name in ("caf?", "ünïcode", "\N{CAT}"))
    monkeypatch.setattr(page, "SECTIONS", {})
    assert "<h1>la-core run caf?</h1>" in page.page(replace(Contents.read(folder), folder=tmp_path / "caf\udce9"))


def test_everything_has_a_name_for_who_cannot_see_it(finished):
    shown = Page(finished)
    ids = Counter(a["id"] for _, a in shown.elements if "id" in a)
    assert max(ids.values()) == 1, ids.most_common(3)
    assert all(image["alt"] for image in shown.all("img"))
    for chart in shown.all("svg"):
        assert chart["role"] == "img"
        assert {chart["aria-labelledby"], chart["aria-describedby"]} <= set(ids)
    for _, attributes in shown.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        for name in ("href", "xlink:href"):
            if attributes.get(name, "").startswith("#"):
                assert attributes[name][1:] in ids
    assert shown.headings[0] == 1
    assert all(b - a <= 1 for a, b in zip(shown.headings, shown.headings[1:], strict=False))
    assert shown.all("html")[0]["lang"] == "en"


def test_text_stands_out_from_its_ground():
    """WCAG 2.2, 1.4.3: contrast of at least 4.5, in light and in dark."""

    def luminance(colour):
        full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        parts = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", block)) for block in STYLE.split("@media")[:2])
    for colours in (light, {**light, **dark}):
        for text in ("ink", "soft", "mark"):
            for ground in ("paper", "card", "notice"):
                pair = sorted((luminance(colours[text]), luminance(colours[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground)


def test_every_figure_is_a_file_too(finished):
    shown = Page(finished)
    names = {chart["aria-labelledby"].removesuffix("-name") for chart in shown.all("svg")}
    names |= {"gallery-successes"}
    assert {"loss", "accuracy", "close", "knn-grid", "density-local", "density-background", "map"} <= names
    for name in names:
        with Image.open(finished / "figures" / f"{name}.png") as picture:
            assert picture.width > 200
        assert "<svg" in (finished / "figures" / f"{name}.svg").read_text()


@pytest.mark.parametrize(
    ("file", "sections"),
    [
        ("settings.json", {"settings", "health"}),
        ("table.json", {"accuracy"}),
        ("evaluation.json", {"knn", "densities", "map", "galleries"}),
        ("evaluation.npz", {"knn", "densities", "map", "galleries"}),
        ("status.json", set()),
        ("embeddings.npz", set()),
    ],
)
@pytest.mark.parametrize("harm", ["missing", "cut off"])
def test_what_is_missing_is_said_where_it_is_missing(undrawn, finished, tmp_path, file, sections, harm):
    folder = shutil.copytree(finished, tmp_path / "run")
    if harm == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    report.report(folder)
    shown = Page(folder)
    assert list(shown.sections) == list(page.SECTIONS)
    assert {name for name, text in shown.sections.items() if "To have it here" in text} == sections


def test_a_run_with_nothing_but_metrics_has_a_page(undrawn, finished, tmp_path):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    bare = [{k: v for k, v in line.items() if k not in ("health", "knn")} for line in lines]
    for name, kept in (("bare", bare), ("none", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        report.report(tmp_path / name)
        shown = Page(tmp_path / name)
        said = [text for text in shown.sections.values() if "To have it here" in text]
        assert len(said) == len(page.SECTIONS)


def test_warnings_are_told_with_their_remedy(undrawn, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["health"]["mean_similarity"] = 0.99
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.report(folder)
    text = (folder / "report.html").read_text()
    header, _, main_part = text.partition("<main")
    assert "have collapsed" in header
    assert "lower learning_rate (it is 0.02)" in header
    assert "Collapsed</strong>, at 3 epochs from 2 to 4" in main_part


@pytest.mark.parametrize("said", [[], ["It <fell>."]])
def test_without_settings_nothing_is_said_to_be_well(undrawn, finished, tmp_path, said):
    folder = shutil.copytree(finished, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"warnings": said if line["epoch"] == 2 else []} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    newer = json.loads((folder / "settings.json").read_text()) | {"not_yet_known": 1}
    (folder / "settings.json").write_text(json.dumps(newer))
    report.report(folder)
    header, _, main_part = (folder / "report.html").read_text().partition("<main")
    assert "No warning" not in header
    assert "Nothing to warn of" not in main_part
    assert "settings could not be read, so its health was not checked" in header
    assert "settings could not be read, so nothing was checked" in main_part
    assert ("The run warned at epoch 2: It &lt;fell&gt;." in header) == bool(said)
    assert ("At epoch 2: It &lt;fell&gt;." in main_part) == bool(said)


def test_no_run_folder_no_page(undrawn, tmp_path, finished):
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl"):
        report.report(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunFolderError, match="cannot be written"):
        report.report(finished, tmp_path / "nowhere" / "page.html")


def test_without_matplotlib_it_says_what_to_install(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"la-core\[report\]"):
        report.report(finished, tmp_path / "page.html")
    with pytest.raises(DataError, match=r"la-core\[report\]"):
        report.curves(finished)


def test_the_command(finished, tmp_path, capsys):
    assert main(["report", str(finished), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == (finished / "report.html").read_text()
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "report" not in capsys.readouterr().out


@pytest.mark.parametrize("why", ["a file is in the way", "it cannot be written"])
def test_a_page_elsewhere_asks_no_room_in_the_run_folder(finished, tmp_path, monkeypatch, why):
    monkeypatch.setattr(page, "SECTIONS", {name: page.SECTIONS[name] for name in ("curves", "galleries")})
    folder, out = shutil.copytree(finished, tmp_path / HOSTILE), tmp_path / "page.html"
    assert report.report(folder, out) == out
    usual = out.read_text(encoding="utf-8")
    shutil.rmtree(folder / "figures")
    if why == "a file is in the way":
        (folder / "figures").touch()
    else:
        monkeypatch.setattr(page.os, "access", lambda path, mode: path != folder / "figures")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    with pytest.warns(UserWarning, match="the figures are in the page alone"):
        assert main(["report", str(folder), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == usual
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", HOSTILE]
    assert not (folder / "figures").is_dir() or not list((folder / "figures").iterdir())
    with pytest.raises(RunFolderError, match="cannot be written"):
        report.report(folder)


# The figures ----------------------------------------------------------------------------------------------------------

POINTS = np.arange(24.0).reshape(12, 2)


def drawn(figure, folder):
    """The texts of a figure, as its SVG has them."""
    markup = figures.save(figure, folder, "figure")
    return [unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", markup)]


@pytest.mark.parametrize("name", ["$5_$10", "$$", r"$\x$", r"\$5", "US$ & CA$"])
def test_a_name_is_drawn_as_it_is_written(finished, tmp_path, name):
    texts = drawn(figures.scatter(POINTS, np.arange(12) % 2, {0: name, 1: "other"}), tmp_path)
    assert name in texts
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert name in drawn(figures.accuracy(lines, {name: 0.5}), tmp_path)
    shutil.copy(finished / "metrics.jsonl", tmp_path)
    report.curves(tmp_path, {name: 0.5})
    pictures, found = np.zeros((3, 4, 4, 1)), (np.zeros((3, 7), int), np.ones((3, 7), bool))
    report.neighbours(tmp_path / "neighbours.png", pictures, pictures, {name: found})


SHARKS = ("great white shark, white shark", "tiger shark", "hammerhead", "electric ray", "stingray", "cock", "hen")


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ([str(c) for c in range(10)], 5),
        ([*SHARKS], 3),
        ([f"{name}, {name}" for name in SHARKS], 1),
        (["_hidden", "hen", "hen", "", "ñandú"], 5),
        ([f"{c}_{'W' * 250}_{c}" for c in range(12)], 1),
    ],
    ids=["short", "sharks", "twice", "odd", "long"],
)
def test_no_name_of_a_legend_is_cut_off_or_left_out(tmp_path, names, columns):
    figure = figures.scatter(POINTS, np.arange(12) % len(names), dict(enumerate(names)))
    figures.save(figure, tmp_path, "map")
    (legend,), (axis,) = figure.legends, figure.axes
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    assert len({round(box.x0) for box in boxes}) == columns
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert axis.get_window_extent().height > 0.7 * axis.get_window_extent().width
    for text, name in zip(legend.get_texts(), names, strict=True):
        head, ellipsis, tail = text.get_text().partition("…")
        assert text.get_text() == name or (ellipsis and len(name) > 250)
        assert name.startswith(head)
        assert name.endswith(tail)


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    path = browser.find()
    if path is None:
        pytest.skip("no browser: none of chromium, google-chrome on the path, and LA_CORE_BROWSER names none")
    with browser.Browser(path) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(chromium, finished, width, dark):
    chromium.events.clear()
    chromium.width(width, dark=dark)
    url = (finished / "report.html").as_uri()
    chromium.open(url)
    sections = "[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 60).map(s => s.id)"
    assert chromium.evaluate(sections) == list(page.SECTIONS)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.scroll, svg, .skip') && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert chromium.evaluate(beyond) == []
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert chromium.evaluate(loaded)
    asked = {e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"}
    assert {a for a in asked if not a.startswith("data:")} == {url}
    assert not [e for e in chromium.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    ground = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark


def test_the_policy_holds_a_planted_request_back(chromium, finished, tmp_path):
    text = (finished / "report.html").read_text(encoding="utf-8")
    planted = tmp_path / "planted.html"
    planted.write_text(text.replace("</main>", '<img src="https://example.org/x.png" alt=""></main>'), encoding="utf-8")
    chromium.events.clear()
    chromium.open(planted.as_uri())
    refused = [e["params"]["entry"]["text"] for e in chromium.events if e["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in line for line in refused)


# The recorder ---------------------------------------------------------------------------------------------------------


def held(folder):
    with np.load(folder / record.ARRAYS, allow_pickle=False) as file:
        return json.loads((folder / record.JSON).read_text()), dict(file)


def test_what_is_recorded_is_what_the_run_has(tmp_path):
    data, test = images(60, 0), images(30, 1)
    run = learn(tmp_path / "run", data, test, names=NAMES, view=la_core.ImageView(size=12))
    facts, arrays = held(tmp_path / "run")
    assert facts["phases"] == ["untrained", "after warm-up", "after local aggregation"]
    np.testing.assert_allclose(arrays["density_2"], np.stack(evaluate.densities(run.state.bank)), rtol=1e-5)
    here, there = run.embed().embeddings, run.embed(test).embeddings
    predicted = evaluate.knn(here, data.classes, there, k=6, temperature=0.07)
    cell = facts["knn"]["accuracy"][facts["knn"]["ks"].index(6)][facts["knn"]["temperatures"].index(0.07)]
    assert cell == (predicted == test.classes).mean()
    assert facts["class_accuracy"] == {str(c): (predicted == c)[test.classes == c].mean() for c in range(3)}
    nearest = np.argsort(-(la_core.unit(there) @ la_core.unit(here).T)[arrays["gallery_queries"]], kind="stable")
    np.testing.assert_array_equal(arrays["gallery_neighbours"][:, 0], nearest[:, 0])
    np.testing.assert_array_equal(arrays["gallery_classes"], test.classes[arrays["gallery_queries"]])
    some = arrays["gallery_neighbours"][0, 3]
    np.testing.assert_array_equal(arrays["gallery_images"][0, 3, :, :, 0], data.source[some])
    np.testing.assert_allclose(arrays["map_embeddings"], here[arrays["map_indices"]], rtol=1e-6)


def test_without_classes_there_are_neighbours_and_a_map(undrawn, tmp_path):
    learn(tmp_path / "run", Samples(images(40, 0).source), view=la_core.ImageView(size=12))
    facts, arrays = held(tmp_path / "run")
    assert "knn" not in facts
    assert set(arrays["gallery_kind"]) == {"sample"}
    assert not (arrays["gallery_neighbours"] == arrays["gallery_queries"][:, None]).any()  # never itself
    assert (np.diff(arrays["gallery_cosines"], axis=1) <= 0).all()
    report.report(tmp_path / "run")
    shown = Page(tmp_path / "run")
    missing = {name for name, text in shown.sections.items() if "To have it here" in text}
    assert missing == {"accuracy", "curves", "knn"}
    assert "Samples" in shown.sections["galleries"]


@pytest.mark.parametrize(("trained", "asked"), [(True, True), (False, True), (True, False), (False, False)])
def test_a_neighbour_is_right_or_wrong_where_both_classes_are_known(undrawn, tmp_path, trained, asked):
    data, test = (
        Samples(s.source, s.classes if known else None)
        for s, known in ((images(40, 0), trained), (images(20, 1), asked))
    )
    learn(tmp_path / "run", data, test, view=la_core.ImageView(size=12))
    report.report(tmp_path / "run")
    shown = Page(tmp_path / "run")
    pictures = [image for image in shown.all("img") if image["alt"] != "query"]
    assert {image["class"] for image in pictures} <= ({"right", "wrong"} if trained else {""})
    assert all(("class" in image["alt"]) == trained for image in pictures)
    assert ("red dashed" in shown.sections["galleries"]) == trained


def test_features_have_a_gallery_in_words_and_leave_themselves_out(undrawn, tmp_path):
    rng = np.random.default_rng(0)
    kinds = np.arange(50) % 2
    data = Samples((3 * kinds[:, None] + rng.standard_normal((50, 10))).astype(np.float32), kinds)
    learn(tmp_path / "run", data)
    facts, arrays = held(tmp_path / "run")
    assert "left out" in facts["queries"]
    assert "gallery_images" not in arrays
    assert not (arrays["gallery_neighbours"] == arrays["gallery_queries"][:, None]).any()
    report.report(tmp_path / "run")
    shown = Page(tmp_path / "run")
    assert "Nearest: " in shown.sections["galleries"]
    assert not shown.all("img")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_data_have_a_page(undrawn, tmp_path, n):
    settings = replace(SETTINGS, n_clusters=1, n_background=1, knn_k=1)
    learn(tmp_path / "run", Samples(np.eye(3, 6, dtype=np.float32)[:n], np.arange(n)), settings=settings)
    report.report(tmp_path / "run")
    assert list(Page(tmp_path / "run").sections) == list(page.SECTIONS)


def test_of_a_run_that_broke_off_what_was_recorded_stays(undrawn, tmp_path):
    class Stop(Callback):
        def on_epoch(self, run, record):
            if run.epoch == 2:
                raise KeyboardInterrupt

    folder, backend = tmp_path / "run", la_core.backend("numpy")
    with pytest.raises(KeyboardInterrupt):
        train(images(30, 0), MLP(backend, (144, 8), SETTINGS), backend=backend, settings=SETTINGS, folder=folder,
              view=la_core.ImageView(size=12), callbacks=[report.Recorder(folder), Stop()], progress=False)  # fmt: skip
    facts, arrays = held(folder)
    assert facts["phases"] == ["untrained", "after warm-up"]
    assert set(arrays) == {"density_0", "density_1"}
    report.report(folder)
    assert "Interrupted after 3 of 4 epochs" in (folder / "report.html").read_text()


def test_many_classes_are_shown_by_the_best_and_the_worst():
    classes = np.repeat(np.arange(30), 4)
    accuracy = {c: c / 30 for c in range(30)}
    chosen = record.chosen_classes({"class_accuracy": accuracy}, classes)
    assert chosen == [29, 28, 27, 26, 25, 24, 5, 4, 3, 2, 1, 0]
    assert record.chosen_classes({}, classes[classes < 9]) == list(range(9))
    assert record.chosen_classes({"class_accuracy": {}}, classes) == list(range(12))


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    side=st.integers(1, 64),
    channels=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([np.uint8, np.float32]),
    value=st.integers(0, 255),
)
def test_thumbnails_have_one_size_and_keep_a_flat_colour(height, width, side, channels, dtype, value):
    shape = (height, width) if channels is None else (height, width, channels)
    small = record.thumbnail(np.full(shape, value, dtype), side)
    assert small.shape == (side, side, 3)
    assert small.dtype == np.uint8
    assert (small == (value if dtype == np.uint8 else 0)).all()


def test_a_thumbnail_is_the_mean_of_what_it_covers_in_the_middle():
    image = np.zeros((8, 12), np.uint8)
    image[:4, 2:6] = 200
    image[:, :2] = 77  # outside of the square in the middle
    np.testing.assert_array_equal(record.thumbnail(image, 2)[:, :, 0], [[200, 0], [0, 0]])


def test_what_is_recorded_stays_small_for_large_images(tmp_path):
    rng = np.random.default_rng(0)
    data = Samples(rng.integers(0, 256, (40, 200, 300, 3), dtype=np.uint8), np.arange(40) % 2)
    settings = replace(SETTINGS, epochs=1, warmup_epochs=1)
    backend = la_core.backend("numpy")
    folder = tmp_path / "run"
    train(data, MLP(backend, (3 * 64, 8), settings), backend=backend, settings=settings, folder=folder, progress=False,
          view=la_core.ImageView(size=8), callbacks=[report.Recorder(folder)])  # fmt: skip
    assert (folder / record.ARRAYS).stat().st_size < 4e6
    assert held(folder)[1]["gallery_images"].shape[2:] == (64, 64, 3)
