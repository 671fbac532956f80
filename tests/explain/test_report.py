import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_nlp.errors import UserError
from lit_nlp.explain import Attribution, Word, write_report
from lit_nlp.explain.words import find_words

BREAK = "document.title='broken'"
EVIL = f'<img src=x onerror="{BREAK}"><script>{BREAK}</script>\'"&</script>' + "{{ 7*7 }}"
VOID = {"meta", "img", "input", "link", "br", "rect"}


def attribution(
    text: str, label="positive", prediction="positive", probability: float | None = 0.9, **changes
) -> Attribution:
    found = [Word(text[a:b], a, b, (-1) ** i * (1.0 + i)) for i, (a, b) in enumerate(find_words(text))]
    other = "negative" if prediction == "positive" else "positive"
    return replace(
        Attribution(
            text=text,
            text_pair=None,
            label=label,
            prediction=prediction,
            probability=probability,
            probabilities={str(prediction): probability or 0.0, other: 1 - (probability or 0.0)},
            target=str(prediction),
            method="integrated_gradients",
            convergence_delta=0.001,
            converged=True,
            words=found,
            pair_words=[],
        ),
        **changes,
    )


class Page(HTMLParser):
    """The elements of a page, and the visible text of its cards."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cards: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "article" in self.open:
            self.cards[-1] += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def page(folder: Path, attributions: list[Attribution], **changes) -> Page:
    arguments = {"title": "Why", "facts": {"Model": "tiny"}, **changes}
    return Page(write_report(attributions, folder, **arguments).read_text("utf-8"))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_file_beside_the_page_holds_every_attribution_in_order(tmp_path):
    given = [attribution("good film"), attribution("bad\u2028film 日本", label=None, prediction="negative")]
    assert write_report(given, tmp_path / "a" / "b", title="t", facts={}) == tmp_path / "a" / "b" / "index.html"
    lines = (tmp_path / "a" / "b" / "attributions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == ["good film", "bad\u2028film 日本"]
    assert rows[1]["label"] is None
    assert rows[1]["prediction"] == "negative"
    assert rows[0]["words"][1] == {"text": "film", "start": 5, "end": 9, "score": -2.0}
    assert {"probability", "target", "method", "convergence_delta", "converged"} <= rows[0].keys()


def test_mistakes_come_first_and_the_surest_of_them_on_top(tmp_path):
    given = [
        attribution("right one"),
        attribution("unsure mistake", label="negative", probability=0.6),
        attribution("unknown one", label=None),
        attribution("sure mistake", label="negative", probability=0.99),
    ]
    found = page(tmp_path, given)
    order = [next(text.text for text in given if text.text in card) for card in found.cards]
    assert order == ["sure mistake", "unsure mistake", "unknown one", "right one"]
    assert [each["data-verdict"] for each in found.all("article")] == ["wrong", "wrong", "", "right"]
    assert "✗ Wrong" in found.cards[0]
    assert "✓ Right" in found.cards[3]
    assert "Not labelled" in found.cards[2]


def test_each_word_is_told_by_colour_and_by_number(tmp_path):
    words = [Word("good", 0, 4, 2.0), Word(",", 4, 5, 0.01), Word("bad", 6, 9, -1.0)]
    found = page(tmp_path, [attribution("good, bad", words=words)])
    marks = [each for each in found.all("span") if "level-" in (each.get("class") or "")][2:]  # after the legend's
    assert marks == [
        {"class": "for level-8", "title": "+2.00"},
        {"class": "against level-4", "title": "−1.00"},
    ]
    card = squeezed(found.cards[0])
    assert "good, bad" in card
    assert "Speaks for positive good+2.00 Speaks against positive bad−1.00" in card
    assert "change the score of positive by +1.01" in card
    assert "converged, delta +0.001" in card


def test_scores_that_do_not_add_up_are_told(tmp_path):
    found = page(tmp_path, [attribution("good", converged=False, convergence_delta=-0.3)])
    assert "don’t add up: read them with care (not converged, delta −0.30)" in squeezed(found.cards[0])


def test_several_labels_and_numbers_are_shown(tmp_path):
    several = attribution("a", label=["toxic", "insult"], prediction=["insult", "toxic"], probability=None)
    none = attribution("b", label=["toxic"], prediction=[])
    number = attribution("c", label=4.5, prediction=2.25, probability=None, probabilities={}, target="stars")
    found = page(tmp_path, [several, none, number])
    b, c, a = map(squeezed, found.cards)
    assert "Wrong Predicted none of the labels" in b
    assert "Right Predicted insult, toxic Labelled toxic, insult" in a
    assert "Predicted 2.25 Labelled 4.5" in c
    assert "Raises stars" in c
    assert "Probability" not in c


def test_of_many_classes_the_probable_and_the_gold_one_are_shown(tmp_path):
    probabilities = {f"class {i}": (50 - i) / 1275 for i in range(50)}
    given = attribution("x", label="class 49", prediction="class 0", target="class 0", probabilities=probabilities)
    card = page(tmp_path, [given]).cards[0]
    assert "class 5" in card
    assert "class 49" in card
    assert "class 20" not in card
    assert "43 less probable" in card


def test_both_texts_of_a_pair_and_a_text_without_words_are_shown(tmp_path):
    pair = attribution("a man", text_pair="sleeps well", pair_words=[Word("sleeps", 0, 6, 9.0)])
    found = page(tmp_path, [pair, attribution("")])
    assert "sleeps well" in found.cards[0]
    assert "no words" in found.cards[1]


def test_markup_in_texts_labels_and_facts_is_inert(tmp_path):
    given = attribution(EVIL, label=EVIL, prediction=EVIL, text_pair=EVIL, target=EVIL, method=EVIL)
    found = page(tmp_path, [given, replace(given, label=[EVIL])], title=EVIL, facts={EVIL: EVIL})
    assert found.all("img") == []
    assert len(found.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert EVIL in found.cards[0]
    assert "{{ 7*7 }}" in found.cards[0]


def test_the_page_needs_nothing_from_outside(tmp_path):
    found = page(tmp_path, [attribution("good film")])
    loaded = {"src", "href", "srcset", "action", "style"}
    assert not any(loaded & attributes.keys() for _, attributes in found.tags)
    (policy,) = [each["content"] for each in found.all("meta") if each.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_no_texts_make_a_page_too(tmp_path):
    assert page(tmp_path, []).cards == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.attributions.jsonl: it can't be written .File exists.; choose a folder"):
        write_report([], tmp_path / "file", title="t", facts={})


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    write_report([attribution("old")], tmp_path, title="t", facts={})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report([attribution("new")], tmp_path, title="t", facts={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attributions.jsonl", "index.html"]
    assert "old" in (tmp_path / "attributions.jsonl").read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
class TestInABrowser:
    @staticmethod
    def dom(path: Path, profile: Path) -> str:
        quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
        options = [f"--disable-{name}" for name in quiet] + [f"--user-data-dir={profile}", "--no-first-run"]
        command = ["chromium", "--headless", "--no-sandbox", *options, "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def test_our_script_runs_and_markup_in_texts_does_nothing(self, tmp_path):
        given = [attribution(EVIL, label=EVIL, prediction=EVIL), attribution("good")]
        path = write_report(given, tmp_path / "report", title="sound", facts={EVIL: EVIL})
        html = self.dom(path, tmp_path / "profile")
        assert "<title>sound</title>" in html
        assert "2 of 2 shown" in html
        assert not re.search(r"<form[^>]* hidden", html)

    def test_the_policy_stops_code_that_got_in_all_the_same(self, tmp_path):
        path = write_report([attribution("good")], tmp_path / "report", title="sound", facts={})
        path.write_text(path.read_text("utf-8").replace("<main>", f"<main>{EVIL}", 1), "utf-8")
        html = self.dom(path, tmp_path / "profile")
        assert "<img src=" in html
        assert "<title>sound</title>" in html
