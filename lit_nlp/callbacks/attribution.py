"""Explanations while a run goes on: which words decided, epoch by epoch and at its end."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_nlp.data.base import Drawn, Split, TextDataModule
from lit_nlp.errors import ConfigError, TargetError, known_name
from lit_nlp.explain import Attribution, attribute, write_report
from lit_nlp.explain.attribution import asked_facts, by_row
from lit_nlp.explain.methods import methods_of
from lit_nlp.explain.options import Options
from lit_nlp.modules.base import TransformerModule

# Among so many texts, the most wrong ones are looked for.
_SEARCHED = 1000
_STRONGEST = 8


class AttributionCallback(Callback):
    """Writes a report of some texts to ``<folder>/attributions/`` after epochs, and at the end of fit and test.

    With a TensorBoard logger, the strongest words of each text stand there, too.

    Args:
        folder: Where reports lie; None: the run's folder, where the first checkpoint callback writes.
        every_n_epochs: After which validations; 0: at the end of fit and test only.
        select: Which texts: `random` ones, those that are most `wrong` (a wrong class, the surest first; an answer
            that shares least with the right one; a text to write whose tokens are least probable), or rows of the
            split by their numbers.
        limit: How many.
        split: Of which split while fitting; a test explains its own.
        options: Arguments of `lit_nlp.attribute`, such as `method`, `target` and `samples`.

    Raises:
        ConfigError: An argument or an option is unknown or out of range.
    """

    def __init__(
        self,
        folder: str | None = None,
        every_n_epochs: int = 1,
        select: Literal["random", "wrong"] | list[int] = "random",
        limit: int = 8,
        split: Literal["train", "val"] = "val",
        options: dict[str, Any] | None = None,
    ) -> None:
        if every_n_epochs < 0 or limit < 1:
            raise ConfigError("every_n_epochs must be at least 0 and limit at least 1", where="AttributionCallback")
        known_name(split, ("train", "val"), "AttributionCallback.split")
        if isinstance(select, str):
            known_name(select, ("random", "wrong"), "AttributionCallback.select")
        known = [*(field.name for field in fields(Options)), "target", "contrast"]
        for name in options or {}:
            known_name(name, known, "AttributionCallback.options")
        self.chosen = Options(
            **{name: value for name, value in (options or {}).items() if name not in ("target", "contrast")}
        )
        methods_of([self.chosen.method], self.chosen)
        self.folder, self.every_n_epochs, self.select, self.limit = folder, every_n_epochs, select, limit
        self.split, self.options = split, options or {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain after every n-th epoch."""
        epoch = trainer.current_epoch + 1
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self.every_n_epochs and epoch % self.every_n_epochs == 0:
            self._explain(trainer, pl_module, self.split, f"epoch-{epoch}-step-{trainer.global_step}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would only fail after an epoch.

        Raises:
            ConfigError: The strategy shards the model, the data holds no texts or not the rows, or an option isn't
                one of the module's.
        """
        if stage not in ("fit", "test"):
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, TextDataModule):
            raise ConfigError("explanations need texts", where="AttributionCallback", mend="fit with a data module")
        if self.select == "wrong" and not isinstance(pl_module, TransformerModule):
            raise ConfigError("only modules of lit_nlp can be wrong", where="AttributionCallback.select")
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise ConfigError("a model in shards can't be explained while it fits", where="AttributionCallback")
        split: Split = self.split if stage == "fit" else "test"
        module: Any = pl_module
        drawn = data.rows(split, self.select) if isinstance(self.select, list) else data.drawn(split, 1)
        try:
            attribute(module, drawn.texts[:1], **self.options)
        except TargetError as error:  # which other texts, or the module when it has learnt more, may have
            rank_zero_warn(f"There would be no report of the first text: {error}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain by the last weights."""
        self._explain(trainer, pl_module, self.split, "fit")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain texts of the test split."""
        self._explain(trainer, pl_module, "test", "test")

    def _explain(self, trainer: Trainer, module: Any, split: Split, name: str) -> None:
        if trainer.is_global_zero:
            self._report(trainer, module, split, name)
        trainer.strategy.barrier("attributions")

    def _report(self, trainer: Trainer, module: Any, split: Split, name: str) -> None:
        drawn = self._chosen(module, trainer.datamodule, split)  # type: ignore[attr-defined]
        if not drawn.rows:
            rank_zero_warn(f"There is no report of {name}: none of the texts is wrong.")
            return
        try:
            attributions = by_row(attribute(module, drawn.texts, labels=drawn.given, **self.options), drawn.rows)
        except TargetError as error:  # as of words that aren't written any more
            rank_zero_warn(f"There is no report of {name}: {error}")
            return
        folder = self._folder(trainer) / "attributions" / name
        title = "Where the model was most wrong" if self.select == "wrong" else "Why the model decided"
        facts = {
            "Taken from": f"{split}, {self._told(drawn, len({each.row for each in attributions}))}",
            **asked_facts(self.options.get("target"), self.options.get("contrast"), default="what the model says"),
            **self.chosen.facts(),
        }
        page = write_report(attributions, folder, title=f"{title}: {name.replace('-', ' ')}", facts=facts)
        rank_zero_info(f"Report: {page}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"attributions/{split}", _table(attributions), trainer.global_step)

    def _chosen(self, module: Any, data: TextDataModule, split: Split) -> Drawn:
        if isinstance(self.select, list):
            return data.rows(split, self.select)
        if self.select == "random":
            return data.drawn(split, self.limit)
        drawn = data.drawn(split, _SEARCHED)
        wrong = module.most_wrong(drawn.texts, drawn.given)[: self.limit]
        return data.rows(split, [drawn.rows[i] for i in wrong])

    def _told(self, drawn: Drawn, shown: int) -> str:
        """Return how texts were chosen, as readers are told."""
        if self.select == "wrong":
            some = "" if shown == len(drawn.rows) else f"{shown} of "
            return f"{some}the {len(drawn.rows)} most wrong of {min(drawn.total, _SEARCHED)} rows"
        return drawn.share(shown) + ("" if self.select == "random" else ", by their numbers")

    def _folder(self, trainer: Trainer) -> Path:
        checkpointing = trainer.checkpoint_callback
        written = getattr(checkpointing, "dirpath", None)
        return Path(self.folder or written or trainer.default_root_dir)


def _table(attributions: Sequence[Attribution]) -> str:
    """Return Markdown: a row a text, with its strongest words; what the texts hold is no markup."""
    lines = ["| text | said | explained | strongest words |", "|---|---|---|---|"]
    for each in attributions:
        strongest = ", ".join(f"{_plain(word.text)} {word.score:+.2f}" for word in each.strongest(_STRONGEST))
        lines.append(f"| {_plain(each.text)} | {_plain(str(each.prediction))} | {_plain(each.target)} | {strongest} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    escaped = "".join(f"&#{ord(character)};" if character in "|<>&*_`[]\\" else character for character in text)
    return " ".join(escaped.split())
