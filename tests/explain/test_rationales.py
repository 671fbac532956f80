"""What people marked is read line by line, and meets the words that it touches."""

import pytest

from lit_nlp.errors import DataError
from lit_nlp.explain import Rationale, attribute, compare_methods, read_rationales
from tests.explain import fakes


def test_each_row_has_its_line(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text('{"text": [[0, 4], [9, 12]]}\n{}\n{"text": [], "text_pair": [[1, 2]]}\n')
    assert read_rationales(str(path), [2, 0, 1]) == [
        Rationale([], [(1, 2)]),
        Rationale([(0, 4), (9, 12)]),
        Rationale(),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": [[0, 4]', "line 2: broken JSON"),
        ('{"txt": [[0, 4]]}', 'line 2: expected spans, got {"txt": [[0, 4]]}; write {"text": [[start, end], …]}'),
        ('{"text": [[4, 4]]}', "line 2: expected spans"),
        ('{"text": [[-1, 4]]}', "line 2: expected spans"),
        ('{"text": [[0, 1.5]]}', "line 2: expected spans"),
        ('{"text": [0, 4]}', "line 2: expected spans"),
        ("[]", "line 2: expected spans"),
    ],
)
def test_a_line_that_marks_nothing_is_told(line, message, tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text("{}\n" + line + "\n")
    with pytest.raises(DataError) as raised:
        read_rationales(str(path), [0])
    assert str(raised.value).startswith(f"{path}, {message}")


def test_too_few_lines_are_told(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"there is no line for row 3 of the split \(counted from 0\)"):
        read_rationales(str(path), [0, 3])


def test_a_line_that_is_of_no_row_is_told(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text("{}\n" * 5)
    assert read_rationales(str(path), [0, 3], total=5) == [Rationale()] * 2
    with pytest.raises(DataError) as raised:
        read_rationales(str(path), [0, 2], total=3)
    assert str(raised.value).startswith(f"{path}, line 4: it is of no row, the split has 3; write a line for each row")


def test_words_that_a_span_touches_are_marked_in_both_texts():
    (found,) = attribute(fakes.bert(), [("a dull plot", "good film")], method="saliency")
    assert Rationale([(4, 6)], [(0, 4)]).words_of(found).tolist() == [False, True, False, True, False]
    with pytest.raises(DataError, match=r"rationales: the span \[0, 99\] ends beyond the 9 characters of the row's"):
        Rationale((), [(0, 99)]).words_of(found)


def test_methods_are_measured_by_what_was_marked_where_it_was():
    module = fakes.bag()
    texts = ["the film is very good .", "a dull plot", "bad film"]
    _, comparison = compare_methods(
        module, texts, ["feature_ablation"], target="positive", rationales=[Rationale([(17, 21)]), None, Rationale()]
    )
    figures = comparison.figures["feature_ablation"]
    assert figures["auprc"].value.texts == 1, "of the others there is none that could be found"
    weight, table = module.model.head.weight[2], module.model.embedding.weight
    words = ["the", "film", "is", "very", "good", "."]
    credit = [float((table[fakes.VOCABULARY.index(word)] - table[fakes.PAD]) @ weight) for word in words]
    rank = sorted(credit, reverse=True).index(credit[4]) + 1
    assert figures["auprc"].value.mean == pytest.approx(1 / rank)
    assert figures["token_f1"].value.mean == float(rank == 1)
