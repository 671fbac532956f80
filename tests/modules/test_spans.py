import pytest
import torch

from lit_nlp.modules.spans import ReadWindow, Spot, bare_span, best_spans, find_spans, find_spots, no_answer_spots


@pytest.mark.parametrize("max_answer_length", [1, 3, 30])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_spans_are_those_of_all_that_could_be(seed: int, max_answer_length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 9, 2, generator=generator)
    mask = torch.rand(4, 9, generator=generator) > 0.3
    mask[3] = False
    mask[3, 4] = True
    best = best_spans(logits, mask, max_answer_length=max_answer_length, n_best=6)
    for window in range(4):
        every = [
            (logits[window, start, 0] + logits[window, end, 1], start, end)
            for start in range(9)
            for end in range(start, min(9, start + max_answer_length))
            if mask[window, start] and mask[window, end]
        ]
        expected = [[start, end] for _, start, end in sorted(every, reverse=True)[:6]]
        assert best[window, : len(expected)].tolist() == expected


@pytest.mark.parametrize(
    ("context", "span", "expected"),
    [
        (" a b ", (0, 5), (1, 4)),
        ("cafe\u0301 x", (0, 4), (0, 5)),
        ("क\u094dष x", (0, 1), (0, 2)),
        ("שלום", (0, 4), (0, 4)),
    ],
)
def test_a_span_has_no_blanks_around_it_and_whole_letters(
    context: str, span: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert bare_span(context, *span) == expected


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        ("art", "a party of art, and Art", [(11, 14)]),
        ("part", "a party", [(2, 6)]),
        ("us", "The US must pay us", [(16, 18)]),
        ("us", "The US must pay", [(4, 6)]),
        ("ada", "Canada", [(3, 6)]),
        ("bob", "Bob, BOBBY", [(0, 3)]),
        (" good ", "good, good", [(0, 4), (6, 10)]),
        ("a.b", "axb a.b", [(4, 7)]),
        ("東京", "私は東京に住む", [(2, 4)]),
        ("-5", "from -5 to 5", [(5, 7)]),
        ("film", "a story", []),
        (" ", "a story", []),
    ],
)
def test_a_text_is_found_as_whole_words_if_anywhere(text: str, context: str, expected: list[tuple[int, int]]) -> None:
    assert find_spans(text, context) == expected


def window(*context: tuple[int, int]) -> ReadWindow:
    return ReadWindow(
        {"input_ids": [1] * len(context)},
        [1] * len(context),
        list(context),
        list(context),
        0,
        torch.zeros(len(context), 2),
    )


def test_a_span_is_found_in_all_windows_that_hold_it_whole_or_else_most_of_it() -> None:
    windows = [window((0, 0), (0, 2), (3, 5)), window((0, 0), (3, 5), (6, 8)), window((0, 0), (9, 11))]
    assert find_spots(windows, [(3, 5)]) == [Spot(0, (3, 5), 2, 2), Spot(1, (3, 5), 1, 1)]
    assert find_spots(windows, [(3, 8)]) == [Spot(1, (3, 8), 1, 2)]
    assert find_spots(windows, [(0, 11)]) == [Spot(0, (0, 11), 1, 2), Spot(1, (0, 11), 1, 2)]
    assert find_spots(windows, [(20, 22)]) == []
    assert no_answer_spots(windows) == [Spot(i, None, 0, 0) for i in range(3)]


def test_the_tokens_of_one_side_stand_with_none_for_the_other() -> None:
    spot = Spot(0, (3, 8), 1, 2)
    assert (spot.tokens(), spot.tokens("start"), spot.tokens("end")) == ([1, 2], [1, -1], [-1, 2])
