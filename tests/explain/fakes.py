"""The smallest modules that can be explained: a tokenizer of few words and a random classifier."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from lit_nlp import tokenization
from lit_nlp.targets import AttributionTarget, Place, Reading

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = [
    *SPECIAL,
    "a",
    "the",
    "film",
    "plot",
    "is",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "dull",
    "warm",
    "and",
    "but",
    "never",
    "great",
    ",",
    ".",
    "!",
]
PAD, UNK, CLS, SEP = range(4)
LABELS = ["negative", "neutral", "positive"]


class FakeModule(nn.Module):
    """What `lit_nlp.explain` asks of a module, around any transformers classifier."""

    def __init__(self, model: nn.Module, layers: list[nn.Module], *, max_length: int = 64, stride: int | None = None):
        super().__init__()
        self.model, self.layers, self.max_length, self.stride = model, layers, max_length, stride
        self.tokenizer = tokenizer()
        self.widest = self.rows = 0

    def encode(self, texts: Sequence[tokenization.Text]) -> tokenization.Encoded:
        return tokenization.encode(self.tokenizer, texts, max_length=self.max_length, doc_stride=self.stride)

    def pad(self, sequences: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        return tokenization.pad(sequences, PAD)

    def forward(self, **batch: Tensor) -> Tensor:
        self.widest = max(self.widest, len(batch["input_ids"]))
        self.rows += len(batch["input_ids"])
        return self.model(**batch).logits

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.gather(1, target[:, None])[:, 0]

    def log_probability(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.score(logits.log_softmax(1), target)

    def embedding_layers(self) -> list[nn.Module]:
        return self.layers

    def absence_id(self, baseline: str) -> int:
        return {"pad": PAD, "unk": UNK}[baseline]

    def target_choices(self):
        return [(label, None) for label in LABELS]

    @torch.no_grad()
    def attribution_targets(
        self, texts: Sequence[tokenization.Text], *, target=None, contrast=None, outputs=None, batch_size: int = 16
    ) -> list[AttributionTarget]:
        encoded = self.encode(texts)
        found = []
        for row, text in enumerate(texts):
            own = [window for window, of in enumerate(encoded.row) if of == row]
            logits = torch.stack([self.model(**self.pad([encoded.sequences[i]])).logits[0] for i in own]).mean(0)
            shares = dict(zip(LABELS, logits.softmax(0).tolist(), strict=True))
            said = max(shares, key=shares.__getitem__)
            terms = [(1 / len(own), [LABELS.index(target or said)])]
            if contrast:
                terms.append((-1 / len(own), [LABELS.index(contrast)]))
            places = [
                [Place(p, *s) if p >= 0 else None for p, s in zip(encoded.part[i], encoded.offsets[i], strict=True)]
                for i in own
            ]
            first, second = (text, None) if isinstance(text, str) else text
            found.append(
                AttributionTarget(
                    row=row,
                    name=target or said,
                    text=first,
                    text_pair=second,
                    parts=("text", "text pair"),
                    kind="class",
                    prediction=said,
                    probability=shares[said],
                    probabilities=shares,
                    readings=[
                        Reading(encoded.sequences[i], {"input_ids": where}, terms)
                        for i, where in zip(own, places, strict=True)
                    ],
                )
            )
        return found

    @contextmanager
    def attributing(self) -> Iterator[None]:
        training, frozen = self.training, {name: p.requires_grad for name, p in self.named_parameters()}
        self.eval().requires_grad_(False)
        try:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                yield
        finally:
            self.train(training)
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(frozen[name])


class Interactions(nn.Module):
    """Products of neighbours: no word's share is plain, and all of them can be enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 8)
        self.head = nn.Linear(8, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "BagOfEmbeddings.Output":
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        pairs = (embedded[:, 1:] * embedded[:, :-1]).sum(1)
        return BagOfEmbeddings.Output(self.head((pairs + embedded.sum(1)).tanh()))


class BagOfEmbeddings(nn.Module):
    """A sum of embeddings and a linear head: here every sound method gives (e - b)·w."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 8)
        self.head = nn.Linear(8, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "BagOfEmbeddings.Output":
        summed = (self.embedding(input_ids) * attention_mask[..., None]).sum(1)
        return self.Output(self.head(summed))

    @dataclass(frozen=True)
    class Output:
        logits: Tensor


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = BertPreTokenizer()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


_SIZES = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
    "num_labels": len(LABELS),
}
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bag(**options) -> FakeModule:
    torch.manual_seed(0)
    model = BagOfEmbeddings()
    return FakeModule(model, [model.embedding], **options)


def interactions(**options) -> FakeModule:
    torch.manual_seed(0)
    model = Interactions()
    return FakeModule(model, [model.embedding], **options)


def bert(**options) -> FakeModule:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**_SIZES, **_ENCODER, initializer_range=0.5))
    return FakeModule(model, [model.get_input_embeddings()], **options)


def albert(**options) -> FakeModule:
    torch.manual_seed(0)
    config = AlbertConfig(**_SIZES, **_ENCODER, embedding_size=8, initializer_range=0.5)  # its layers are one
    model = AlbertForSequenceClassification(config)
    return FakeModule(model, [model.get_input_embeddings()], **options)


def roberta(**options) -> FakeModule:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**_SIZES, **_ENCODER, initializer_range=0.5))
    return FakeModule(model, [model.get_input_embeddings()], **options)


def llama(**options) -> FakeModule:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**_SIZES, **_ENCODER, initializer_range=0.3))
    model.get_input_embeddings().weight.data[PAD].normal_()  # RMSNorm has no gradient worth having at zero
    return FakeModule(model, [model.get_input_embeddings()], **options)


def bart(**options) -> FakeModule:
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    widths = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": SEP, "init_std": 0.3}
    model = BartForSequenceClassification(BartConfig(**_SIZES, **sizes, **widths))
    return FakeModule(model, [model.model.encoder.embed_tokens, model.model.decoder.embed_tokens], **options)


def t5(**options) -> FakeModule:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    model = T5ForSequenceClassification(T5Config(**_SIZES, **sizes, decoder_start_token_id=PAD))
    return FakeModule(
        model, [model.transformer.encoder.embed_tokens, model.transformer.decoder.embed_tokens], **options
    )
