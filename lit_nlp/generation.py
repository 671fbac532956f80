"""Source and target texts <-> the token sequences that a generating model reads and writes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lit_nlp.architecture import Architecture, architecture
from lit_nlp.errors import BackboneError, ConfigError, did_you_mean

TEMPLATE_FIELD = "{source}"


class Sequences(NamedTuple):
    """Token ids of some texts, and for each whether tokens of it were left out."""

    ids: list[list[int]]
    truncated: list[bool]


class PairTokenizer:
    """Tokenises sources and targets as a backbone's architecture wants them.

    Encoder-decoders get a source with the tokenizer's own special tokens, and a target without the token
    that decoding starts from. Decoders get a prompt, and a target that ends with the end-of-text token.

    Args:
        tokenizer: The backbone's.
        config: The backbone's.
        max_length: Tokens that a source may have; for a decoder prompt and target together.
        max_target_length: Tokens that a target may have, its end included. None: `max_length`, for a decoder half.
        template: What stands around a source, as in ``translate English to German: {source}``.
        source_lang: The source's language, for tokenizers that write it down: `en_XX` for mBART.
        target_lang: The target's.

    Attributes:
        start: The token that decoding starts from; None for decoders.
        first: The token that every target must begin with, such as its language's; None: any.
        end: The token that ends a target.

    Raises:
        ConfigError: A template without ``{source}``, or a language that the tokenizer doesn't know.
        BackboneError: The backbone names no token to start from or to end with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        *,
        max_length: int,
        max_target_length: int | None = None,
        template: str = TEMPLATE_FIELD,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> None:
        if template.count(TEMPLATE_FIELD) != 1:
            raise ConfigError(f"a template holds {TEMPLATE_FIELD} once, got {template!r}", where="prompt")
        self.tokenizer, self.template = tokenizer, template
        self.architecture: Architecture = architecture(config)
        decodes = self.architecture == "decoder"
        self.max_target_length = max_target_length or (max_length // 2 if decodes else max_length)
        self.max_source_length = max_length - self.max_target_length if decodes else max_length
        if self.max_source_length < 2:
            problem = f"max_target_length={self.max_target_length} leaves no room for a prompt in {max_length} tokens"
            raise ConfigError(problem, where="data", mend="lower max_target_length or raise max_length")
        self.end = _first_known(tokenizer, config, "eos", "sep")
        self.start = self.first = None
        language = _set_languages(tokenizer, source_lang, target_lang)
        if not decodes:
            self.start = _first_known(tokenizer, config, "decoder_start", "bos", "cls")
            special = tokenizer(text_target="")["input_ids"]
            if language is not None and special[-1] == language:
                self.start = language  # mBART: decoding starts from the language that ends a target
            elif language is not None and special[0] == language:
                self.first = language

    def sources(self, texts: Sequence[str]) -> Sequences:
        """Return sources with their template; what is too long loses its end, but a prompt not the template's."""
        if self.architecture != "decoder":
            return self._truncated(
                [self.template.replace(TEMPLATE_FIELD, text) for text in texts], self.max_source_length
            )
        before, after = self.template.split(TEMPLATE_FIELD)
        tail = self.tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        if len(self.tokenizer(before)["input_ids"]) + len(tail) >= self.max_source_length:
            problem = f"the prompt leaves no room for a source in {self.max_source_length} tokens"
            raise ConfigError(problem, where="prompt", mend="shorten it, raise max_length or lower max_target_length")
        found = self._truncated([before + text for text in texts], self.max_source_length - len(tail))
        return Sequences([ids + tail for ids in found.ids], found.truncated)

    def targets(self, texts: Sequence[str]) -> Sequences:
        """Return targets with the token that ends them."""
        if self.architecture == "decoder":
            found = self._truncated(texts, self.max_target_length - 1, special=False)
            return Sequences([[*ids, self.end] for ids in found.ids], found.truncated)
        found = self._truncated(texts, self.max_target_length, as_target=True)
        return Sequences([ids[ids[:1] == [self.start] :] for ids in found.ids], found.truncated)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of one line that generated tokens stand for."""
        return one_line(str(self.tokenizer.decode(list(ids), skip_special_tokens=True)))

    def _truncated(
        self, texts: Sequence[str], max_length: int, *, special: bool = True, as_target: bool = False
    ) -> Sequences:
        name = "text_target" if as_target else "text"
        whole = self.tokenizer(**{name: list(texts)}, add_special_tokens=special, verbose=False)["input_ids"]
        cut = self.tokenizer(**{name: list(texts)}, add_special_tokens=special, truncation=True, max_length=max_length)[
            "input_ids"
        ]
        return Sequences(cut, [len(long) > len(short) for long, short in zip(whole, cut, strict=True)])


def question_with_context(question: str, context: str | None) -> str:
    """Return what is asked where a context may stand beside it, as in Raffel et al. 2020, appendix D.15."""
    return question if context is None else f"question: {question} context: {context}"


def one_line(text: str) -> str:
    """Return a text on one line, whatever its line ends, as files of aligned lines need it."""
    return " ".join(text.splitlines()).strip()


def default_prompt(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template for who gives none: a decoder's own for chats, else a line break behind the source."""
    if architecture != "decoder":
        return TEMPLATE_FIELD
    if getattr(tokenizer, "chat_template", None) is None:
        return f"{TEMPLATE_FIELD}\n"
    asked = [{"role": "user", "content": TEMPLATE_FIELD}]
    chat = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    return chat.removeprefix(tokenizer.bos_token or "")  # which the tokenizer adds by itself


def _first_known(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *roles: str) -> int:
    """Return the first of some special tokens that configuration or tokenizer name."""
    for role in roles:
        for owner in (config, tokenizer):
            token: Any = getattr(owner, f"{role}_token_id", None)
            if isinstance(token, list):
                token = token[0]
            if token is not None:
                return int(token)
    raise BackboneError(
        f"it names no {' or '.join(roles)} token",
        where=f"backbone {tokenizer.name_or_path}",
        mend="add it to its tokenizer_config.json",
    )


def _set_languages(tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None) -> int | None:
    """Tell a multilingual tokenizer its languages; return the target's token, None where it has none."""
    if not hasattr(tokenizer, "src_lang"):
        return None
    for name, language in (("source_lang", source), ("target_lang", target)):
        _language_token(tokenizer, name, language)
    tokenizer.src_lang, tokenizer.tgt_lang = source, target
    return _language_token(tokenizer, "target_lang", target)


def _language_token(tokenizer: PreTrainedTokenizerBase, name: str, language: str | None) -> int:
    codes = getattr(tokenizer, "lang_code_to_id", None) or {
        token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens if "_" in token
    }
    if language is None:
        mend = f"name it, as in {', '.join(list(codes)[:4])}"
        raise ConfigError("the backbone writes languages down", where=name, mend=mend)
    if language not in codes:
        shown = ", ".join(list(codes)[:8])
        problem = f"the backbone's languages are {shown}, …; got {language!r}"
        raise ConfigError(problem, where=name, mend=did_you_mean(language, codes))
    return int(tokenizer.get_lang_id(language) if hasattr(tokenizer, "get_lang_id") else codes[language])
