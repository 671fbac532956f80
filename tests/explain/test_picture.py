import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from lit_nlp.errors import UserError
from lit_nlp.explain import Word, picture, write_report
from lit_nlp.explain.picture import draw, write_picture
from lit_nlp.explain.report import to_cards
from tests.explain.test_report import COMPARISON, answer, attribution, translation


def written(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_row_is_drawn_beside_the_page_and_an_earlier_picture_is_kept(tmp_path):
    given = [attribution("good film"), attribution("bad film", row=1)]
    for _ in range(2):
        write_report(given, tmp_path, title="t", facts={}, png=1)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["row-1-1.png", "row-1.png"]
    assert imread(tmp_path / "row-1.png").shape[1] == 1500


def test_the_picture_shows_the_method_that_the_page_shows_first(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(picture, "draw", lambda card: drawn.append(card) or draw(card))
    given = [attribution("good film", method=method) for method in ("attention", "occlusion")]
    write_report(given, tmp_path, title="t", facts={}, comparison=COMPARISON, png=0)
    assert [card.views[0].method for card in drawn] == ["occlusion"]


def test_words_for_are_blue_and_words_against_orange(tmp_path):
    def colours(score: float) -> tuple[bool, bool]:
        write_picture([attribution("good", words=[Word("good", 0, 4, score)])], tmp_path / "a.png")
        red, _, blue = np.moveaxis(imread(tmp_path / "a.png")[..., :3], -1, 0)
        return bool((blue - red > 0.3).any()), bool((red - blue > 0.3).any())

    assert colours(1.0) == (True, False)
    assert colours(-1.0) == (False, True)


def test_signs_and_numbers_are_written_beside_the_colours():
    found = written(draw(to_cards([attribution("good film")])[0]))
    assert {"good", "film", "+1.00", "−2.00", "positive", "90.0%"} <= set(found)
    assert "Right · Predicted positive 90.0% · Labelled positive" in found


def test_an_answer_stands_in_its_context():
    found = written(draw(to_cards([answer()])[0]))
    assert {"Question", "Context", "Ann", "Lee"} <= set(found)


def test_written_texts_are_a_table_of_tokens_by_words():
    found = written(draw(to_cards(translation())[0]))
    assert {"Kätz", "chen", "+4.00", "−2.00"} <= set(found)


def test_long_texts_and_many_tokens_are_cut_and_it_is_told(tmp_path):
    long = attribution("word " * 3000)
    figure = draw(to_cards([long])[0])
    assert "… the rest is in the page" in written(figure)
    assert figure.get_figheight() < 40


@pytest.mark.parametrize(
    "text", ["$x^2$ costs $5", "日本語のテキスト", "فيلم جميل", "a\u202eb\x00c", "one\ntwo\r\n\nthree", ""]
)
def test_any_text_can_be_drawn_without_a_warning(tmp_path, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*a.png has boxes")  # where the machine has no font for it
        write_picture([attribution(text)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_characters_that_no_font_holds_are_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "_FONTS", ["DejaVu Sans"])
    with pytest.warns(UserWarning, match="has boxes") as told:
        write_picture([attribution("日本語のテキスト")], tmp_path / "a.png")
    assert [str(each.message).split(";")[0] for each in told] == [
        f"{tmp_path / 'a.png'} has boxes in place of characters that no font here holds"
    ]


@pytest.mark.parametrize(
    ("score", "number"),
    [(0.04, "0"), (-0.04, "0"), (0.26, "+0.3"), (-1.0, "−1.0"), (9.96, "+10"), (-123.4, "−123")],
)
def test_a_narrow_cell_tells_how_much_in_few_characters(score: float, number: str):
    assert picture._shortest(score) == number


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"it can't be written"):
        write_picture([replace(attribution("good"))], tmp_path / "file" / "a.png")
