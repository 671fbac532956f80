"""Questions, contexts and answers, in every form and with every known fault, become windows with the right spans."""

import csv
import json
import random
import re
import unicodedata
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from lit_nlp.data.question_answering import Gold, QuestionAnsweringDataModule, answer_tokens, locate
from lit_nlp.errors import ConfigError, DataError
from lit_nlp.pretrained import load_tokenizer
from lit_nlp.tokenization import context_offsets, encode_windows, no_answer_positions

CONTEXT = "the acting is good but the story is bad and far too long to be any fun"
ROWS = [
    {"id": "q1", "question": "what is good", "context": CONTEXT, "answers": [{"text": "acting", "answer_start": 4}]},
    {"id": "q2", "question": "what is bad", "context": CONTEXT, "answers": [{"text": "story", "answer_start": 27}]},
    {"id": "q3", "question": "who wrote it", "context": "a dull film", "answers": []},
]

Make = Callable[..., QuestionAnsweringDataModule]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def squad(rows: list[dict[str, Any]], version: str = "v2.0") -> dict[str, Any]:
    """Rows as SQuAD writes them, each context an article of its own."""
    articles = []
    for row in rows:
        asked = {name: row[name] for name in row if name != "context"}
        articles.append({"title": "x", "paragraphs": [{"context": row["context"], "qas": [asked]}]})
    return {"version": version, "data": articles}


@pytest.fixture
def make(bert: str) -> Make:
    """A data module whose splits all hold these rows."""

    def module(rows: Any, backbone: str = bert, **arguments: Any) -> QuestionAnsweringDataModule:
        source = rows if isinstance(rows, str) else write("rows.jsonl", rows)
        sources = {"train": source, "val": source, "test": source, "predict": source}
        return QuestionAnsweringDataModule(backbone, **{**sources, "max_length": 48, "doc_stride": 4, **arguments})

    return module


def answered(answers: Any, context: str = CONTEXT, **more: Any) -> list[dict[str, Any]]:
    return [{"id": "q9", "question": "what", "context": context, "answers": answers, **more}]


def only_batch(module: QuestionAnsweringDataModule, split: str = "test") -> dict[str, Any]:
    """The rows of a split as one batch, in their order."""
    module.setup("fit" if split in ("train", "val") else split)
    batches = getattr(module, f"{split}_dataloader")()
    return batches.collate(batches.dataset.__getitems__(list(range(len(batches.dataset)))))


def spans(batch: dict[str, Any]) -> list[str | None]:
    """What each window's positions stand for: a text, or None for no answer."""
    rows = batch["row"].tolist()
    found = []
    for window, row in enumerate(rows):
        start, end = int(batch["start_positions"][window]), int(batch["end_positions"][window])
        offsets = batch["offsets"][window]
        none = int(batch["no_answer_position"][window])
        text = batch["context"][row][offsets[start, 0] : offsets[end, 1]]
        found.append(None if (start, end) == (none, none) else text)
    return found


# What is read


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "story", "answer_start": 27}],
        [{"text": "story", "answer_start": 27}, {"text": "the story", "answer_start": 23}],
        {"text": ["story"], "answer_start": [27]},
        {"text": "story", "answer_start": 27},
        {"text": ["story"]},
        [{"text": "story"}],
        ["story"],
        "story",
        [{"text": "story", "answer_start": 27.0}],
        [{"text": "story", "answer_start": "27"}],
        [{"text": " story\n", "answer_start": 26}],
        [{"text": "story ", "answer_start": 27}],
    ],
)
def test_answers_are_read_in_every_form(make: Make, answers: Any) -> None:
    batch = only_batch(make(answered(answers)))
    assert batch["answers"][0][0] == "story"
    assert spans(batch) == ["story"]


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
def test_a_question_without_answers_has_none(make: Make, answers: Any) -> None:
    batch = only_batch(make(answered(answers)))
    assert (batch["answers"], spans(batch)) == ([[]], [None])


def test_squad_json_parquet_and_flat_files_give_the_same_batches(make: Make) -> None:
    Path("squad.json").write_text(json.dumps(squad(ROWS), indent=1))
    hub = [
        row | {"answers": {key: [a[key] for a in row["answers"]] for key in ("text", "answer_start")}} for row in ROWS
    ]
    pa.parquet.write_table(pa.Table.from_pylist(hub), "rows.parquet")
    datasets.Dataset.from_list(hub).save_to_disk("saved")
    (arrow,) = Path("saved").glob("*.arrow")
    expected = only_batch(make(ROWS))
    for source in ("squad.json", "rows.parquet", str(arrow)):
        batch = only_batch(make(source))
        assert batch.keys() == expected.keys()
        for name, value in batch.items():
            assert torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name]


def test_texts_and_starts_may_stand_in_columns_of_their_own(make: Make) -> None:
    Path("rows.csv").write_text(f"question,context,answer,start\nwhat,{CONTEXT},story,27\nwho,{CONTEXT},acting,4\n")
    batch = only_batch(make("rows.csv", columns={"answers": ["answer", "start"]}))
    assert spans(batch) == ["story", "acting"]
    with pytest.raises(ConfigError, match=r"data.columns: answers are read from one column, or from texts and starts"):
        make("rows.csv", columns={"answers": ["answer"]})


def test_answers_in_a_table_may_be_json(make: Make) -> None:
    bracketed, objects = "it is [see 12] here", 'it holds {"a": 1} and [{"a": 1}]'
    cells = [(row["question"], row["context"], json.dumps(row["answers"])) for row in ROWS]
    cells += [("where", bracketed, "[see 12]"), ("what", objects, '[{"a": 1}]')]
    cells.append(("what", CONTEXT, json.dumps({"text": ["story"], "answer_start": [27]})))
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "context", "answers"), *cells])
    assert spans(only_batch(make("rows.csv"))) == ["acting", "story", None, "[see 12]", '[{"a": 1}]', "story"]


@pytest.mark.parametrize(("impossible", "answers"), [(True, ["story"]), (False, [])])
def test_answers_and_a_flag_that_contradict_each_other_are_refused(
    make: Make, impossible: bool, answers: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        only_batch(make(answered(answers, is_impossible=impossible)))
    assert str(caught.value) == (
        f"rows.jsonl, line 1, id q9: is_impossible is {str(impossible).lower()}, but there are {len(answers)} answers;"
        " correct one of the two"
    )
    assert spans(only_batch(make(answered(answers, is_impossible=not impossible)))) == (answers or [None])


def test_blank_cells_of_a_flat_file_make_a_question_without_an_answer(make: Make) -> None:
    Path("rows.csv").write_text(f"question,context,answer,start\nwhat,{CONTEXT},story,27\nwho,{CONTEXT},,\n")
    module = make("rows.csv", columns={"answers": ["answer", "start"]})
    assert spans(only_batch(module)) == ["story", None]
    assert module.facts["unanswerable"] is True
    assert spans(only_batch(make("rows.csv", columns={"answers": "answer"}))) == ["story", None]
    Path("rows.csv").write_text(f"question,context,answer,start\nwho,{CONTEXT},,4\n")
    with pytest.raises(DataError, match=r"rows.csv, line 2: expected the text of an answer"):
        only_batch(make("rows.csv", columns={"answers": ["answer", "start"]}))


def test_a_row_without_an_id_has_its_number_and_a_number_may_be_one(make: Make) -> None:
    bare = [{name: value for name, value in row.items() if name != "id"} for row in ROWS]
    assert only_batch(make(bare))["id"] == ["0", "1", "2"]
    assert only_batch(make([row | {"id": 7 - i} for i, row in enumerate(ROWS)]))["id"] == ["7", "6", "5"]


def test_predicting_needs_no_answers_and_reads_none(make: Make) -> None:
    expected = only_batch(make(ROWS))
    bare = [{name: row[name] for name in ("question", "context")} for row in ROWS]
    for rows in (bare, [row | {"answers": {"odd": None}} for row in bare]):
        batch = only_batch(make(rows), "predict")
        assert batch.keys().isdisjoint({"start_positions", "end_positions", "answers"})
        assert torch.equal(batch["input_ids"], expected["input_ids"])


# What is refused, each with its file and id


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [{"text": "acting", "answer_start": 50}],
            "at answer_start 50 stands 'o long', not answer 'acting'; correct it: 4 is the first",
        ),
        (
            [{"text": "plot", "answer_start": 4}],
            "at answer_start 4 stands 'acti', not answer 'plot'; correct the answer: the context doesn't hold it",
        ),
        (
            [{"text": "acting", "answer_start": 700}],
            "answer_start 700 of answer 'acting' lies beyond the context's 70 characters; correct it: 4 is the first",
        ),
        ([{"text": "acting", "answer_start": -1}], "answer_start -1 of answer 'acting' is no place in the context"),
        ([{"text": "acting", "answer_start": True}], "answer_start True of answer 'acting' is no place"),
        ([{"text": "acting", "answer_start": 4.5}], "answer_start 4.5 of answer 'acting' is no place"),
        ([{"text": "acting", "answer_start": "four"}], "answer_start 'four' of answer 'acting' is no place"),
        (["plot"], "answer 'plot' doesn't stand in the context; correct it, or delete the row"),
        (["the"], "answer 'the' stands at 0 and at 23, and has no answer_start; give it one; a cell of"),
        ([{"text": " ", "answer_start": 3}], "expected the text of an answer, got {'text': ' ', 'answer_start': 3}"),
        ([{"answer_start": 3}], "expected the text of an answer, got {'answer_start': 3}"),
        ([{"text": 7, "answer_start": 3}], "expected the text of an answer, got {'text': 7, 'answer_start': 3}"),
        ({"odd": 1}, "expected the text of an answer"),
        (3, "expected answers, got 3; write a list of objects with text and answer_start, [] where there is none"),
        (
            {"text": ["a", "b"], "answer_start": [1]},
            "2 texts of answers with answer_start [1]; give each text its start",
        ),
        ({"text": ["a"], "answer_start": 1}, "1 texts of answers with answer_start 1; give each text its start"),
    ],
)
def test_an_answer_that_leads_nowhere_is_refused_with_file_and_id(make: Make, answers: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        make(answered(answers)).setup("test")
    assert str(caught.value).startswith(f"rows.jsonl, line 1, id q9: {message}")
    Path("squad.json").write_text(json.dumps(squad(answered(answers)) if isinstance(answers, list) else {}))
    if isinstance(answers, list):
        with pytest.raises(DataError) as caught:
            make("squad.json").setup("test")
        assert str(caught.value).startswith(f"squad.json, article 1, paragraph 1, question q9: {message}")


def test_a_question_longer_than_max_length_is_refused_with_its_place(make: Make) -> None:
    rows = [*ROWS, {**ROWS[0], "id": "long", "question": " ".join(["acting"] * 60)}]
    with pytest.raises(DataError) as caught:
        make(rows).setup("test")
    assert str(caught.value) == (
        "rows.jsonl, line 4, id long: the question's 60 tokens and 3 special tokens leave no room for the context in"
        " max_length=48; raise max_length, or shorten the question"
    )


def test_an_id_that_stands_twice_is_refused_with_both_places(make: Make) -> None:
    with pytest.raises(DataError) as caught:
        make([*ROWS, ROWS[1]]).setup("test")
    assert str(caught.value) == (
        "rows.jsonl, line 4, id q2: the id q2 stands already at rows.jsonl, line 2, id q2;"
        " give each question an id of its own"
    )
    first, second = write("one.jsonl", ROWS), write("two.jsonl", ROWS[2:])
    with pytest.raises(DataError, match=r"two.jsonl, line 1, id q3: the id q3 stands already at one.jsonl, line 3"):
        make(first, test=[first, second]).setup("test")
    document = squad(ROWS[:1])
    asked = document["data"][0]["paragraphs"][0]["qas"]
    asked.append(asked[0])
    Path("squad.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"paragraph 1, question {asked[0]['id']}: the id .* stands there twice; give"):
        make("squad.json").setup("test")


@pytest.mark.parametrize("missing", ["question", "context", "answers"])
def test_a_missing_key_is_told(make: Make, missing: str) -> None:
    rows = [{name: value for name, value in row.items() if name != missing} for row in ROWS]
    with pytest.raises(DataError, match=f"rows.jsonl, line 1: no column '{missing}' among id, "):
        make(rows).setup("test")


def test_half_a_character_is_refused_with_its_place(make: Make) -> None:
    Path("squad.json").write_text(json.dumps(squad(answered(["acting"], question="what \ud83d"))))
    with pytest.raises(DataError, match=r"squad.json, article 1, paragraph 1, question q9: a lone surrogate, half"):
        make("squad.json").setup("test")
    Path("half.json").write_text(json.dumps(squad(answered(["acting"], context="\udc00 acting"))))
    with pytest.raises(DataError, match=r"half.json, article 1, paragraph 1: a lone surrogate, half"):
        make("half.json").setup("test")
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: a lone surrogate, half"):
        make(answered(["acting"], context="\udc00 acting")).setup("test")


@pytest.mark.parametrize("doc_stride", [-1])
def test_a_negative_overlap_is_refused(bert: str, doc_stride: int) -> None:
    with pytest.raises(ConfigError, match="data: doc_stride must be at least 0, got -1"):
        QuestionAnsweringDataModule(bert, doc_stride=doc_stride)


# Wrong starts that tell where they mean

WIDE = "«Žižek» met 中村 and 👩‍🔬 Ada, then שלום Ada went home"


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("met", WIDE.index("met") + 1),
        ("met", WIDE.index("met") - 5),
        ("home", len(WIDE[: WIDE.index("home")].encode())),
        ("home", len(WIDE[: WIDE.index("home")].encode("utf-16-le")) // 2),
        ("中村", len(WIDE[: WIDE.index("中村")].encode())),
        ("went", len(WIDE[: WIDE.index("went")].encode())),
        (" went", len(WIDE[: WIDE.index(" went")].encode())),
    ],
)
def test_a_start_in_other_units_or_a_few_characters_off_is_repaired(text: str, given: int) -> None:
    gold = locate(WIDE, text, given, "here")
    assert gold == Gold(WIDE.index(text.strip()), WIDE.index(text.strip()) + len(text.strip()), repaired=True)


@pytest.mark.parametrize("units", [lambda text: len(text.encode()), lambda text: len(text.encode("utf-16-le")) // 2])
def test_other_units_are_told_however_far_they_lead(units: Callable[[str], int]) -> None:
    before = "👩👍🏽" * 40 + " "
    assert locate(f"{before}home, sweet", "home", units(before), "here") == Gold(121, 125, repaired=True)


def test_a_right_start_is_left_alone_also_where_the_text_stands_twice() -> None:
    second = WIDE.rindex("Ada")
    assert locate(WIDE, "Ada", second, "here") == Gold(second, second + 3)


@pytest.mark.parametrize(
    ("context", "text", "start", "meant"),
    [
        ("ab xy ab", "ab", 3, "0 or 6"),
        # Near enough to be meant is near enough to be mistaken.
        ("the cat, the cat.", "cat", 9, "4 or 13"),
        # Five bytes lead to one, the nearest character to the other.
        ("éé 1 ,1", "1", 5, "3 or 6"),
    ],
)
def test_a_start_that_may_mean_two_places_is_refused(context: str, text: str, start: int, meant: str) -> None:
    with pytest.raises(DataError) as caught:
        locate(context, text, start, "here")
    assert str(caught.value) == f"here: answer_start {start} may mean answer '{text}' at {meant}; correct answer_start"


def test_a_start_with_one_place_near_it_means_that() -> None:
    assert locate("ab x and so on ab", "ab", 1, "here") == Gold(0, 2, repaired=True)


def test_a_whole_word_is_meant_before_a_part_of_one() -> None:
    assert locate("this is bad", "is", 1, "here") == Gold(5, 7, repaired=True)


@pytest.mark.parametrize("seed", range(200))
def test_a_repair_finds_the_answer_or_refuses_but_never_takes_another(seed: int) -> None:
    generator = random.Random(seed)
    context = "".join(generator.choices("ab é中👩\u0301 ש", k=60))
    start = generator.randrange(50)
    text = context[start : start + generator.randrange(1, 9)]
    if not text.strip():
        return
    given = {
        "bytes": len(context[:start].encode()),
        "units": len(context[:start].encode("utf-16-le")) // 2,
        "off": max(0, start + generator.choice([-2, -1, 1, 2])),
    }[generator.choice(["bytes", "units", "off"])]
    try:
        gold = locate(context, text, given, "here")
    except DataError:
        return
    assert context[gold.start : gold.end] == text.strip()
    lead = len(text) - len(text.lstrip())
    if gold.repaired and context.count(text.strip()) == 1:
        assert gold.start == start + lead


def test_repairs_are_counted_once_a_split(make: Make) -> None:
    off = [row | {"answers": [a | {"answer_start": a["answer_start"] + 1} for a in row["answers"]]} for row in ROWS]
    module = make(off)
    with pytest.warns(UserWarning, match="test: the answer_start of 2 of 3 questions was wrong, and was corrected to"):
        batch = only_batch(module)
    assert spans(batch) == ["acting", "story", None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(ROWS).setup("test")


def test_training_questions_without_any_answer_are_told(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    make(ROWS).setup("fit")
    assert not [each for each in recwarn if "no question" in str(each.message)]
    make(ROWS[2:], train=write("none.jsonl", [row | {"answers": []} for row in ROWS])).setup("test")
    assert not [each for each in recwarn if "no question" in str(each.message)]
    with pytest.warns(UserWarning, match="^train: no question has an answer, and so the model learns to give none.$"):
        make([row | {"answers": []} for row in ROWS]).setup("fit")


# Windows


def test_a_batch_holds_the_tokens_of_question_and_context(make: Make) -> None:
    module = make(ROWS)
    batch = only_batch(module)
    reference = module.tokenizer(
        [row["question"] for row in ROWS], [row["context"] for row in ROWS], padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], reference[name])
    assert batch["row"].tolist() == [0, 1, 2]
    assert spans(batch) == ["acting", "story", None]
    assert batch["no_answer_position"].tolist() == [0, 0, 0]
    assert batch["context_mask"].sum(1).tolist() == [len(module.tokenizer(r["context"])["input_ids"]) - 2 for r in ROWS]
    assert [batch[name] for name in ("id", "question", "context")] == [
        [row[name] for row in ROWS] for name in ("id", "question", "context")
    ]
    assert batch["answers"] == [["acting"], ["story"], []]
    assert only_batch(module, "train").keys() == {
        "input_ids", "token_type_ids", "attention_mask", "row", "start_positions", "end_positions"
    }  # fmt: skip


def test_only_the_windows_that_hold_all_of_an_answer_have_it(make: Make) -> None:
    module = make(answered([{"text": "story is bad", "answer_start": 27}]), max_length=12, doc_stride=3)
    batch = only_batch(module)
    inside = [
        {(int(a), int(b)) for a, b in offsets[mask]}
        for offsets, mask in zip(batch["offsets"], batch["context_mask"], strict=True)
    ]
    tokens = sorted(set().union(*inside))
    wanted = {span for span in tokens if span[0] < 39 and span[1] > 27}
    assert [span is not None for span in spans(batch)] == [wanted <= window for window in inside]
    assert set(spans(batch)) == {None, "story is bad"}
    assert "".join(CONTEXT[a:b] for a, b in tokens) == CONTEXT.replace(" ", ""), "the windows cover the context"
    assert all(batch["input_ids"][:, 0] == module.tokenizer.cls_token_id)


@pytest.mark.parametrize("doc_stride", [0, 2, 128])
def test_windows_overlap_by_the_stride_or_half_of_what_the_question_leaves(make: Make, doc_stride: int) -> None:
    module = make(answered(["acting"]), max_length=12, doc_stride=doc_stride)
    batch = only_batch(module)
    room = 12 - 1 - len(module.tokenizer("what")["input_ids"])
    windows = [
        [tuple(span) for span in offsets[mask].tolist()]
        for offsets, mask in zip(batch["offsets"], batch["context_mask"], strict=True)
    ]
    assert len(windows) > 2
    for one, other in pairwise(windows):
        shared = min(doc_stride, room // 2)
        assert one[len(one) - shared :] == other[:shared]
        assert len(one) == room
    assert {span for window in windows for span in window} == {match.span() for match in re.finditer(r"\w+", CONTEXT)}


def test_an_answer_that_fits_in_no_window_is_counted(make: Make) -> None:
    module = make(answered([{"text": CONTEXT, "answer_start": 0}]), max_length=16)
    with pytest.warns(
        UserWarning, match="test: the answers to 1 of 1 questions fit whole in no window of max_length=16"
    ):
        batch = only_batch(module)
    assert set(spans(batch)) == {None}


@pytest.mark.parametrize("budget", [48, 100])
def test_a_rows_windows_stay_together_and_within_the_budget(make: Make, budget: int) -> None:
    rows = [{"question": "what", "context": " ".join(CONTEXT.split()[: 1 + i % 16]), "answers": []} for i in range(40)]
    module = make(rows, max_length=12, doc_stride=1, max_tokens=budget)
    module.setup("fit")
    for batch in module.train_dataloader():
        assert len(batch["row"].unique()) == len(batch["row"].unique_consecutive())
        assert batch["input_ids"].numel() <= budget or len(batch["row"].unique()) == 1


def test_a_decoder_without_special_tokens_has_no_answer_at_its_first_token(llama: str, make: Make) -> None:
    batch = only_batch(make(ROWS, llama, max_length=None))
    assert batch["no_answer_position"].tolist() == [0] * len(batch["row"])
    assert {text.strip() if text else text for text in spans(batch)} >= {"acting", "story", None}
    assert not batch["context_mask"][:, 0].any()


ALPHABETS = {
    "latin": "abcdefgh ,.-",
    "cjk": "中村さんは東京 a、。",
    "combining": "aeiou\u0301\u0308\u0327 n",
    "emoji": "👩\u200d🔬👍🏽🇫🇷 x❤\ufe0f",
    "right to left": "שלום עולם مرحبا، ",
    "mixed": "aé中👩\u0301ש \u00a0\u200b\t½ﬁİ",
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("backbone", ["bert", "roberta", "llama"])
def test_a_trained_span_holds_the_answer_in_any_script(
    backbone: str, alphabet: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(backbone))
    generator = random.Random(alphabet)
    found = 0
    for _ in range(60):
        context = "".join(generator.choices(ALPHABETS[alphabet], k=generator.randrange(5, 60)))
        start = generator.randrange(len(context))
        end = generator.randrange(start + 1, len(context) + 1)
        if not context[start:end].strip():
            continue
        gold = locate(context, context[start:end], start, "here")
        encoded = encode_windows(tokenizer, [("why", context)], ["here"], max_length=40, doc_stride=8)
        windows = context_offsets(encoded)
        held = {i for window in windows for a, b in window for i in range(max(a, 0), b)}
        wanted = {i for i in range(gold.start, gold.end) if i in held}
        if not wanted:
            with pytest.raises(DataError, match="the tokenizer leaves the whole answer out"):
                answer_tokens(windows, gold, "here")
            continue
        for window, span in zip(windows, answer_tokens(windows, gold, "here"), strict=True):
            here = {i for a, b in window for i in range(max(a, 0), b)}
            assert (span is not None) == (wanted <= here)
            if span is not None:
                first, last = window[span[0]], window[span[1]]
                assert span[0] <= span[1]
                assert first not in window[: span[0]], "of a character in several tokens, all"
                assert last not in window[span[1] + 1 :]
                assert wanted <= set(range(first[0], last[1]))
                assert min(wanted) < first[1], "and no token more"
                assert max(wanted) >= last[0]
                dropped = {context[i] for i in range(gold.start, gold.end) if not first[0] <= i < last[1]}
                assert all(c.isspace() or unicodedata.category(c)[0] in "CM" for c in dropped)
                found += 1
    assert found > 10


def test_the_token_for_no_answer_is_the_classification_token_wherever_it_stands(bert: str) -> None:
    tokenizer = load_tokenizer(bert)
    encoded = encode_windows(tokenizer, [("[CLS] why", "a [CLS] film")], ["here"], max_length=40, doc_stride=8)
    assert no_answer_positions(tokenizer, encoded) == [0]
    tokenizer.cls_token = "[SEP]"
    assert no_answer_positions(tokenizer, encoded) == [encoded.sequences[0]["input_ids"].index(3)]


# What a module must know


def test_rows_to_predict_say_nothing_of_their_answers(make: Make) -> None:
    module = make(ROWS)
    assert module.drawn("predict", 9).given is None
    assert module.drawn("test", 9).given == [
        list(dict.fromkeys(answer["text"] for answer in row["answers"])) for row in ROWS
    ]


def test_the_facts_are_how_contexts_are_split_and_whether_questions_may_have_no_answer(make: Make) -> None:
    assert make(ROWS).facts == {"max_length": 48, "doc_stride": 4, "unanswerable": True}
    assert make(ROWS[:2]).facts["unanswerable"] is False


def test_windows_are_as_long_as_the_backbone_reads_and_no_longer_than_384(bert: str, tmp_path: Path) -> None:
    assert QuestionAnsweringDataModule(bert).max_length == 64
    load_tokenizer(bert).save_pretrained(tmp_path / "wide")
    settings = json.loads((tmp_path / "wide/tokenizer_config.json").read_text())
    (tmp_path / "wide/tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 1000}))
    assert QuestionAnsweringDataModule(str(tmp_path / "wide")).max_length == 384
    assert QuestionAnsweringDataModule(str(tmp_path / "wide"), max_length=500).max_length == 500
