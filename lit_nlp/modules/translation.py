"""Translation: measured by sacrebleu, and written so that sacrebleu finds the same."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from torchmetrics import MetricCollection

from lit_nlp.errors import ConfigError
from lit_nlp.generation import one_line
from lit_nlp.metrics.translation import SacreMetric
from lit_nlp.modules.base import Files
from lit_nlp.modules.text_to_text import Generated, TextToTextModule

# As NLLB writes them: jpn_Jpan.
_OF_THREE = {"jpn": "ja", "kor": "ko", "zho": "zh"}


class TranslationModule(TextToTextModule):
    """Translates with an encoder-decoder (Marian, T5, mBART, M2M100, …), a decoder, or an encoder in both halves.

    Measured by BLEU, chrF and TER on whole texts, not tokenised, with sacrebleu's defaults.

    Args:
        bleu_tokenizer: How sacrebleu's BLEU splits words. None: as its `target_lang` asks for, mostly 13a.
        kwargs: The arguments of `TextToTextModule`.
    """

    runtime_arguments: ClassVar[set[str]] = TextToTextModule.runtime_arguments | {"bleu_tokenizer"}

    def __init__(self, backbone: str, *, bleu_tokenizer: str | None = None, **kwargs: Any) -> None:
        self._bleu = {"tokenize": bleu_tokenizer, "trg_lang": _two_letters(kwargs.get("target_lang") or "")}
        super().__init__(backbone, **kwargs)
        self.save_hyperparameters()

    def new_metrics(self) -> MetricCollection:
        """Return BLEU, chrF and TER.

        Raises:
            ConfigError: sacrebleu can't split words of the target's language.
        """
        try:
            bleu = SacreMetric("bleu", **self._bleu)
        except RuntimeError as error:  # which sacrebleu makes of a missing mecab
            language = self._bleu["trg_lang"]
            raise ConfigError(
                f"sacrebleu needs mecab to split words of the language {language!r}",
                where="model.bleu_tokenizer",
                mend=f"pip install 'sacrebleu[{language}]', or set it to char",
            ) from error
        return MetricCollection(
            {"bleu": bleu, "chrf": SacreMetric("chrf"), "ter": SacreMetric("ter")}, compute_groups=False
        )

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that tells the best checkpoint, and its direction."""
        return "val/bleu", "max"

    @property
    def signatures(self) -> dict[str, str]:
        """How each metric was measured, in sacrebleu's words."""
        return {name: cast(SacreMetric, each).signature for name, each in self.metrics_of("test").items()}

    def evaluation_files(self, rows: Sequence[Generated]) -> Files:
        """Return hypotheses, sources and references a line each, as the command `sacrebleu` reads them."""
        return {
            "hypotheses.txt": (row.text + "\n" for row in rows),
            "references.txt": (f"{row.reference or ''}\n" for row in rows),
            "sources.txt": (one_line(row.source or "") + "\n" for row in rows),
            "signatures.txt": [f"{name}|{signature}\n" for name, signature in self.signatures.items()],
        } | super().evaluation_files(rows)

    def predict_files(self, rows: Sequence[Generated]) -> Files:
        """Return what was written, a line for each source, and all that is known of it."""
        return {"predictions.txt": (row.text + "\n" for row in rows)} | super().predict_files(rows)


def _two_letters(language: str) -> str:
    """Return the code by which sacrebleu knows a language whose words it splits in a way of its own."""
    code = language.replace("-", "_").partition("_")[0]
    return _OF_THREE.get(code, code)
