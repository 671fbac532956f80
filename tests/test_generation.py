"""What each family of models reads and writes for a source and a target."""

import random
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders
from transformers import MBartTokenizer

from lit_nlp.errors import ConfigError
from lit_nlp.generation import PairTokenizer, align, default_prompt, one_line
from lit_nlp.pretrained import load_config, load_tokenizer
from lit_nlp.targets import Place
from tests import language_models, translators
from tests.backbones import CORPUS
from tests.translators import GERMAN

NASTY = [
    "Ｆｕｌｌ ｗｉｄｔｈ, ﬁne… ½ cup of Crème Brûlée — “quoted”",
    "e\u0301te\u0301\u0323, İstanbul ΣΊΣΥΦΟΣ Straße ẞ",
    "\u200bzero\u200dwidth\ufeff\u00ad \t\n\r\n lines\x00\x07",
    "👩‍👩‍👧‍👦 ❤️ 🇩🇪 a👍🏽b 漢字かな交じり文 한국어 हिन्दी ภาษาไทย",
    "\u0301starts with an accent, ends with a blank ",
    "\ud800 half, ﷺ, \u1160, ‗´¨, ▁under▁scored, ##hash</w>@@",
    "",
    " \u3000 ",
]


def pairs(backbone: str, **arguments: Any) -> PairTokenizer:
    return PairTokenizer(load_tokenizer(backbone), load_config(backbone), **{"max_length": 64, **arguments})


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], str]:
    def save(kind: str) -> str:
        special = {
            "marian": translators.save_marian,
            "mbart50": translators.save_mbart,
            "mbart": lambda folder: translators.save_mbart(folder, MBartTokenizer),
            "m2m100": translators.save_m2m100,
        }
        return special[kind](tmp_path) if kind in special else language_models.save(kind, tmp_path)

    return save


def test_t5_reads_its_prefix_and_starts_from_padding(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("t5"), template="a film, {source}")
    (source,) = tokeniser.sources(["a good film"]).ids
    tokens = tokeniser.tokenizer.convert_ids_to_tokens(source)
    assert "".join(tokens).replace("▁", " ").strip() == "a film, a good film</s>"
    assert tokeniser.start == tokeniser.tokenizer.pad_token_id
    assert tokeniser.first is None
    (target,) = tokeniser.targets(["a bad film"]).ids
    assert target[-1] == tokeniser.end == tokeniser.tokenizer.eos_token_id
    assert tokeniser.decode(target) == "a bad film"


def test_marian_writes_with_the_targets_own_pieces(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("marian"))
    (target,) = tokeniser.targets([GERMAN[2]]).ids
    assert tokeniser.tokenizer.unk_token_id not in target
    assert tokeniser.decode(target) == GERMAN[2]
    assert (tokeniser.start, tokeniser.end) == (tokeniser.tokenizer.pad_token_id, tokeniser.tokenizer.eos_token_id)


def test_mbart_50_begins_a_target_with_its_language(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("mbart50"), source_lang="en_XX", target_lang="de_DE")
    language = tokeniser.tokenizer.convert_tokens_to_ids
    (source,), (target,) = tokeniser.sources([CORPUS[0]]).ids, tokeniser.targets([GERMAN[0]]).ids
    assert (source[0], source[-1]) == (language("en_XX"), tokeniser.end)
    assert (target[0], target[-1]) == (language("de_DE"), tokeniser.end)
    assert (tokeniser.start, tokeniser.first) == (2, language("de_DE"))


def test_the_first_mbart_starts_from_the_language_that_ends_its_targets(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("mbart"), source_lang="en_XX", target_lang="de_DE")
    (target,) = tokeniser.targets([GERMAN[0]]).ids
    assert target[-1] == tokeniser.start == tokeniser.tokenizer.convert_tokens_to_ids("de_DE")
    assert tokeniser.first is None


def test_m2m100_forces_its_target_language(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("m2m100"), source_lang="en", target_lang="de")
    german = tokeniser.tokenizer.get_lang_id("de")
    (target,) = tokeniser.targets([GERMAN[0]]).ids
    assert target[0] == german == tokeniser.first
    assert tokeniser.start == 2


def test_a_language_that_a_backbone_does_not_know_is_refused(saved: Callable[[str], str]) -> None:
    backbone = saved("m2m100")
    with pytest.raises(ConfigError, match=r"target_lang: the backbone's languages are .*; got 'germn'"):
        pairs(backbone, source_lang="en", target_lang="germn")
    with pytest.raises(ConfigError, match="source_lang: the backbone writes languages down; name it, as in "):
        pairs(backbone)


def test_an_encoder_starts_from_its_first_token_and_does_not_write_it(bert: str) -> None:
    tokeniser = pairs(bert)
    tokenizer = tokeniser.tokenizer
    assert (tokeniser.start, tokeniser.end) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokeniser.targets(["good"]).ids == [tokenizer("good")["input_ids"][1:]]


def test_a_decoder_reads_a_prompt_and_ends_its_target(llama: str) -> None:
    tokeniser = pairs(llama, template="{source} =>", max_target_length=8)
    tokenizer = tokeniser.tokenizer
    (source,), (target,) = tokeniser.sources(["good"]).ids, tokeniser.targets([" bad"]).ids
    assert tokenizer.decode(source + target) == "good => bad</s>"
    assert target[-1] == tokenizer.eos_token_id
    assert tokeniser.start is None


def test_what_is_too_long_loses_its_end_but_not_the_prompts(llama: str) -> None:
    tokeniser = pairs(llama, template="{source} =>", max_length=20, max_target_length=8)
    sources = tokeniser.sources([" ".join(CORPUS), "good"])
    assert sources.truncated == [True, False]
    assert len(sources.ids[0]) == 12
    assert tokeniser.tokenizer.decode(sources.ids[0]).endswith(" =>")
    targets = tokeniser.targets([" ".join(CORPUS)])
    assert (len(targets.ids[0]), targets.ids[0][-1]) == (8, tokeniser.end)


def test_a_truncated_target_still_ends(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("t5"), max_target_length=5)
    targets = tokeniser.targets([CORPUS[0], "a"])
    assert targets.truncated == [True, False]
    assert (len(targets.ids[0]), targets.ids[0][-1]) == (5, tokeniser.end)


@pytest.mark.parametrize("template", ["no place", "{source}{source}"])
def test_a_template_names_the_source_once(bert: str, template: str) -> None:
    with pytest.raises(ConfigError, match=r"a template holds \{source\} once"):
        pairs(bert, template=template)


def test_a_decoders_chat_template_frames_the_source(llama: str) -> None:
    tokenizer = load_tokenizer(llama)
    assert default_prompt("decoder", tokenizer) == "{source}\n"
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert default_prompt("decoder", tokenizer) == "<user>{source}<assistant>"
    assert default_prompt("encoder_decoder", tokenizer) == "{source}"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x85"])
def test_a_line_stays_one_whatever_ends_lines_in_it(end: str) -> None:
    assert one_line(f" a{end}b{end}") == "a b"


# Where tokens stand in texts


@pytest.mark.parametrize(
    ("text", "pieces", "found"),
    [
        ("a good film", ["a", " good", " film"], ["a", "good", "film"]),
        ("Crème Brûlée", ["creme", "bru", "lee"], ["Crème", "Brû", "lée"]),
        ("e\u0301a", ["é", "a"], ["e\u0301", "a"]),
        ("e\u0301a", ["e", "a"], ["e\u0301", "a"]),
        ("e\u0301a", ["e", "\u0301", "a"], ["e", "\u0301", "a"]),
        ("so… ok", ["so", ".", "..", "ok"], ["so", "…", "…", "ok"]),
        ("ﬁne", ["f", "ine"], ["ﬁ", "ﬁne"]),
        ("“no” – yes", ['"', "no", '"', " -", " yes"], ["“", "no", "”", "–", "yes"]),
        ("a ‘b’ ‘b’", ["a", "'", "b", "'", "'", "b", "'"], ["a", "‘", "b", "’", "‘", "b", "’"]),
        ("a 😀!", ["a", " ", "\ufffd", "!"], ["a", " ", "😀", "!"]),
        ("a 漢字 b", ["a", "<0xE6>", "<0xBC>", " b"], ["a", "漢", "字", "b"]),
        ("a😀b", ["a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "b"], ["a", "😀", "😀", "😀", "😀", "b"]),
        ("a❤️b", ["a", "❤", "b"], ["a", "❤️", "b"]),
        ("a, gone, b", ["a", "b"], ["a", "b"]),
        ("a", ["a", "made up"], ["a", ""]),
        ("", ["a", " "], ["", ""]),
        ("a", [], []),
    ],
)
def test_pieces_are_found_in_the_text_that_they_were_made_of(text: str, pieces: list[str], found: list[str]) -> None:
    assert [text[start:end] for start, end in align(text, pieces)] == found


def without_accents(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", text) if unicodedata.category(letter) != "Mn")


def split(text: str, chance: random.Random) -> list[str]:
    cuts = sorted({0, len(text), *(chance.randrange(len(text) + 1) for _ in range(chance.randrange(8)))})
    return [text[start:end] for start, end in pairwise(cuts)]


def test_whatever_a_text_is_split_into_each_part_is_found_again() -> None:
    chance = random.Random(0)
    for _ in range(500):
        text = "".join(chance.choices("".join(NASTY), k=chance.randrange(20)))
        parts = split(text, chance)
        found = [text[start:end] for start, end in align(text, parts)]
        assert [part.strip() for part in parts if part.strip()] == [
            characters for part, characters in zip(parts, found, strict=True) if part.strip()
        ]


@pytest.mark.parametrize(
    "change",
    [
        str.lower,
        str.upper,
        lambda text: unicodedata.normalize("NFKC", text),
        lambda text: unicodedata.normalize("NFD", text),
        without_accents,
        lambda text: "".join(text.split()),
        lambda text: text.replace("“", '"').replace("—", "-"),
    ],
)
def test_whatever_a_tokenizer_changed_its_pieces_cover_the_text_in_order(change: Callable[[str], str]) -> None:
    chance = random.Random(0)
    for _ in range(300):
        text = "".join(chance.choices("".join(NASTY), k=chance.randrange(1, 20)))
        pieces = split(change(text), chance)
        spans = align(text, pieces)
        assert len(spans) == len(pieces)
        for ends in zip(*spans, strict=True):
            assert list(ends) == sorted(ends)
        covered = {i for start, end in spans for i in range(start, end)}
        visible = {i for i, letter in enumerate(text) if unicodedata.category(letter)[0] not in "MCZ"}
        assert visible <= covered


def test_pieces_of_another_text_have_places_in_order_all_the_same() -> None:
    chance = random.Random(0)
    for _ in range(300):
        text, other = ("".join(chance.choices("".join(NASTY), k=chance.randrange(20))) for _ in range(2))
        spans = align(text, pieces := split(other, chance))
        assert len(spans) == len(pieces)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        for ends in zip(*spans, strict=True):
            assert list(ends) == sorted(ends)


LANGUAGES = {
    "m2m100": {"source_lang": "en", "target_lang": "de"},
    "mbart": {"source_lang": "en_XX", "target_lang": "de_DE"},
    "mbart50": {"source_lang": "en_XX", "target_lang": "de_DE"},
}


@pytest.mark.parametrize("kind", ["t5", "mbart50"])
@pytest.mark.parametrize("text", [*CORPUS, *GERMAN, *NASTY[:5]])
def test_pieces_are_found_where_fast_tokenizers_tell_them(kind: str, text: str, saved: Callable[[str], str]) -> None:
    tokenizer = load_tokenizer(saved(kind))
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    pieces = [piece.replace("▁", " ") for piece in tokenizer.tokenize(text)]
    for piece, (start, end), span in zip(pieces, told, align(text, pieces), strict=True):
        if piece.strip() and "<unk>" not in pieces:
            assert text[slice(*span)].strip("\u0323") == text[start:end].strip().strip("\u0323")


@pytest.mark.parametrize("template", ["{source}", "a good film: {source} and bad"])
@pytest.mark.parametrize("kind", ["marian", "m2m100", "t5", "mbart50", "mbart", "gpt2"])
def test_each_token_of_a_source_stands_where_its_characters_do(
    kind: str, template: str, saved: Callable[[str], str]
) -> None:
    languages = LANGUAGES.get(kind, {})
    tokeniser = pairs(saved(kind), template=template, max_length=200, **languages)
    texts = [*CORPUS, "a", "it's a film\nthe film!"]
    sources, places = tokeniser.sources(texts), tokeniser.source_places(texts)
    for text, ids, row in zip(texts, sources.ids, places, strict=True):
        assert len(ids) == len(row)
        pieces = tokeniser.tokenizer.convert_ids_to_tokens(ids)
        stands = [
            (piece.lstrip("▁Ġ"), text[place.start : place.end])
            for piece, place in zip(pieces, row, strict=True)
            if place is not None
        ]
        assert [(p, c) for p, c in stands if p.isascii() and p.isalnum() and p != c] == []
        covered = {i for place in row if place is not None for i in range(place.start, place.end)}
        assert covered >= {i for i, letter in enumerate(text) if not letter.isspace()}
        assert all(place is None for token, place in zip(ids, row, strict=True) if token == tokeniser.end)
        if template != "{source}":
            assert row[:3] == [None] * 3


@pytest.mark.parametrize("kind", ["marian", "m2m100", "t5", "gpt2"])
def test_places_of_a_source_that_was_cut_are_those_of_its_beginning(kind: str, saved: Callable[[str], str]) -> None:
    backbone = saved(kind)
    long, short = (
        pairs(backbone, max_length=length, max_target_length=4, template="a {source} b", **LANGUAGES.get(kind, {}))
        for length in (60, 12)
    )
    text = CORPUS[0]
    (places,), (ids,) = short.source_places([text]), short.sources([text]).ids
    assert len(places) == len(ids) < len(long.sources([text]).ids[0])
    inside = [place for place in places if place is not None]
    assert inside == [place for place in long.source_places([text])[0] if place is not None][: len(inside)]
    assert inside


def test_a_character_of_several_bytes_belongs_to_each_of_its_tokens(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("gpt2"))
    (places,) = tokeniser.source_places(["a 😀 film"])
    assert [(place.start, place.end) for place in places if place].count((2, 3)) == 4
    text, places = tokeniser.written(tokeniser.targets(["a 😀 film"]).ids[0])
    assert text == "a 😀 film"
    assert [(place.start, place.end) for place in places if place].count((2, 3)) == 4


@pytest.mark.parametrize("text", [*CORPUS, *GERMAN, *(text for text in NASTY if "\ud800" not in text)])
def test_written_bytes_stand_where_the_tokenizer_reads_them(text: str, saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("gpt2"))
    text = one_line(text)
    told = tokeniser.tokenizer(text, return_offsets_mapping=True)
    again, places = tokeniser.written(told["input_ids"])
    assert again == text
    for (start, end), place in zip(told["offset_mapping"], places, strict=True):
        assert place is not None
        characters = text[start:end]
        assert text[place.start : place.end] == (characters.strip() or characters)


@pytest.mark.parametrize("kind", ["marian", "m2m100", "t5", "mbart50", "gpt2"])
def test_what_was_written_is_decoded_and_its_tokens_cover_it(kind: str, saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved(kind), **LANGUAGES.get(kind, {}))
    chance, size = random.Random(0), len(tokeniser.tokenizer)
    ids_of = tokeniser.targets(GERMAN).ids + [[chance.randrange(size) for _ in range(12)] for _ in range(60)]
    for ids in ids_of:
        text, places = tokeniser.written(ids)
        assert text == tokeniser.decode(ids)
        assert [place is None for place in places] == [token in tokeniser.special for token in ids]
        stand = [place for place in places if place is not None]
        assert {place.part for place in stand} <= {1}
        assert [place.start for place in stand] == sorted(place.start for place in stand)
        covered = {i for place in stand for i in range(place.start, place.end)}
        assert covered >= {i for i, letter in enumerate(text) if not letter.isspace()}


def test_the_pieces_of_a_word_stand_side_by_side(bert: str) -> None:
    tokeniser = pairs(bert)
    tokeniser.tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=True)
    (ids,) = tokeniser.targets(["a good plot, and bad actors"]).ids
    text, places = tokeniser.written(ids)
    assert text == "a good plot, and bad actors"
    pieces = [piece.removeprefix("##") for piece in tokeniser.tokenizer.convert_ids_to_tokens(ids)]
    assert [text[p.start : p.end] for p in places if p is not None] == pieces[:-1]
    assert places[-1] is None


def test_a_line_break_that_was_written_shows_as_the_blank_between_lines(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("gpt2"))
    text, places = tokeniser.written(tokeniser.tokenizer("\na\n\nb\n")["input_ids"])
    assert text == "a  b"
    stand = [(place.start, place.end) for place in places if place is not None]
    assert (stand[0], stand[1], stand[-2]) == ((0, 0), (0, 1), (3, 4))


def test_a_token_is_found_by_its_text_as_the_beginning_of_a_word_or_within(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("gpt2"))
    vocabulary = tokeniser.tokenizer.get_vocab()
    assert tokeniser.token("film", like=vocabulary["Ġgood"]) == vocabulary["Ġfilm"]
    assert tokeniser.token("l", like=vocabulary["o"]) == vocabulary["l"]
    assert tokeniser.token("Ġfilm", like=vocabulary["o"]) == vocabulary["Ġfilm"]
    assert tokeniser.name(vocabulary["Ġfilm"]) == "film"
    assert tokeniser.name(vocabulary["Ġ"]) == "Ġ"
    assert tokeniser.name(vocabulary["ð"]) == "ð"
    assert tokeniser.name(vocabulary["ð"], "😀") == "😀"
    assert tokeniser.name(299 + len(vocabulary)) == f"<{299 + len(vocabulary)}>"
    with pytest.raises(
        ConfigError, match="contrast: expected one token, got 'quux', which the tokenizer writes as: q "
    ):
        tokeniser.token("quux", like=vocabulary["o"])


def test_a_language_that_begins_a_target_is_no_part_of_its_text(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("m2m100"), **LANGUAGES["m2m100"])
    (ids,) = tokeniser.targets(["ein Film"]).ids
    assert tokeniser.decode(ids) == "ein Film"
    assert tokeniser.written(ids)[1][0] is None


def test_a_part_of_a_character_that_was_never_finished_stands_by_itself(saved: Callable[[str], str]) -> None:
    tokeniser = pairs(saved("gpt2"))
    first, second, third, _ = tokeniser.tokenizer("😀")["input_ids"]
    (a,) = tokeniser.tokenizer("a")["input_ids"]
    text, places = tokeniser.written([a, first, second, third, a])
    assert text == "a\ufffda"
    assert places == [Place(1, 0, 1), *[Place(1, 1, 2)] * 3, Place(1, 2, 3)]
