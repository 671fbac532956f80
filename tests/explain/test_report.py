import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import pytest

from lit_nlp.errors import ConfigError, UserError
from lit_nlp.explain import Attribution, Comparison, Word, compare, write_report
from lit_nlp.explain.faithfulness import Curve, Estimate, Figure
from lit_nlp.explain.report import chart, overview, to_cards
from lit_nlp.explain.words import find_words

BREAK = "document.title='broken'"
EVIL = (
    f'<img src=x onerror="{BREAK}"><script>{BREAK}</script>\'"&</script></noscript>]]><!--' + "{{ 7*7 }}\u2028\u202eabc"
)
VOID = {"meta", "img", "input", "link", "br", "rect", "path", "polyline"}


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


def answer(**changes) -> Attribution:
    question, context = "Who wrote it?", "It was written by Ann Lee in 1900."
    pair = [Word(context[a:b], a, b, float(a)) for a, b in find_words(context)]
    return replace(
        attribution(
            question, label=["ann lee", "Lee"], prediction="Ann Lee", probabilities={"Ann Lee": 0.9, "no answer": 0.1}
        ),
        text_pair=context,
        pair_words=pair,
        kind="span",
        parts=("question", "context"),
        span=(18, 25),
        **changes,
    )


def translation(**changes) -> list[Attribution]:
    """`the cat` as `Kätz|chen`, whose second token is read with `Kätzchen` half written, and an end of text."""
    written = "Das Kätzchen"
    scores = {(0, 3): [2.0, 0.5, 0.0, 0.0], (4, 8): [0.5, 1.0, -0.25, 0.0], (8, 12): [0.0, 4.0, 1.0, -2.0]}
    return [
        replace(
            attribution("the cat", label="Die Katze", prediction=written, target=written[a:b], probability=0.5),
            words=[Word("the", 0, 3, found[0]), Word("cat", 4, 7, found[1])],
            text_pair=written,
            pair_words=[Word("Das", 0, 3, found[2]), Word("Kätzchen", 4, 12, found[3])],
            probabilities={written[a:b]: 0.5, "x": 0.25},
            kind="token",
            parts=("source", "translation"),
            span=(a, b),
            **changes,
        )
        for (a, b), found in scores.items()
    ]


def figure(mean: float, verdict: Literal["better", "worse", "open"] = "open", *, floor: bool = False) -> Figure:
    value = Estimate(mean, mean - 0.1, mean + 0.1, texts=12)
    return Figure(value, None, None, "open") if floor else Figure(value, value, 0.01, verdict)


COMPARISON = Comparison(
    texts=12,
    figures={
        "random": {"comprehensiveness": figure(0.125, floor=True), "log_odds": figure(-0.25, floor=True)},
        "attention": {"comprehensiveness": figure(0.25), "log_odds": figure(0.5, "worse")},
        "occlusion": {"comprehensiveness": figure(0.5, "better")},
    },
    curves={
        "random": {},
        "attention": {},
        "occlusion": {
            "deletion": Curve([0.0, 0.5, 1.0], [1.0, 0.0, 0.0], area=0.3125),
            "insertion": Curve([0.0, 1.0], [0.0, 1.0], area=0.5),
        },
    },
    ranks={"random": 2.5, "attention": 2.0, "occlusion": 1.0},
    trusted="occlusion",
    reason="Trust occlusion for this model: it is far from random_scores",
)


def numbered(attributions: list[Attribution]) -> list[Attribution]:
    return [replace(each, row=row) for row, each in enumerate(attributions)]


class Page(HTMLParser):
    """The elements of a page, the visible text of its cards, and the marked pieces in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cards: list[str] = []
        self.text = ""
        self.island = ""
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
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "article" in self.open:
            self.cards[-1] += data
        if self.open[-1:] == ["script"] and self.all("script")[-1].get("type") == "application/json":
            self.island += data
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def classes(self, name: str) -> list[str]:
        return [attributes.get("class") or "" for attributes in self.all(name)]


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
    assert rows[0]["words"][1] == {"text": "film", "start": 5, "end": 9, "score": -2.0, "unknown": False}
    assert {"probability", "target", "method", "convergence_delta", "converged", "row"} <= rows[0].keys()


def test_mistakes_come_first_and_the_surest_of_them_on_top(tmp_path):
    given = numbered([
        attribution("right one"),
        attribution("unsure mistake", label="negative", probability=0.6),
        attribution("unknown one", label=None),
        attribution("sure mistake", label="negative", probability=0.99),
    ])  # fmt: skip
    found = page(tmp_path, given)
    order = [next(text.text for text in given if text.text in card) for card in found.cards]
    assert order == ["sure mistake", "unsure mistake", "unknown one", "right one"]
    assert "✗ Wrong" in found.cards[0]
    assert "✓ Right" in found.cards[3]
    assert "Not labelled" in found.cards[2]
    assert "right on 1 of 3 labelled texts and wrong on 2" in squeezed(found.text)


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
    assert "The words’ scores sum to +1.01. They add up to what the text changes, +1.01, but for +0.001" in card


def test_what_words_and_special_tokens_add_up_to_is_told(tmp_path):
    (card,) = page(tmp_path, [attribution("good", special_score=0.25, convergence_delta=0.01)]).cards
    told = (
        "The words’ scores sum to +1.00. Special tokens, which are no word, have +0.25 beside it. They add up to what"
        " the text changes, +1.24, but for +0.01 (the convergence delta)."
    )
    assert told in squeezed(card)


def test_scores_that_do_not_add_up_or_need_not_are_told(tmp_path):
    broken = attribution("good", converged=False, convergence_delta=-0.3)
    free = attribution("film", converged=None, convergence_delta=None, special_score=0.25, row=1)
    first, second = page(tmp_path, [broken, free]).cards
    assert "don’t add up: read them with care. They are off by −0.30 (the convergence delta)" in squeezed(first)
    assert "needn’t add up to anything. Special tokens, which are no word, have +0.25 beside it." in squeezed(second)


def test_scores_are_said_to_add_up_where_they_do(tmp_path):
    said = "scores of a text’s words add up to what they change together"
    adding, not_adding = attribution("good"), attribution("good", method="deep_lift", converged=False, row=1)
    assert f"mattered. The {said}" in squeezed(page(tmp_path / "all", [adding]).text)
    assert f"By integrated gradients the {said}" in squeezed(page(tmp_path / "some", [adding, not_adding]).text)
    text = squeezed(page(tmp_path / "none", [not_adding]).text)
    assert said not in text
    assert "They add up" not in text
    assert "The scores sum to " in text


def test_what_is_told_of_all_texts_is_in_a_file_for_programs(tmp_path):
    write_report([attribution("good")], tmp_path, title="t", facts={"Seed": "3"}, comparison=COMPARISON)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == {"title": "t", "facts": {"Seed": "3"}, "comparison": json.loads(json.dumps(asdict(COMPARISON)))}


def test_several_labels_and_numbers_are_shown(tmp_path):
    several = attribution("a", label=["toxic", "insult"], prediction=["insult", "toxic"], probability=None)
    none = attribution("b", label=["toxic"], prediction=[])
    number = attribution("c", label=4.5, prediction=2.25, probability=None, probabilities={}, target="stars")
    near = replace(number, text="d", label=2.0)
    b, c, d, a = map(squeezed, page(tmp_path, numbered([several, none, near, number])).cards)
    assert "Wrong Predicted none of the labels" in b
    assert "Right Predicted insult, toxic" in a
    assert "Labelled toxic, insult" in a
    assert "Predicted 2.25 Labelled 4.5" in c
    assert "Predicted 2.25 Labelled 2 " in d
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


@pytest.mark.parametrize(("probability", "told"), [(0.996455, "99.6%"), (0.99997, "over 99.9%")])
def test_a_probability_is_told_alike_in_the_headline_and_in_its_bar(
    probability: float, told: str, tmp_path: Path
) -> None:
    (card,) = page(tmp_path, [attribution("good", probability=probability)]).cards
    assert card.count(told) == 2
    assert "100" not in card


def test_words_that_are_unknown_are_told_once_and_not_all(tmp_path):
    words = [Word(f"w{i % 7}", i, i + 1, 1.0, unknown=i > 0) for i in range(9)]
    (card,) = to_cards([attribution("w" * 9, words=words)])
    assert card.views[0].notes[-1] == (
        "Read in whole or in part as the unknown token, whatever they say: w1, w2, w3, w4, w5 and 2 more."
    )
    (card,) = to_cards([attribution("good")])
    assert "nknown" not in " ".join(card.views[0].notes)
    page = write_report(
        [attribution("<b>", words=[Word("<b>", 0, 3, 1.0, unknown=True)])], tmp_path, title="t", facts={}
    )
    assert "whatever they say: &lt;b&gt;." in page.read_text("utf-8")
    (row,) = (tmp_path / "attributions.jsonl").read_text().splitlines()
    assert json.loads(row)["words"][0]["unknown"] is True


def test_both_texts_of_a_pair_and_a_text_without_words_are_shown(tmp_path):
    pair = attribution("a man", text_pair="sleeps well", pair_words=[Word("sleeps", 0, 6, 9.0)])
    found = page(tmp_path, numbered([pair, attribution("")]))
    assert "sleeps well" in found.cards[0]
    assert "Text pair" in found.cards[0]
    assert "no words" in found.cards[1]


def test_attributions_of_a_row_share_a_card_that_starts_with_what_the_model_says():
    given = [
        attribution("good", target=target, method=method)
        for method in ("occlusion", "integrated_gradients")
        for target in ("negative", "positive")
    ]
    (card,) = to_cards([*given])
    assert [(view.method, view.target) for view in card.views][:2] == [
        ("occlusion", "positive"),
        ("integrated_gradients", "positive"),
    ]
    (card,) = to_cards(given, trusted="integrated_gradients")
    assert (card.views[0].method, card.views[0].target) == ("integrated_gradients", "positive")
    assert len(card.parts) == 1


def test_pieces_put_together_are_the_text_and_words_are_cut_at_tokens():
    (card,) = to_cards(translation())
    source, written = card.parts
    assert "".join(source.pieces) == "the cat"
    assert written.pieces == ("Das", " ", "Kätz", "chen")
    assert written.words == (0, -1, 1, 1)
    assert written.names == ["Das", "Kätzchen"]
    assert [view.mark for view in card.views] == [(0, 1), (2, 3), (3, 4)]


def test_tokens_that_are_parts_of_one_character_stay_apart():
    byte = replace(translation()[0], text_pair="日本", pair_words=[Word("日本", 0, 2, 0.0)], span=(0, 1), target="日")
    given = [
        byte,
        byte,
        replace(byte, span=(1, 2)),
        replace(byte, method="occlusion"),
        replace(byte, target="日 rather than x"),
    ]
    (card,) = to_cards(given)
    assert [view.place for view in card.views] == [0, 1, 2, 0, 0]
    assert len(card.heat) == 3


def test_an_answer_is_outlined_and_judged_as_squad_does(tmp_path):
    right = answer()
    wrong = replace(answer(), row=41, prediction="1900", target="1900", span=(29, 33), label=[])
    html = write_report([right, wrong], tmp_path, title="t", facts={}).read_text("utf-8")
    first, second = Page(html).cards
    assert "✗ Wrong Answered 1900" in squeezed(first)
    assert "No. 2 · row 41" in squeezed(first)
    assert "Right answer no answer" in squeezed(first)
    assert "✓ Right Answered Ann Lee" in squeezed(second)
    assert "Question" in second
    assert "Context" in second
    assert "no answer10.0%" in squeezed(second)
    marks = [re.sub("<[^>]*>", "", mark) for mark in re.findall('<mark class="span">(.*?)</mark>', html)]
    assert marks == ["outlined", "1900", "Ann Lee"]


def test_the_heat_map_holds_each_token_by_the_words_read_before_it(tmp_path):
    html = write_report(translation(), tmp_path, title="t", facts={}).read_text("utf-8")
    (table,) = re.findall('<table class="heat">(.*?)</table>', html, re.DOTALL)
    cells = [re.findall("<t[dh].*?>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", table, re.DOTALL)]
    assert [[re.sub("<.*?>", "", cell) for cell in row] for row in cells] == [
        ["", "the", "cat", "Das", "Kätzchen"],
        ["Das", "+2.00", "+0.50", "", ""],
        ["Kätz", "+0.50", "+1.00", "−0.25", ""],
        ["chen", "0", "+4.00", "+1.00", "−2.00"],
    ]
    assert re.findall("level-.", table) == [f"level-{level}" for level in [8, 2, 4, 8, 2, 0, 8, 2, 4]]
    assert "Reference" in html
    assert "Die Katze" in html


def test_a_word_of_which_a_part_was_written_has_its_place_in_the_heat_map():
    def token(name: str, start: int, end: int, *scores: float) -> Attribution:
        written = [Word("ein", 0, 3, scores[0]), Word("östlichen", 4, 13, scores[1])]
        return attribution("an Eastern", row=0, kind="token", target=name, method="saliency", span=(start, end),
                           text_pair="ein östlichen", pair_words=written, parts=("source", "translation"))  # fmt: skip

    (card,) = to_cards([token("ein", 0, 3, 0.0, 0.0), token("öst", 4, 7, 1.0, 2.65), token("lichen", 7, 13, 1.0, 2.0)])
    assert [view.read for view in card.heat] == [0, 2, 2]


def test_scores_without_a_sign_are_not_told_as_for_or_against(tmp_path: Path):
    sided = write_report([attribution("a fine film")], tmp_path / "sided", title="t", facts={}).read_text()
    assert "Speak against it" in sided
    assert "orange, dash-underlined" in sided
    words = [Word("fine", 0, 4, 2.0), Word("film", 5, 9, 1.0)]
    given = [attribution("fine film", words=words, method="saliency")]
    sideless = write_report(given, tmp_path / "not", title="t", facts={}).read_text()
    assert "Count most for it" in sideless
    assert "this method\n    doesn’t say whether it speaks for it or against it" in sideless
    assert "Speak against it" not in sideless
    assert "orange, dash-underlined" not in sideless


def test_the_overview_holds_the_mean_and_count_of_words_whatever_their_case():
    def text(row: int, *words: tuple[str, float], **changes) -> Attribution:
        whole = " ".join(word for word, _ in words)
        spans = zip(find_words(whole), words, strict=True)
        return attribution(
            whole, words=[Word(word, a, b, score) for (a, b), (word, score) in spans], row=row, **changes
        )

    given = [text(0, ("Good", 2.0), ("plot", -1.0)), text(1, ("good", 4.0)), text(2, ("bad", 3.0), target="negative")]
    # By another method the same target of the same text doesn't count again.
    positive, negative = overview(to_cards([*given, text(1, ("good", 99.0), method="occlusion")]))
    assert (positive.target, positive.texts, positive.least) == ("positive", 2, 1)
    assert [(push.word, push.mean, push.count) for push in positive.raising] == [("good", 3.0, 2)]
    assert [(push.word, push.mean, push.count) for push in positive.lowering] == [("plot", -1.0, 1)]
    assert [push.word for push in negative.raising] == ["bad"]
    (often,) = overview(to_cards([text(row, ("good", 1.0), (f"w{row}", 9.0)) for row in range(10)]))
    assert [push.word for push in often.raising] == ["good"]


def test_the_comparison_tells_verdicts_in_words_and_which_way_is_better(tmp_path):
    shown = page(tmp_path, [attribution("good")], comparison=COMPARISON)
    text = squeezed(shown.text)
    assert "Trust occlusion for this model: it is far from random scores" in text
    assert "comprehensiveness ↑ higher is better" in text
    assert "log odds ↓ lower is better" in text
    # Whatever the intervals, cells say what the comparison says.
    assert "occlusion trusted 0.500 0.400 to 0.600 better than random – attention" in text
    assert "attention 0.250 0.150 to 0.350 not told apart from random 0.500 0.400 to 0.600 worse than random" in text
    assert "which favours methods that blank words themselves, such as feature ablation." in text
    assert "random floor 0.125 0.025 to 0.225 -0.250 -0.350 to -0.150 Each cell" in text


def test_the_charts_hold_the_mean_curves_and_the_areas_of_the_table(tmp_path):
    (line,) = chart("deletion", COMPARISON)["lines"]
    assert line == {"method": "occlusion", "points": "0.0,0.0 160.0,160.0 320.0,160.0", "area": 0.3125}
    shown = page(tmp_path, [attribution("good")], comparison=COMPARISON)
    assert len(shown.all("polyline")) == 2
    assert "occlusion area 0.312" in squeezed(shown.text)
    without = replace(COMPARISON, curves={method: {} for method in COMPARISON.figures})
    assert page(tmp_path, [attribution("good")], comparison=without).all("polyline") == []


def test_what_is_1_by_definition_is_told_so(tmp_path):
    figures = {"feature_ablation": {"deletion": figure(0.25, "better"), "tau_loo": figure(1.0, "better")}}
    comparison = replace(COMPARISON, figures=figures, curves={"feature_ablation": {}})
    text = squeezed(page(tmp_path, [attribution("good")], comparison=comparison).text)
    assert "0.250 0.150 to 0.350 better than random 1.000 0.900 to 1.100 1 by definition Each cell" in text


def test_a_comparison_of_nothing_is_told(tmp_path):
    nothing = compare({"random": [], "lime": []})
    text = squeezed(page(tmp_path, [attribution("good")], comparison=nothing).text)
    assert "0 texts are too few to tell a method from random scores" in text


def test_the_island_holds_every_card_with_its_training_examples(tmp_path):
    example = {"text": "fine", "label": "positive", "score": 0.5, "where": "train.csv, line 2"}
    lesser = {**example, "score": -0.1}
    found = page(tmp_path, numbered([attribution(f"text {i}") for i in range(30)]), influences={3: [lesser, example]})
    cards = json.loads(found.island)
    assert len(found.cards) == 20
    assert [card["number"] for card in cards] == list(range(1, 31))
    assert cards[3]["influences"] == [example, lesser]
    assert cards[0]["influences"] == []


def test_markup_in_texts_labels_and_facts_is_inert(tmp_path):
    given = attribution(EVIL, label=EVIL, prediction=EVIL, text_pair=EVIL, target=EVIL, method=EVIL)
    token = replace(given, row=2, kind="token", span=(0, 3), parts=(EVIL, EVIL))
    methods = {EVIL: COMPARISON.figures["occlusion"], "random": COMPARISON.figures["random"]}
    curves = {EVIL: COMPARISON.curves["occlusion"], "random": {}}
    evil = replace(COMPARISON, figures=methods, curves=curves, ranks={EVIL: 1.0}, trusted=EVIL, reason=EVIL)
    influences = {0: [{"text": EVIL, "label": EVIL, "score": 1.0, "where": EVIL}]}
    tokens = [token, replace(token, span=(3, 5))]
    rows = [given, replace(given, label=[EVIL], row=1), *tokens]
    found = page(tmp_path, rows, title=EVIL, facts={EVIL: EVIL}, influences=influences, comparison=evil)
    assert found.all("img") == []
    assert [each.get("type") for each in found.all("script")] == ["application/json", None]
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert EVIL in found.cards[0]
    assert "{{ 7*7 }}" in found.cards[0]
    (first,) = (card for card in json.loads(found.island) if card["number"] == 1)
    assert first["influences"] == influences[0]


def test_the_page_needs_nothing_from_outside(tmp_path):
    found = page(tmp_path, [attribution("good film"), *translation(row=1)], comparison=COMPARISON)
    loaded = {"src", "srcset", "action", "style"}
    assert not any(loaded & attributes.keys() for _, attributes in found.tags)
    assert {attributes["href"] for _, attributes in found.tags if "href" in attributes} == {"#cards"}
    (policy,) = [each["content"] for each in found.all("meta") if each.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_no_texts_make_a_page_too(tmp_path):
    assert page(tmp_path, []).cards == []


def test_a_row_that_is_not_there_cannot_be_pictured(tmp_path):
    with pytest.raises(UserError, match="png: there is no row 7, only rows 0 to 0"):
        write_report([attribution("good")], tmp_path, title="t", facts={}, png=7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "attributions: expected a list of attributions, got NoneType; write [attribution]"),
        (attribution("good"), "attributions: expected a list of attributions, got Attribution; write [attribution]"),
        (
            [attribution("good"), "bad"],
            "attributions: expected an attribution, got 'bad'; give what attribute() returns",
        ),
        (([attribution("good")], None), "attributions: expected an attribution, got [Attribution(text='good'"),
    ],
)
def test_what_is_no_list_of_attributions_is_told_before_anything_is_written(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    with pytest.raises(ConfigError) as raised:
        write_report(given, tmp_path, title="t", facts={})
    assert str(raised.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file.attributions.jsonl: it can't be written .File exists.; choose another name"
    ):
        write_report([], tmp_path / "file", title="t", facts={})


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    write_report([attribution("old")], tmp_path, title="t", facts={})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report([attribution("new")], tmp_path, title="t", facts={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attributions.jsonl", "index.html", "report.json"]
    assert "old" in (tmp_path / "attributions.jsonl").read_text()


class Tab:
    """A page in headless chromium, asked and used through its debugging pipe."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._number, self._unread = reading, writing, 0, b""
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **params) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._reading], [], [], 120)
            more = os.read(self._reading, 1 << 16) if ready else b""
            assert more, "the browser is silent or gone"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        return squeezed(self.run(f"document.querySelector({selector!r}).textContent"))

    def choose(self, selector: str, value: str | None = None) -> None:
        element = f"document.querySelector({selector!r})"
        if value is None:
            return self.run(f"{element}.click()")
        event = "new Event({}, {{bubbles: true}})"
        self.run(f"{element}.value = {value!r}")
        for kind in ("input", "change"):
            self.run(f"{element}.dispatchEvent({event.format(repr(kind))})")
        return None

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            codes = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    options = [f"--disable-{name}" for name in quiet] + [f"--user-data-dir={profile}", "--no-first-run"]
    command = ["chromium", "--headless", "--no-sandbox", "--remote-debugging-pipe", *options, "about:blank"]
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # it reads from 3 and writes to 4
    process = subprocess.Popen(
        ["bash", "-c", shell, "-", *command],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_in, ours_out)
    finally:
        process.terminate()
        process.wait(timeout=60)
        os.close(ours_in)
        os.close(ours_out)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
class TestInABrowser:
    def test_our_script_runs_and_markup_in_texts_does_nothing(self, tmp_path, tab):
        evil = attribution(EVIL, label=EVIL, prediction=EVIL, text_pair=EVIL, parts=(EVIL, EVIL))
        token = replace(evil, row=1, kind="token", span=(0, 3), target=EVIL, method=EVIL)
        tokens = [token, replace(token, span=(3, 5)), replace(token, span=(3, 5), target=f"{EVIL}2")]
        influences = {0: [{"text": EVIL, "label": EVIL, "score": 1.0, "where": EVIL}]}
        given = [evil, *tokens, attribution("good", row=2)]
        tab.open(write_report(given, tmp_path, title="sound", facts={EVIL: EVIL}, influences=influences))
        tab.run("document.querySelectorAll('details').forEach((each) => each.open = true)")
        tab.run("document.querySelectorAll('.card input').forEach((each) => each.click())")
        assert tab.run("document.title") == "sound"
        assert tab.run("document.images.length") == 0
        assert tab.text("#count") == "3 of 3 shown"
        assert not tab.run("document.getElementById('filter').hidden")
        assert tab.run("document.querySelector('.card .text').textContent") == EVIL

    def test_the_policy_stops_code_that_got_in_all_the_same(self, tmp_path, tab):
        path = write_report([attribution("good")], tmp_path, title="sound", facts={})
        path.write_text(path.read_text("utf-8").replace("<main", f"<p>{EVIL.replace('<!--', '')}</p><main", 1), "utf-8")
        tab.open(path)
        assert tab.run("document.images.length") == 1
        assert tab.run("document.title") == "sound"

    def test_the_script_draws_the_cards_as_the_template_does(self, tmp_path, tab):
        number = attribution("c", label=4.5, prediction=2.25, probability=None, probabilities={}, target="stars")
        given = [attribution("so 🎬 good, so bad"), answer(), number, attribution(""), attribution("x", label=None)]
        path = write_report(numbered(given), tmp_path, title="t", facts={})
        tab.open(path)
        tab.run("document.querySelectorAll('.card details').forEach((each) => each.remove())")
        drawn = Page(tab.run("document.getElementById('cards').outerHTML"))
        static = Page(re.search("<main.*</main>", path.read_text("utf-8"), re.DOTALL)[0])
        # The template indents, the script doesn't.
        assert [re.sub(r"\s", "", card) for card in drawn.cards] == [re.sub(r"\s", "", card) for card in static.cards]
        marks = [[each for each in page.all("span") if "title" in each] for page in (drawn, static)]
        assert marks[0] == marks[1]
        assert drawn.all("rect") == static.all("rect")

    def test_another_class_or_method_is_chosen_by_button(self, tmp_path, tab):
        given = [
            attribution("good film", target=target, method=method, words=[Word("good", 0, 4, score)])
            for target, method, score in [
                ("positive", "occlusion", 1.0),
                ("negative", "occlusion", -2.0),
                ("positive", "integrated_gradients", 3.0),
                ("negative", "integrated_gradients", -4.0),
            ]
        ]
        tab.open(write_report(given, tmp_path, title="t", facts={}))
        assert tab.run("document.querySelector('.text span').title") == "+1.00"
        tab.choose('input[value="negative"]')
        assert tab.run("document.querySelector('.text span').title") == "−2.00"
        tab.choose('input[value="integrated_gradients"]')
        assert tab.run("document.querySelector('.text span').title") == "−4.00"
        tab.press("ArrowLeft")  # the focus stays on the method
        assert tab.run("document.querySelector('.text span').title") == "−2.00"
        assert tab.text(".card footer").endswith("occlusion")

    def test_a_token_that_is_chosen_shows_what_led_to_it(self, tmp_path, tab):
        tab.open(write_report(translation(), tmp_path, title="t", facts={}))
        titles = "[...document.querySelectorAll('.texts p.text span')].map((each) => each.title)"
        assert tab.run(titles) == ["+2.00", "+0.50"]
        tab.choose('.token input[value="2"]')
        assert tab.run(titles) == ["+4.00"]
        tab.press("ArrowLeft")
        assert tab.run(titles) == ["+0.50", "+1.00"]
        tab.choose('table.heat button[data-place="0"]')
        assert tab.run(titles) == ["+2.00", "+0.50"]
        assert tab.run("document.activeElement.dataset.place") == "0"

    def test_cells_of_the_heat_map_are_read_by_arrow_keys(self, tmp_path, tab):
        tab.open(write_report(translation(), tmp_path, title="t", facts={}))
        tab.run("document.querySelector('table.heat td[tabindex=\"0\"]').focus()")
        assert tab.text(".about").startswith("the speaks for Das: +2.00, 80.0% of all that counted")
        tab.press("ArrowDown")
        tab.press("ArrowRight")
        tab.press("ArrowRight")
        assert tab.text(".about").startswith("Das speaks against Kätz: −0.25, 14.3% of all")
        tab.press("ArrowRight")  # not written yet
        assert tab.text(".about").startswith("Das speaks against Kätz")
        shades = "[...document.querySelectorAll('table.heat tbody td')].map((each) => each.className.match(/\\d/)?.[0])"
        assert tab.run(shades)[:4] == ["8", "2", None, None]
        tab.choose('input[name="alike-1"][value="1"]')
        assert tab.run(shades)[:4] == ["4", "1", None, None]

    def test_a_thousand_texts_are_filtered_sorted_searched_and_drawn_as_they_are_reached(self, tmp_path, tab):
        given = [
            attribution(
                f"text number {i}" + " long" * (i == 500),
                label=["positive", "negative"][i % 2],
                probability=0.5 + i / 2500,
                row=i,
            )
            for i in range(1000)
        ]
        path = write_report(given, tmp_path, title="t", facts={})
        assert len(Page(path.read_text("utf-8")).cards) == 20
        tab.open(path)
        first = "document.querySelector('.card .text').textContent"
        drawn = "document.querySelectorAll('.card').length"
        assert tab.text("#count") == "1000 of 1000 shown"
        assert tab.run(first) == "text number 999"
        assert tab.run(drawn) < 100
        tab.choose('input[name="verdict"][value="right"]')
        assert tab.text("#count") == "500 of 1000 shown"
        assert tab.run(first) == "text number 0"
        tab.choose('select[name="labels"]', "negative")
        assert tab.text("#count") == "0 of 1000 shown"
        tab.choose('input[name="verdict"][value=""]')
        tab.choose('select[name="labels"]', "")
        for order, expected in [("unsure", 0), ("sure", 999), ("long", 500), ("short", 9), ("number", 0)]:
            tab.choose('select[name="sort"]', order)
            assert tab.run(first).startswith(f"text number {expected}")
        tab.choose('input[name="search"]', "NUMBER 77")
        assert tab.text("#count") == "11 of 1000 shown"
        assert tab.run("document.getElementById('more').hidden")
        tab.choose('input[name="search"]', "")
        while not tab.run("document.getElementById('more').hidden"):
            tab.choose("#more")
        assert tab.run(drawn) == 1000

    def test_training_examples_are_told_by_what_they_spoke_for(self, tmp_path, tab):
        examples = [
            {"text": "fine", "label": "positive", "score": 0.5, "where": "train.csv, line 2"},
            {"text": "poor", "label": "negative", "score": -0.25, "where": "train.csv, line 9"},
        ]
        tab.open(write_report([attribution("good")], tmp_path, title="t", facts={}, influences={0: examples}))
        tab.run("document.querySelectorAll('details').forEach((each) => each.open = true)")
        tab.run("new Promise((done) => setTimeout(done, 50))")  # the details' event
        assert "Spoke for it+0.50finepositive · train.csv, line 2Spoke against it−0.25poor" in tab.text(".card")
