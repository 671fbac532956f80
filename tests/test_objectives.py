"""What is hidden and what is to be found, against brute force and the papers."""

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest

from lit_nlp.errors import BackboneError, ConfigError
from lit_nlp.objectives import (
    IGNORED,
    Blocks,
    Examples,
    causal,
    choose,
    corrupt,
    denoising,
    noise,
    pack,
    spans_of,
    split,
)
from lit_nlp.pretrained import load_tokenizer
from tests import language_models
from tests.backbones import CORPUS


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gathered(blocks: Blocks, documents: list[list[int]]) -> list[list[list[int]]]:
    """Return the pieces of each block."""
    pieces = [documents[document][start:stop] for document, start, stop in blocks.pieces.tolist()]
    firsts = blocks.firsts.tolist()
    return [pieces[one:other] for one, other in pairwise(firsts)]


def some_documents(seed: int) -> list[list[int]]:
    lengths = draw(seed).integers(0, 12, size=seed % 7)
    return [list(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths.tolist())]


def lengths_of(documents: list[list[int]]) -> np.ndarray:
    return np.array([len(document) for document in documents], dtype=np.int64)


# Blocks


@pytest.mark.parametrize("seed", range(60))
def test_a_document_is_split_into_as_few_even_blocks_as_can_be_and_loses_nothing(seed: int) -> None:
    documents, room = some_documents(seed), 1 + seed % 5
    blocks = gathered(split(lengths_of(documents), room), documents)
    assert all(len(block) == 1 for block in blocks)
    assert [token for (piece,) in blocks for token in piece] == [token for document in documents for token in document]
    for document in filter(None, documents):
        sizes = [len(piece) for (piece,) in blocks if piece[0] in document]
        assert len(sizes) == -(-len(document) // room)
        assert max(sizes) <= room
        assert max(sizes) == -(-len(document) // len(sizes)), "no longer than even ones would be"


@pytest.mark.parametrize("seed", range(60))
def test_packed_blocks_are_full_and_hold_all_documents_in_turn(seed: int) -> None:
    documents, room = some_documents(seed), 2 + seed % 5
    stream = [token for document in documents for token in document]
    blocks = gathered(pack(lengths_of(documents), room), documents)
    assert [list(chain(*block)) for block in blocks] == [stream[i : i + room] for i in range(0, len(stream), room)]
    for block in blocks:
        owners = [{token // 100 for token in piece} for piece in block]
        assert all(len(owner) == 1 for owner in owners), "a piece is of one document"
        assert len({min(owner) for owner in owners}) == len(block), "and a document has one piece of a block"


# Masked


def test_of_the_tokens_to_be_found_80_percent_are_masked_10_random_and_10_kept() -> None:
    count, mask_id, ordinary = 200_000, 4, np.arange(5, 1_005)
    tokens = draw(1).choice(ordinary, count)
    chosen = np.arange(0, count, 2)
    corrupted = corrupt(tokens, chosen, mask_id, ordinary, draw(2))
    assert np.array_equal(corrupted[1::2], tokens[1::2]), "what isn't chosen stays"
    masked = (corrupted[chosen] == mask_id).mean()
    kept = (corrupted[chosen] == tokens[chosen]).mean()
    random = corrupted[chosen][(corrupted[chosen] != mask_id) & (corrupted[chosen] != tokens[chosen])]
    # Four standard deviations of a share of 100,000; one random token in a thousand is the one that was there.
    assert masked == pytest.approx(0.8, abs=0.0051)
    assert kept == pytest.approx(0.1 + 0.1 / 1_000, abs=0.0038)
    assert len(random) / len(chosen) == pytest.approx(0.1 * 999 / 1_000, abs=0.0038)
    counts = np.bincount(random, minlength=1_005)
    assert counts[:5].sum() == 0
    assert (counts[5:] > 0).all(), "each ordinary token comes"
    assert counts[5:].std() == pytest.approx(np.sqrt(counts[5:].mean()), rel=0.2), "and none more often than chance"


@pytest.mark.parametrize(("candidates", "found"), [(1, 1), (3, 1), (10, 2), (100, 15), (126, 19), (0, 0)])
def test_a_share_of_the_tokens_is_to_be_found_and_at_least_one(candidates: int, found: int) -> None:
    chosen = choose(np.arange(candidates) * 3, None, 0.15, draw())
    assert len(set(chosen.tolist())) == found
    assert set(chosen.tolist()) <= set(range(0, candidates * 3, 3))
    assert chosen.tolist() == sorted(chosen.tolist())


def test_every_token_is_chosen_equally_often() -> None:
    generator = draw()
    counts = np.bincount(np.concatenate([choose(np.arange(20), None, 0.15, generator) for _ in range(8_000)]))
    # Binomial with p = 3 / 20: four standard deviations are 0.016.
    assert np.abs(counts / 8_000 - 0.15).max() < 0.016


@pytest.mark.parametrize("seed", range(40))
def test_a_word_is_chosen_whole_or_not_at_all(seed: int) -> None:
    sizes = draw(seed).integers(1, 4, size=30)
    words = np.repeat(np.arange(30), sizes)
    chosen = choose(np.arange(len(words)), words, 0.15, draw(seed)).tolist()
    for word in range(30):
        tokens = np.flatnonzero(words == word).tolist()
        assert len(set(tokens) & set(chosen)) in (0, len(tokens))
    assert 1 <= len(chosen) <= round(len(words) * 0.15)
    assert len(chosen) > round(len(words) * 0.15) - 3, "as many as fit"


def test_a_word_that_is_longer_than_the_share_is_chosen_where_there_is_no_other() -> None:
    assert choose(np.arange(4), np.array([0, 0, 0, 0]), 0.15, draw()).tolist() == [0, 1, 2, 3]


# Causal


def test_positions_begin_anew_with_each_document_whose_first_token_is_not_predicted() -> None:
    assert causal([[5, 6, 7], [8], [9, 10]]) == {
        "input_ids": [5, 6, 7, 8, 9, 10],
        "labels": [IGNORED, 6, 7, IGNORED, IGNORED, 10],
        "position_ids": [0, 1, 2, 0, 0, 1],
    }


# Denoising


def test_the_papers_example_is_corrupted_as_in_the_paper() -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    hidden = np.array([word in ("for", "inviting", "last") for word in words])
    made = denoising(np.arange(10, 20), hidden, [100, 101, 102], 1)
    text = dict(enumerate(words, 10)) | {100: "<X>", 101: "<Y>", 1: "</s>"}
    assert " ".join(text[i] for i in made["input_ids"]) == "Thank you <X> me to your party <Y> week </s>"
    assert " ".join(text[i] for i in made["labels"]) == "<X> for inviting <Y> last </s>"


def t5_lengths(tokens: int, density: float, mean: float) -> tuple[int, int]:
    """The helper inside random_spans_helper of T5's preprocessors.py, written out."""
    noise_tokens = round(tokens * density)
    noise_spans = round(noise_tokens / mean)
    return tokens - noise_tokens + noise_spans + 1, noise_tokens + noise_spans + 1


@pytest.mark.parametrize(("length", "room", "target"), [(512, 568, 114), (256, 284, 58), (128, 141, 29)])
def test_blocks_of_t5_are_as_long_as_t5_makes_them(length: int, room: int, target: int, t5: Any) -> None:
    examples = Examples(t5, "denoising", max_length=length)
    assert examples.room == room
    assert t5_lengths(room, 0.15, 3.0)[0] <= length < t5_lengths(room + 1, 0.15, 3.0)[0]
    made = examples.example([[150] * room], draw())
    assert (len(made["input_ids"]), len(made["labels"])) == (length, target)
    assert examples.sides(np.array([room])).tolist() == [[length, target]]


@pytest.mark.parametrize("tokens", [2, 3, 7, 40, 200])
def test_spans_are_as_many_and_as_long_as_asked_between_kept_tokens(tokens: int) -> None:
    hidden, spans = spans_of(tokens, 0.15, 3.0)
    for seed in range(30):
        mask = noise(tokens, 0.15, 3.0, draw(seed))
        assert len(mask) == tokens
        assert mask.sum() == hidden
        assert (np.diff(mask.astype(int), prepend=0) == 1).sum() == spans


def test_every_token_of_a_short_text_is_hidden_at_times() -> None:
    generator = draw()
    counts = sum(noise(12, 0.15, 3.0, generator).astype(int) for _ in range(2_000))
    # Of one span of two tokens, at eleven places equally often; four standard deviations are 0.025.
    expected = [1 / 11] + [2 / 11] * 10 + [1 / 11]
    assert np.abs(counts / 2_000 - expected).max() < 0.035


def test_a_lone_token_is_hidden() -> None:
    assert noise(1, 0.15, 3.0, draw()).tolist() == [True]
    assert denoising(np.array([7]), np.array([True]), [100], 1) == {"input_ids": [100, 1], "labels": [100, 7, 1]}


def test_source_and_target_together_are_the_text() -> None:
    tokens = np.arange(1_000, 1_200)
    made = denoising(tokens, noise(200, 0.3, 2.0, draw()), range(100), 999)
    spans: dict[int, list[int]] = {}
    for token in made["labels"][:-1]:
        if token < 100:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    restored = [t for token in made["input_ids"][:-1] for t in (spans[token] if token < 100 else [token])]
    assert restored == tokens.tolist()


# With a tokenizer


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """T5's tokenizer: no length of its own, a hundred sentinels."""
    return load_tokenizer(language_models.save("t5", tmp_path_factory.mktemp("t5")))


def test_special_tokens_and_padding_are_never_masked_nor_random(bert: str) -> None:
    tokenizer = load_tokenizer(bert)
    examples = Examples(tokenizer, "masked", max_length=16)
    texts = [text + " [SEP] ~ [MASK]" for text in CORPUS] * 30  # ~ is unknown to the tokenizer
    blocks = [
        tokens[i : i + examples.room]
        for tokens in examples.documents(texts).ids
        for i in range(0, len(tokens), examples.room)
    ]
    made = [examples.example([tokens], draw(i)) for i, tokens in enumerate(blocks)]
    batch = examples.pad(made)
    special = set(tokenizer.all_special_ids)
    assert not batch["attention_mask"].all()
    assert batch["length"].tolist() == batch["attention_mask"].sum(1).tolist()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    found = batch["labels"][batch["labels"] != IGNORED]
    assert len(found) > 300
    assert not special & set(found.tolist())
    put = set(batch["input_ids"][batch["labels"] != IGNORED].tolist())
    assert put & special == {tokenizer.mask_token_id}
    for tokens, example in zip(blocks, made, strict=True):
        restored = [
            id if label == IGNORED else label for id, label in zip(example["input_ids"], example["labels"], strict=True)
        ]
        assert restored == [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]


def test_words_are_the_tokenizers(bert: str) -> None:
    tokenizer = load_tokenizer(bert)
    examples = Examples(tokenizer, "masked", max_length=64, whole_words=True)
    text = "lifelessness and unfunnily, goodbad"
    ((ids,), (words,)) = examples.documents([text])
    assert len(set(words)) == 5 < len(ids), "some words are of several tokens"
    for seed in range(20):
        labels = examples.example([ids], draw(seed), words)["labels"][1:-1]
        found = {word for word, label in zip(words, labels, strict=True) if label != IGNORED}
        assert found
        assert [label != IGNORED for label in labels] == [word in found for word in words]


def test_a_document_ends_with_the_end_of_text_also_where_the_tokenizer_adds_none(llama: str, t5: Any) -> None:
    for tokenizer in (load_tokenizer(llama), t5):
        examples = Examples(tokenizer, "causal", max_length=16)
        for ids in examples.documents(CORPUS).ids:
            assert ids.count(tokenizer.eos_token_id) == 1
            assert ids[-1] == tokenizer.eos_token_id


def test_what_is_told_of_a_text_finds_each_of_its_tokens_once(bert: str, llama: str) -> None:
    tokenizer = load_tokenizer(bert)
    examples = Examples(tokenizer, "masked", max_length=10)
    (ids,) = examples.documents([CORPUS[4]]).ids
    made = examples.complete(ids)
    assert made == examples.complete(ids)
    found = [
        label
        for example in made
        for token, label in zip(example["input_ids"], example["labels"], strict=True)
        if label != IGNORED and token == tokenizer.mask_token_id
    ]
    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("max_length", [2, 3, 10, 64])
def test_a_decoder_is_asked_for_every_token_but_the_first_whatever_the_blocks(llama: str, max_length: int) -> None:
    examples = Examples(load_tokenizer(llama), "causal", max_length=max_length)
    (ids,) = examples.documents([CORPUS[4]]).ids
    blocks = examples.complete(ids)
    assert [label for block in blocks for label in block["labels"] if label != IGNORED] == ids[1:]
    assert max(len(block["input_ids"]) for block in blocks) <= max_length


@pytest.mark.parametrize("objective", ["masked", "causal", "denoising"])
def test_a_text_without_tokens_makes_an_example_of_nothing(objective: Any, bert: str, llama: str, t5: Any) -> None:
    tokenizer = {"masked": load_tokenizer(bert), "causal": load_tokenizer(llama), "denoising": t5}[objective]
    examples = Examples(tokenizer, objective, max_length=16)
    (ids,) = examples.documents([""]).ids
    (example,) = examples.complete(ids)
    assert example["input_ids"]
    assert set(example["labels"]) == {IGNORED}


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_probability": 0.0}, "data: mask_probability must lie between 0 and 1, got 0.0"),
        ({"mask_probability": 1.0}, "data: mask_probability must lie between 0 and 1, got 1.0"),
        ({"span_length": 0.5}, "data: span_length must be at least 1, got 0.5"),
        ({"objective": "causal", "whole_words": True}, "data: whole_words goes with masked only, not with causal"),
        ({"max_length": 2}, "data: max_length=2 leaves no room for text; raise max_length"),
        ({"objective": "causal", "max_length": 1}, "data: max_length=1 leaves no room for text; raise max_length"),
        ({"objective": "denoising", "max_length": 2}, "data: max_length=2 leaves no room for text; raise max_length"),
        (
            {"objective": "denoising", "max_length": 512, "span_length": 1.0, "mask_probability": 0.3},
            "data: the tokenizer has 100 sentinels, but 153 spans are hidden of a block;"
            " lower max_length, or raise span_length",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str, bert: str, t5: Any) -> None:
    tokenizer = t5 if arguments.get("objective") else load_tokenizer(bert)
    with pytest.raises(ConfigError) as raised:
        Examples(tokenizer, **{"objective": "masked", "max_length": 64, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("llama", "masked", "its tokenizer has no mask_token, which masked needs"),
        ("bert", "causal", "its tokenizer has no eos_token, which causal needs"),
        ("llama", "denoising", "its tokenizer has no sentinels (<extra_id_0>, …), which denoising needs"),
    ],
)
def test_a_tokenizer_without_the_objectives_tokens_is_refused(
    name: str, objective: Any, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(BackboneError) as raised:
        Examples(load_tokenizer(request.getfixturevalue(name)), objective, max_length=64)
    assert message in str(raised.value)
