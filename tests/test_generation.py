"""What each family of models reads and writes for a source and a target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import MBartTokenizer

from lit_nlp.errors import ConfigError
from lit_nlp.generation import PairTokenizer, default_prompt, one_line
from lit_nlp.pretrained import load_config, load_tokenizer
from tests import language_models, translators
from tests.backbones import CORPUS
from tests.translators import GERMAN


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
