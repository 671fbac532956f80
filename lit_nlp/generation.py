"""Source and target texts <-> the token sequences that a generating model reads and writes."""

import unicodedata
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, NamedTuple, cast

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lit_nlp.architecture import Architecture, architecture
from lit_nlp.errors import BackboneError, ConfigError, did_you_mean, require
from lit_nlp.targets import Place
from lit_nlp.tokenization import token_ids

TEMPLATE_FIELD = "{source}"
# How a piece says that it begins a word, or goes on with one.
_MARKS = ("▁", "Ġ", "##")
# What bytes are decoded to that are no whole character.
_BROKEN = "\ufffd"


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
        enough = max_target_length is None or max_target_length >= 2
        require(enough, f"max_target_length must be at least 2, got {max_target_length}", "model")
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
        return one_line(self._decode(ids))

    # Where tokens stand in texts

    @cached_property
    def special(self) -> frozenset[int]:
        """The tokens that stand for no text: ends, padding, languages, the unknown, a chat's roles."""
        added = {token for token, known in self.tokenizer.added_tokens_decoder.items() if known.special}
        named = {token for token in (self.start, self.first, self.end) if token is not None}
        return frozenset({*self.tokenizer.all_special_ids, *added, *named})

    def source_places(self, texts: Sequence[str]) -> list[list[Place | None]]:
        """Return for each token of `sources` its characters in the text itself, without the blanks around them.

        None for special tokens and for what is the template's alone. A token that only marks where a word begins
        has an empty place, or the blanks there; several tokens of one character have each the whole character.
        """
        before, after = self.template.split(TEMPLATE_FIELD)
        room, tail = self.max_source_length, 0
        if self.architecture == "decoder":
            tail = len(self.tokenizer(after, add_special_tokens=False)["input_ids"]) if after else 0
            room, after = room - tail, ""
        spans = self._spans([before + text + after for text in texts], room)
        return [
            [_place(text, span, before=len(before)) for span in row] + [None] * tail
            for text, row in zip(texts, spans, strict=True)
        ]

    def written(self, ids: Sequence[int]) -> tuple[str, list[Place | None]]:
        """Return the text of generated tokens, as `decode` does, and for each its characters there, as part 1.

        None for special tokens. Tokens that only together make characters, as bytes do, have each all of them.
        """
        whole, end = self._decode(ids), 0
        spans: list[tuple[int, int] | None] = [None] * len(ids)
        waiting: list[int] = []
        for i, token in enumerate(ids):
            if token in self.special:
                continue
            now = self._decode(ids[: i + 1])
            waiting.append(i)
            if not whole.startswith(now):
                continue  # it needs the next token to make a character, or to be written as it will be
            if len(now) <= end and now.endswith(_BROKEN):
                begin, end = end - 1, len(now)
            else:  # some decoders show a blank only where something follows
                begin, end = end, len(now) if len(now) > end else len(whole) - len(whole[end:].lstrip())
            for earlier in waiting:
                spans[earlier] = begin, end
            waiting = []
        text = one_line(whole)
        shown = [span and (_on_one_line(whole, span[0]), _on_one_line(whole, span[1])) for span in spans]
        return text, [_place(text, span, part=1) for span in shown]

    def name(self, token: int, characters: str | None = None) -> str:
        """Return a token's characters, or its text by itself, without blanks around it.

        Where these show nothing, as with a part of a character, it is the token's piece of the vocabulary.
        """
        piece = self._piece(token)
        text = (str(self.tokenizer.decode([token])) if characters is None else characters).strip()
        if not text or _BROKEN in text:
            return piece
        return text.removeprefix("##") or text

    def token(self, text: str, *, like: int) -> int:
        """Return the one token of a text in a target, which begins a word or goes on with one as another token does.

        Args:
            text: The text, or a piece as the vocabulary writes it.
            like: The other token, in whose place it would stand.

        Raises:
            ConfigError: The text takes several tokens.
        """
        mark = _mark(text) or _mark(self._piece(like))
        pieces = [text, mark + text.removeprefix(mark)]
        known = cast(list[int | None], self.tokenizer.convert_tokens_to_ids(pieces))
        found = [
            token
            for token, piece in zip(known, pieces, strict=True)
            if token is not None and self._piece(token) == piece
        ]
        read = self.tokenizer(text_target=[text, f" {text}"], add_special_tokens=False)["input_ids"]
        found += [ids[0] for ids in read if len(ids) == 1]
        found = [token for token in found if token != self.tokenizer.unk_token_id]
        if not found:
            split = " ".join(map(str, self.tokenizer.convert_ids_to_tokens(read[0])))
            raise ConfigError(
                f"expected one token, got {text!r}, which the tokenizer writes as: {split}", where="contrast"
            )
        return int(min(found, key=lambda token: _mark(self._piece(token)) != mark))

    def _decode(self, ids: Sequence[int]) -> str:
        # M2M100 may not count the language that begins its targets among its special tokens.
        text = ids[1:] if self.first is not None and list(ids[:1]) == [self.first] else ids
        return str(self.tokenizer.decode(list(text), skip_special_tokens=True))

    def _piece(self, token: int) -> str:
        # A model may have more embeddings than its tokenizer has tokens.
        return str(self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>")

    def _spans(self, texts: list[str], max_length: int) -> list[list[tuple[int, int] | None]]:
        """Return for each token of texts, cut like sources, its characters; None for those that were added."""
        if not texts:
            return []
        cut = self.tokenizer(texts, truncation=True, max_length=max_length)
        if self.tokenizer.is_fast:
            return [
                [None if part is None else span for part, span in zip(each.sequence_ids, each.offsets, strict=True)]
                for each in cut.encodings
            ]
        around = self.tokenizer("")["input_ids"]
        return [
            self._aligned(text, ids, len(ids) - len(around), around)
            for text, ids in zip(texts, cut["input_ids"], strict=True)
        ]

    def _aligned(self, text: str, ids: list[int], count: int, around: list[int]) -> list[tuple[int, int] | None]:
        """Return what a slow tokenizer doesn't tell: the characters of `count` of a text's tokens amid special ones."""
        pieces = self.tokenizer.tokenize(text)
        spans = align(text, [_piece_text(piece, str(self.tokenizer.unk_token)) for piece in pieces])
        kept = slice(len(pieces) - count, None) if self.tokenizer.truncation_side == "left" else slice(count)
        own = cast(list[int], self.tokenizer.convert_tokens_to_ids(pieces[kept]))
        before = next((i for i in range(len(around)) if ids == around[:i] + own + around[i:]), len(around))
        return [None] * before + list(spans[kept]) + [None] * (len(around) - before)

    def _truncated(
        self, texts: Sequence[str], max_length: int, *, special: bool = True, as_target: bool = False
    ) -> Sequences:
        read = partial(token_ids, self.tokenizer, special=special, as_target=as_target)
        ids = read(texts)
        truncated = [len(tokens) > max_length for tokens in ids]
        long = [text for text, is_long in zip(texts, truncated, strict=True) if is_long]
        cut = iter(read(long, max_length=max_length) if long else [])
        return Sequences(
            [next(cut) if is_long else own for own, is_long in zip(ids, truncated, strict=True)], truncated
        )


def align(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return for each piece that a tokenizer made of a text its characters, where the tokenizer doesn't tell them.

    The tokenizer may have changed case, accents, forms (NFKC) and blanks; what it changed otherwise stands for the
    characters between what is found before and after it, shared out in order. Starts and ends never decrease.
    Accents and invisible characters that are in no piece go to the letter before them.

    Args:
        text: The text.
        pieces: In their order, with blanks or without, and without marks of their kind such as ``##``.
    """
    letters = [(letter, i) for i, character in enumerate(text) for letter in _folded(character)]
    written = [(letter, i) for i, piece in enumerate(pieces) for letter in _folded(piece)]
    spans: list[tuple[int, int] | None] = [None] * len(pieces)
    for begin, end, first, last in _matches(
        "".join(letter for letter, _ in letters), "".join(letter for letter, _ in written)
    ):
        for k in range(first, last) if begin < end else ():
            low = begin + (k - first) * (end - begin) // (last - first)
            high = begin - (first - k - 1) * (end - begin) // (last - first)
            piece, start, stop = written[k][1], letters[low][1], letters[high - 1][1] + 1
            known = spans[piece]
            spans[piece] = (start, stop) if known is None else (min(known[0], start), max(known[1], stop))
    return _completed(text, spans)


def question_with_context(question: str, context: str | None) -> str:
    """Return what is asked where a context may stand beside it, as in Raffel et al. 2020, appendix D.15."""
    return question if context is None else f"question: {question} context: {context}"


def one_line(text: str) -> str:
    """Return a text on one line, whatever its line ends, as files of aligned lines need it."""
    return " ".join(text.splitlines()).strip()


def _on_one_line(text: str, place: int) -> int:
    """Return where the place before a character of a text is after `one_line`."""
    lines = " ".join(text.splitlines())
    before = len(" ".join(f"{text[:place]}.".splitlines())) - 1 - (len(lines) - len(lines.lstrip()))
    return min(max(before, 0), len(lines.strip()))


def default_prompt(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template for who gives none: a decoder's own for chats, else a line break behind the source."""
    if architecture != "decoder":
        return TEMPLATE_FIELD
    if getattr(tokenizer, "chat_template", None) is None:
        return f"{TEMPLATE_FIELD}\n"
    asked = [{"role": "user", "content": TEMPLATE_FIELD}]
    chat = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    return chat.removeprefix(tokenizer.bos_token or "")  # which the tokenizer adds by itself


def _folded(text: str) -> Iterator[str]:
    """Yield what stays of a text's characters in whatever case and form it is written, without blanks."""
    return (letter for letter in unicodedata.normalize("NFKD", text).casefold() if not letter.isspace())


def _matches(one: str, other: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield begin and end in the one and in the other of parts that correspond, equal or not."""
    same = _common(one, other)
    left, right = one[same:], other[same:]
    tail = _common(left[::-1], right[::-1])
    yield 0, same, 0, same
    middle = SequenceMatcher(None, left[: len(left) - tail], right[: len(right) - tail], autojunk=False)
    for _, *places in middle.get_opcodes():
        begin, end, first, last = (same + place for place in places)
        yield begin, end, first, last
    yield len(one) - tail, len(one), len(other) - tail, len(other)


def _common(one: str, other: str) -> int:
    """Return with how many equal characters two texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _completed(text: str, spans: Sequence[tuple[int, int] | None]) -> list[tuple[int, int]]:
    """Give pieces without letters the blanks where they stand, and letters what is invisible beside them."""
    found, start, end = [], 0, 0
    for i, span in enumerate(spans):
        if span is None:
            start, stop = max(start, end), len(text) - len(text[end:].lstrip())
        else:
            following = next((later[0] for later in spans[i + 1 :] if later is not None), len(text))
            first, stop = span
            while first > end and _invisible(text[first - 1]):
                first -= 1
            while stop < following and _invisible(text[stop]):
                stop += 1
            start = max(start, first)
        end = max(end, stop)
        found.append((start, end))
    return found


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in {"Mn", "Me", "Cf", "Cc"} and not character.isspace()


def _place(text: str, span: tuple[int, int] | None, *, part: int = 0, before: int = 0) -> Place | None:
    """Return where a token stands in a text that stands in a template; None where it is outside."""
    if span is None or span[1] < before or span[0] > before + len(text):
        return None
    start, end = (min(max(at - before, 0), len(text)) for at in span)
    if start == end and span[0] < span[1]:
        return None
    inside = text[start:end]
    if inside.strip():
        start, end = end - len(inside.lstrip()), start + len(inside.rstrip())
    return Place(part, start, end)


def _piece_text(piece: str, unknown: str) -> str:
    """Return what a slow tokenizer's piece stands for, as far as it tells."""
    if piece == unknown:
        return _BROKEN
    return piece.replace("▁", " ").removeprefix("##").removesuffix("</w>").removesuffix("@@") or piece


def _mark(piece: str) -> str:
    return next((mark for mark in _MARKS if piece.startswith(mark)), "")


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
