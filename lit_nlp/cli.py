"""LitNLPCLI: LightningCLI with our verbs, and the checks before a run starts."""

import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
import transformers
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_nlp import scratch
from lit_nlp.callbacks.checkpointing import AtomicCheckpointIO, LastCheckpoint
from lit_nlp.callbacks.results import ResultsWriter
from lit_nlp.callbacks.run_folder import RunFolder, newest_run, unused_run
from lit_nlp.checkpoints import SECTION, check_written_by, read_checkpoint
from lit_nlp.data.base import Drawn, Split, TextDataModule
from lit_nlp.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    UserError,
    did_you_mean,
    first_line,
    one_line,
    require,
)
from lit_nlp.explain.options import Options
from lit_nlp.files import unused, usable_folder, write_text
from lit_nlp.modules.base import TransformerModule
from lit_nlp.parser import Parser

# What decides which rows are held out, where there is no validation data.
_HOLDING_OUT = {"seed", "val_fraction", "limit"}

# A step is no more than half matrix products, and casting weights costs time too.
_WORTH_BFLOAT16 = 1.5


# The words that are told of one text, and the rows of a split where a row is none of them.
_STRONGEST, _SOME_ROWS = 6, 10

# What is chosen among where none is asked for; both run on every machine.
_PRECISIONS = ("bf16-mixed", "32-true")

# Said by libraries to us, not to who runs a verb.
_BESIDE_THE_POINT = (
    "Checkpoint directory .* exists and is not empty",
    ".*isinstance.treespec, LeafSpec.",
    "The number of training batches .* is smaller than the logging interval",
    "Precision .* is not supported by the model summary",
    "Metric `SpearmanCorrcoef` will save all targets and predictions",
    # Said by `after_fit` in words of ours.
    ".*could not find the monitored key in the returned metrics",
)


def run(args: list[str]) -> int:
    """Run a verb; returns the exit status.

    0 is done, 2 a mistake in what was given, 130 a fit that ended by the keyboard, 143 one by SIGTERM.

    Raises:
        KeyboardInterrupt: Anything else ended by the keyboard.
    """
    transformers.utils.logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *_, **__: f"lit-nlp: {one_line(str(message))}\n"
    for message in _BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    # Packed documents are told apart by their positions, for which there must be no mask.
    logging.getLogger("transformers.modeling_utils").addFilter(
        lambda record: "recommend passing in an `attention_mask`" not in record.getMessage()
    )
    interrupted: list[int] = []

    def end_softly(number: int, _frame: object) -> None:
        """End a fit behind its batch, as SIGTERM does, where Lightning waits for that; a second time at once."""
        interrupted.append(number)
        if len(interrupted) > 1 or signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end_softly)
    try:
        args = list(map(_of_one_piece, args))
        _check_arguments(args)
        LitNLPCLI(args)
    except (UserError, MisconfigurationException) as error:
        if isinstance(error, UserError) and error.where == "texts":
            error.where, error.mend = "--text", "give --text_pair where the model reads pairs, and only there"
        if isinstance(error, UserError) and error.where == "outputs":
            error.where = "--reference"
        print(f"lit-nlp: {one_line(str(error)).replace('lit-nlp VERB', f'lit-nlp {args[0]}')}", file=sys.stderr)
        return 2
    except SIGTERMException:
        return 130 if interrupted else 143
    except SystemExit:
        if not interrupted:
            raise
        raise KeyboardInterrupt from None  # which Lightning had made an exit
    except OSError as error:
        if error.filename is None:
            raise
        print(f"lit-nlp: {error.filename}: {error.strerror}; choose a place that you may use", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError) as error:
        if not _raised_by_lightning(error):
            raise
        print(f"lit-nlp: trainer: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


def _raised_by_lightning(error: Exception) -> bool:
    """Whether Lightning itself refused something, as it does with arguments that don't fit: not what it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return "lightning" in Path(frames[-1].filename).parts


class LitNLPTrainer(Trainer):
    """Lightning's Trainer with one more verb."""

    def explain(
        self,
        model: TransformerModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        methods: str | list[str] | None = None,
        split: Split = "test",
        limit: int = 50,
        rows: list[int] | None = None,
        text: str | None = None,
        text_pair: str | None = None,
        target: str | list[str] | None = None,
        contrast: str | None = None,
        reference: bool = False,
        sensitivity: bool = False,
        rationales: str | None = None,
        influence: bool = False,
        png: int | None = None,
        output: str | None = None,
        **options: Any,
    ) -> None:
        """Show which words decided: a page to read and a JSONL file.

        Args:
            ckpt_path: The checkpoint whose decisions are explained.
            methods: Several methods, as in `a,b,c`: compared by how true they are of the model, beside random scores.
            split: Whose texts are explained.
            limit: At most this many texts, drawn at random by data.seed.
            rows: Explain these rows of the split, counted from 0, and draw none.
            text: Explain this one text instead; for question answering the question.
            text_pair: The second text of a pair; for question answering the context.
            target: What is explained: a class; answer, start, end, "no answer" or a text of the context; a token that
                is written. Or several, or `all`, between which the page switches. By default what the model says.
            contrast: What the target is to be told apart from, of the same kind; or runner-up.
            reference: Explain what the data says of each text, and not what the model does: the right class, the right
                answer, or the target token by token.
            sensitivity: With methods, measure also how far their scores move with small changes; takes long.
            rationales: With methods, a JSONL file of the spans that people marked in each row of the split, as in
                {"text": [[0, 4]]}: how far the scores agree with them.
            influence: Show the training examples that spoke most for and against each prediction.
            png: Draw this row of the split as a picture, too.
            output: The report's folder. By default reports/NAME.
        """
        from lit_nlp.explain import attribute, compare_methods, read_rationales, table, write_report
        from lit_nlp.explain.attribution import ALL, asked_facts, by_row
        from lit_nlp.explain.report import told

        chosen = Options(**options, progress=True)
        if not self.is_global_zero:
            return
        require(limit >= 1, f"limit must be at least 1, got {limit}", "explain")
        require(rows is None or bool(rows), "there are no rows", "explain.rows")
        require(rows is None or text is None, "rows are of a split, not of --text", "explain.rows")
        require(methods is not None or not (sensitivity or rationales), "only --methods are measured", "explain")
        drawn = self._texts_to_explain(datamodule, split, limit if rows is None else rows, text, text_pair)
        if reference and drawn.given is None:
            mend = "leave it out, or explain a split that is labelled"
            raise ConfigError("the data says nothing of these texts", where="explain.reference", mend=mend)
        if reference and target not in (None, "", ALL) and hasattr(model, "problem_type"):
            problem = "the class is named twice, by the target and by the data"
            raise ConfigError(problem, where="explain.reference", mend="leave one of them out")
        if png is not None and png not in drawn.rows:
            some = ", ".join(map(str, drawn.rows[:_SOME_ROWS])) + (", ..." if len(drawn.rows) > _SOME_ROWS else "")
            problem = f"row {png} is none of those that are explained"
            raise ConfigError(problem, where="explain.png", mend=f"these are {some}; name it among --rows")
        require(text is None or not rationales, "rationales are of rows of a split, not of --text", "explain")
        run = _run_of(model, datamodule, ckpt_path) if influence else None
        folder = usable_folder(Path(output or "reports"))
        module: Any = model.to(self.strategy.root_device)
        asked: dict[str, Any] = {**vars(chosen), "target": target, "contrast": contrast, "labels": drawn.given}
        asked["outputs"] = drawn.given if reference else None
        comparison = None
        if methods is not None:
            names = [each.strip() for each in methods.split(",")] if isinstance(methods, str) else methods
            names = [each for each in names if each]
            marked = read_rationales(rationales, drawn.rows, total=drawn.total) if rationales else None
            attributions, comparison = compare_methods(
                module, drawn.texts, names, sensitivity=sensitivity, rationales=marked, **asked
            )
            rank_zero_info(table(comparison))
        else:
            attributions = attribute(module, drawn.texts, **asked)
        attributions = by_row(attributions, drawn.rows)
        shown = _influences(module, *run, drawn, chosen.batch_size) if run else None
        for each in attributions if text is not None else ():
            words = ", ".join(f"{word.text} {word.score:+.2f}" for word in each.strongest(_STRONGEST))
            special = f"; special tokens {each.special_score:+.2f}" if abs(each.special_score) >= 0.005 else ""
            said = told(each.prediction, nothing="nothing")
            rank_zero_info(f"{said}; {each.target} ({each.method}): {words}{special}")
        default = "what the data says" if reference else "what the model says"
        share = drawn.share(len({each.row for each in attributions}))
        facts = {
            "Checkpoint": str(ckpt_path),
            "Backbone": model.hparams["backbone"],
            "Taken from": "the command line" if text else f"{split}, {share}",
            **asked_facts(target, contrast, default=default),
            **chosen.facts(),
        }
        page = write_report(
            attributions,
            folder,
            title=_title(model, str(ckpt_path)),
            facts=facts,
            comparison=comparison,
            influences=shown,
            png=png,
        )
        rank_zero_info(f"Report: {page}")

    def _texts_to_explain(
        self,
        datamodule: LightningDataModule | None,
        split: Split,
        chosen: int | list[int],
        text: str | None,
        text_pair: str | None,
    ) -> Drawn:
        if (text is not None and not text.strip()) or (text is None and text_pair is not None):
            raise ConfigError("there is no text", where="explain", mend="give --text 'something to explain'")
        if text is not None:
            return Drawn([text if text_pair is None else (text, text_pair)], None, [0], 1)
        if not isinstance(datamodule, TextDataModule):
            raise ConfigError("explain needs texts", mend="give --text or a data module of lit_nlp")
        return datamodule.drawn(split, chosen) if isinstance(chosen, int) else datamodule.rows(split, chosen)


class LitNLPCLI(LightningCLI):
    """Builds data, model and trainer from configs and arguments, in this order, and runs a verb.

    What the model must know of the data reaches it through `TextDataModule.facts`; every verb but
    `fit` takes the model, its labels and its tokenizer from the checkpoint.

    Raises:
        UserError: Whatever is wrong with what was given, in one line.
    """

    def __init__(self, args: list[str]) -> None:
        self.arguments = args
        if args[0] in (verbs := self.subcommands()):
            # A parser takes half a second to build, and LightningCLI would build that of each verb.
            self.subcommands = lambda: {args[0]: verbs[args[0]]}  # type: ignore[method-assign]
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=LitNLPTrainer,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and the arguments of each that are no options."""
        verbs = LightningCLI.subcommands()
        verbs = {verb: skipped | {"weights_only", "verbose"} for verb, skipped in verbs.items()}
        return verbs | {"explain": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, and give the model's backbone to the data module."""
        parser.add_argument("--name", type=str | None, help="The run's folder under trainer.default_root_dir.")
        parser.set_defaults({"trainer.default_root_dir": "checkpoints"})
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, as `sys.argv` or as given."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given: LightningCLI would let the checkpoint overrule it silently."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint and the run's folder, and the precision where none was asked for."""
        config = self.settings
        self._check_one_backbone(config)
        task = _snake_case(config.model.class_path.rpartition(".")[2].removesuffix("Module"))
        name = config.name or task
        if Path(name).name != name or name == "..":
            raise ConfigError(
                f"{name!r} is no name of a folder", where="name", mend="trainer.default_root_dir moves runs"
            )
        root = Path(config.trainer.default_root_dir)
        named = config.get("ckpt_path") in ("best", "last")
        config.ckpt_path = self._checkpoint(config.get("ckpt_path"), root, name)
        of_checkpoint = Path(config.ckpt_path).parent if config.ckpt_path else None
        if of_checkpoint and (named or "name" not in dict(_options(self.arguments))):
            self.folder = of_checkpoint
        elif self.verb == "fit" and root / name != of_checkpoint:
            self.folder = unused_run(root, name)
        else:
            self.folder = root / name
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None
        self.resumed_at = self.checkpoint["global_step"] if self.checkpoint else 0
        if self.verb == "explain":
            # Attributions are computed in the weights' own precision, whatever the trainer's.
            config.trainer.precision = config.trainer.precision or "32-true"
            config.output = config.output or str(Path("reports") / self.folder.name)
        if config.trainer.precision is None:
            config.trainer.precision = self._precision(config)
            rank_zero_info(f"Precision: {config.trainer.precision} (trainer.precision chooses another)")
        described = config.clone()
        described.name = name
        if self.verb == "fit":
            # A saved `fit` starts a run of its own.
            described.ckpt_path = None
        self.dump = self._parser(self.verb).dump(described, skip_none=False)

    def instantiate_classes(self) -> None:
        """Build the data module, then the model with what it must know of the data, then the trainer."""
        config = self.settings
        if self.checkpoint:
            self._agree(self.checkpoint, config)
        self.datamodule = self._build("data").data
        _warn_of_known_texts(self.verb, self.datamodule)
        self.model = self._restored(config) if self.checkpoint else self._new(config)
        verb_arguments = {name: config[name] for name in self._subcommand_method_arguments[self.verb]}
        if self.verb in ("validate", "test", "predict"):
            # The model is the checkpoint's already.
            verb_arguments["ckpt_path"] = None
        if self.verb == "predict":
            # They are written as they come; a second list would only take memory.
            verb_arguments["return_predictions"] = False
        built = Namespace(trainer=self._build("trainer").trainer, **verb_arguments)
        self.config_init = Namespace({self.verb: built})
        self.trainer = self.instantiate_trainer(**self._trainer_extras(config))

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except NonFiniteError as error:
            error.where = _places(self.datamodule, error.rows)
            raise
        except SIGTERMException:
            last = self.folder / "last.ckpt"
            kept = f"--ckpt_path {last} goes on from here" if last.exists() else "nothing was kept yet"
            print(f"lit-nlp: ended early; {kept}", file=sys.stderr)
            raise

    def after_fit(self) -> None:
        """Say where the results lie.

        Raises:
            ConfigError: The run that was resumed had ended already, or there was no step to take.
        """
        steps, epochs, asked = self.trainer.global_step, self.trainer.current_epoch, self.settings.trainer
        if steps == self.resumed_at:
            by_epochs = asked.max_time is None or epochs == asked.max_epochs
            limit = "max_steps" if 0 <= self.trainer.max_steps <= steps else "max_epochs" if by_epochs else "max_time"
            raise ConfigError(
                f"nothing was trained: steps done already: {steps}, epochs: {epochs}",
                where=f"trainer.{limit}",
                mend="raise it to go on",
            )
        written = [str(path) for name in ("best", "last") if (path := self.folder / f"{name}.ckpt").exists()]
        measured = (self.folder / "best.ckpt").exists()
        validates = self.trainer.limit_val_batches != 0
        unmeasured = ": the run ended before it was validated" if written and validates and not measured else ""
        rank_zero_info(f"Checkpoints: {', '.join(written) or 'none'}{unmeasured}")
        if written and hasattr(self.model, "save_backbone") and self.trainer.is_global_zero:
            # Pre-training ends here: every other config takes this folder as its backbone.
            type(self.model).load_from_checkpoint(written[0]).save_backbone(self.folder / "backbone")
            rank_zero_info(f"Backbone: {self.folder / 'backbone'}")

    def after_explain(self) -> None:
        """Keep the configuration with the run, as the other verbs do."""
        write_text(self.folder / "explain.yaml", self.dump)

    @property
    def verb(self) -> str:
        """The verb that runs."""
        return cast(str, self.subcommand)

    @property
    def settings(self) -> Namespace:
        """The configuration of the verb."""
        return cast(Namespace, self.config[self.verb])

    def _check_one_backbone(self, config: Namespace) -> None:
        """Make sure that the data module isn't given a backbone of its own, which the model's would overrule."""
        backbone = config.model.get("init_args", Namespace()).get("backbone")
        for option, value in _options(self.arguments):
            if option in ("data.backbone", "data.init_args.backbone") and backbone not in (None, value):
                raise ConfigError(
                    f"data.backbone is {value}, model.backbone {backbone}",
                    mend="give --model.backbone alone; the data module takes it from there",
                )

    def _checkpoint(self, given: str | None, root: Path, name: str) -> str | None:
        """Return the checkpoint's path; `best` and `last` are those of the newest run of the name."""
        if given is not None and not given.strip():
            mend = "give a file, best or last; or leave it out"
            raise CheckpointError("the path of the checkpoint is blank", where="ckpt_path", mend=mend)
        if given in ("best", "last"):
            given = str(newest_run(root, name, holding=f"{given}.ckpt") / f"{given}.ckpt")
        if given is None and self.verb != "fit":
            best = newest_run(root, name, holding="best.ckpt") / "best.ckpt"
            raise CheckpointError(
                f"{self.verb} needs a checkpoint",
                mend=f"give --ckpt_path {best if best.exists() else 'FILE, written by lit-nlp fit'}",
            )
        return given

    def _precision(self, config: Namespace) -> str:
        """Return the checkpoint's precision, so that it goes on as it was trained; for a new run the faster one."""
        trained_in = self.checkpoint[SECTION].get("precision") if self.checkpoint else None
        return trained_in if trained_in in _PRECISIONS else fastest_precision(config.trainer.accelerator)

    def _build(self, key: str) -> Namespace:
        """Instantiate one part of the configuration.

        Raises:
            UserError: What the part itself raised, without the parser's words around it.
        """
        try:
            return cast(Namespace, self._parser(self.verb).instantiate(Namespace({key: self.settings[key]})))
        except ValueError as error:
            cause = error.__cause__
            if isinstance(cause, UserError):
                raise cause from None
            raise

    def _new(self, config: Namespace) -> LightningModule:
        """Build a model from its backbone, with the facts of the data."""
        model_class = _import(config.model.class_path)
        if isinstance(self.datamodule, TextDataModule) and issubclass(model_class, TransformerModule):
            self.datamodule.check_task(model_class)
        arguments = config.model.get("init_args", Namespace())
        given = arguments.get("backbone")
        if given is not None:
            # For one from scratch, the data module has trained a tokenizer.
            arguments.backbone = getattr(self.datamodule, "backbone", given)
        asked = self._on_command_line("model")
        for name, fact in getattr(self.datamodule, "facts", {}).items():
            if name not in arguments:
                continue
            default = None if name in asked else _default(config.model.class_path, name)
            given_too = arguments[name] not in (None, default, fact)
            if given_too and name in getattr(model_class, "runtime_arguments", ()):
                continue
            if given_too:
                raise ConfigError(
                    f"model.{name} is {arguments[name]!r}, but the data says {fact!r}", mend=f"leave model.{name} out"
                )
            arguments[name] = fact
        model = cast(LightningModule, self._build("model").model)
        if isinstance(model, TransformerModule):
            model.save_hyperparameters({"backbone": given})
        return model

    def _restored(self, config: Namespace) -> LightningModule:
        """Build the checkpoint's model, with what of the configuration may differ from it."""
        model_class = _import(config.model.class_path)
        if not issubclass(model_class, TransformerModule):
            raise ConfigError(f"{config.model.class_path} has no checkpoints of lit_nlp", mend="use its own Trainer")
        arguments, asked = config.model.init_args, self._on_command_line("model")
        runtime = {
            name: arguments[name]
            for name in model_class.runtime_arguments & set(arguments.keys())
            if name in asked or arguments[name] != _default(config.model.class_path, name)
        }
        return cast(LightningModule, model_class.load_from_checkpoint(config.ckpt_path, **runtime))

    def _agree(self, checkpoint: dict[str, Any], config: Namespace) -> None:
        """Give the data module the checkpoint's labels and tokenizer; stop where something contradicts it.

        Raises:
            CheckpointError: The command line asks for something else, or a config names other labels.
        """
        check_written_by(config.model.class_path.rpartition(".")[2], checkpoint, str(config.ckpt_path))
        model, data = (part.get("init_args", Namespace()) for part in (config.model, config.data))
        trained_with = checkpoint["hyper_parameters"]
        asked_for = self._on_command_line("model")
        if self.verb == "fit":
            asked_for |= {name for name, value in model.items() if value != _default(config.model.class_path, name)}
        for name in sorted(asked_for - getattr(_import(config.model.class_path), "runtime_arguments", set())):
            if name in trained_with and model[name] != trained_with[name]:
                raise _conflict(config.ckpt_path, f"--model.{name} {model[name]}", f"{name} {trained_with[name]}")
        if model.get("labels") and model.labels != trained_with.get("labels"):
            raise _conflict(config.ckpt_path, f"model.labels {model.labels}", f"labels {trained_with.get('labels')}")
        read_with = trained_with | checkpoint.get("datamodule_hyper_parameters", {})
        splits = {"validate": "val", "explain": config.get("split")}
        holds_out = data.get("val") is None and (
            splits.get(self.verb) in ("train", "val") or bool(config.get("influence"))
        )
        for name in sorted(set(data.keys()) & set(read_with) - {"backbone"} - (set() if holds_out else _HOLDING_OUT)):
            asked = list(dict.fromkeys(data[name].values())) if isinstance(data[name], dict) else data[name]
            if name not in self._on_command_line("data") | ({"labels"} if asked else set()):
                data[name] = read_with[name]
            elif asked != read_with[name]:
                raise _conflict(config.ckpt_path, f"data.{name} {asked}", f"{name} {read_with[name]}")
        if "backbone" in data:
            data.backbone = config.ckpt_path

    def _on_command_line(self, part: str) -> set[str]:
        """Return the arguments of a part that were given on the command line, not in a config."""
        names = (option.replace(".init_args.", ".") for option, _ in _options(self.arguments))
        return {name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")}

    def _trainer_extras(self, config: Namespace) -> dict[str, Any]:
        """Return what every run of ours adds to the trainer that the configuration describes."""
        trainer = self.config_init[self.verb].trainer
        gathered = trainer.accumulate_grad_batches
        require(gathered >= 1, f"accumulate_grad_batches must be at least 1, got {gathered}", "trainer")
        if trainer.fast_dev_run or self.verb == "explain":
            return {"logger": False}
        callbacks: list[Callback] = [RunFolder(self.folder, self.verb, self.dump), ResultsWriter(self.folder)]
        extras: dict[str, Any] = {}
        fits = self.verb == "fit"
        if trainer.logger in (None, True):
            extras["logger"] = _loggers(self.folder) if fits else False
        if fits:
            callbacks += _checkpoint_callbacks(self.folder, self.model, validates=trainer.limit_val_batches != 0)
            if extras.get("logger"):
                callbacks.append(LearningRateMonitor("step"))
        if not any(name in str(trainer.strategy) for name in ("fsdp", "deepspeed")):
            plugins = trainer.plugins or []
            extras["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        return extras | {"callbacks": [*_as_list(trainer.callbacks), *callbacks]}


def _of_one_piece(argument: str) -> str:
    """Write the configuration behind ``scratch:`` so that no parser takes the whole for one: with no blank in it."""
    inline = re.fullmatch(rf"((?:--[\w.]+=)?{scratch.PREFIX})(\{{.*)", argument.strip(), re.DOTALL)
    if inline is None:
        return argument
    try:
        return inline[1] + json.dumps(yaml.safe_load(inline[2]), separators=(",", ":"))
    except (yaml.YAMLError, TypeError):
        return argument


def _check_arguments(args: list[str]) -> None:
    """Refuse what LightningCLI would accept to the user's harm.

    Raises:
        ConfigError: An unknown verb, or a configuration that lies on the network.
    """
    verbs = LitNLPCLI.subcommands()
    if not args[0].startswith("-") and args[0] not in verbs:
        raise ConfigError(
            f"{args[0]!r} is no verb; there are {', '.join(verbs)}",
            mend=did_you_mean(args[0], verbs) or "see lit-nlp --help",
        )
    if [option for option, _ in _options(args)].count("text") > 1:
        raise ConfigError("explain takes one text", where="--text", mend="put several into a file: --data.test FILE")
    if args == ["fit"]:
        raise ConfigError("fit what?", mend="give a task's --config FILE, such as --config configs/sentiment.yaml")
    for option, path in _options(args):
        if option in ("c", "config"):
            if "://" in path:
                raise ConfigError(
                    "a config is read from a local file only", where=path, mend="download it and read it first"
                )
            if not Path(path).is_file():
                raise ConfigError("there is no such config file", where=path, mend="see configs/")
            if not path.endswith(".json"):
                _check_yaml(path)


def _check_yaml(path: str) -> None:
    try:
        if not isinstance(yaml.compose(Path(path).read_text("utf-8"), yaml.SafeLoader), yaml.MappingNode):
            raise ConfigError("the config names no options", where=path, mend="see configs/")
    except UnicodeDecodeError as error:
        raise ConfigError("the config isn't UTF-8", where=path, mend="convert it") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = path if mark is None else f"{path}, line {mark.line + 1}"
        told = f"broken YAML: {problem or first_line(error)}"
        raise ConfigError(told, where=where, mend="mend it there or above") from error


def _options(args: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the options on a command line, without their dashes, with their values."""
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        if argument.startswith("-"):
            name, separate, attached = argument.lstrip("-").partition("=")
            yield name, attached if separate else following


def _conflict(checkpoint: str, asked: str, has: str) -> CheckpointError:
    return CheckpointError(
        f"asked for {asked}, but the checkpoint was trained with {has}",
        where=checkpoint,
        mend="leave the argument out, or fit a new model with it",
    )


def _import(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def _default(class_path: str, argument: str) -> Any:
    """Return the default of a constructor's argument, wherever in the class's ancestry it is declared."""
    for ancestor in _import(class_path).__mro__:
        parameter = inspect.signature(ancestor.__init__).parameters.get(argument)
        if parameter is not None:
            return parameter.default
    return None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _loggers(folder: Path) -> list[Logger]:
    # A run that is resumed adds a file to TensorBoard's folder, but CSVLogger would start its file anew.
    table = CSVLogger(folder, name=unused(folder / "csv").name, version="")
    return [TensorBoardLogger(folder, name="tensorboard", version=""), table]


def _checkpoint_callbacks(folder: Path, model: LightningModule, *, validates: bool) -> list[Callback]:
    """Return what keeps the best checkpoint and the last one."""
    last = LastCheckpoint(folder)
    if not validates:
        return [last]
    monitor, mode = getattr(model, "monitor", ("val/loss", "min"))
    best = ModelCheckpoint(dirpath=folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
    return [best, last]


def fastest_precision(accelerator: str) -> str:
    """Return bfloat16 where the machine multiplies it faster: a GPU that has it, or a CPU that proves it.

    What a CPU says of itself doesn't settle it: of two with AVX512-BF16, one was measured at five times
    its float32 rate, the other at half.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator not in ("auto", "cpu"):
        return "32-true"
    single, half = torch.ones(512, 512), torch.ones(512, 512, dtype=torch.bfloat16)
    ratios = [_product_seconds(single) / _product_seconds(half) for _ in range(9)]
    return "bf16-mixed" if median(ratios) > _WORTH_BFLOAT16 else "32-true"


def _product_seconds(matrix: torch.Tensor) -> float:
    start = perf_counter()
    for _ in range(3):
        matrix @ matrix
    return perf_counter() - start


def _warn_of_known_texts(verb: str, datamodule: LightningDataModule) -> None:
    splits: dict[str, Split] = {"fit": "val", "validate": "val", "test": "test"}
    if verb not in splits or not isinstance(datamodule, TextDataModule):
        return
    measured = splits[verb]
    if shared := set(_as_list(datamodule.sources["train"])) & set(_as_list(datamodule.sources[measured])):
        names = ", ".join(sorted(shared))
        rank_zero_warn(
            f"data.{measured}: {names} is data.train, too: what is measured there tells nothing of other texts."
        )


def _run_of(
    module: LightningModule, datamodule: LightningDataModule | None, ckpt_path: str | None
) -> tuple[TextDataModule, list[Path]]:
    """Return the data that a checkpoint was trained on, and the checkpoints of its run."""
    if not isinstance(datamodule, TextDataModule) or ckpt_path is None:
        raise ConfigError("influence needs the training data and a run's checkpoints", where="explain.influence")
    datamodule.opened("train")
    as_trained = "give --data.train, --data.val and --data.limit as in training"
    trained, counts = module.hparams.get("label_counts"), getattr(datamodule, "facts", {}).get("label_counts")
    if trained is not None and counts != trained:
        raise ConfigError(
            f"the checkpoint was trained on rows of {trained} by class, these are {counts}",
            where="data.train",
            mend=as_trained,
        )
    rows, there = read_checkpoint(ckpt_path).get(type(datamodule).__qualname__, {}), len(datamodule.tables["train"])
    if rows.get("train_rows", there) != there:
        problem = f"the checkpoint was trained on {rows['train_rows']} rows, these are {there}"
        raise ConfigError(problem, where="data.train", mend=as_trained)
    return datamodule, sorted(Path(ckpt_path).parent.glob("*.ckpt"))


def _influences(
    module: Any, data: TextDataModule, checkpoints: list[Path], drawn: Drawn, batch_size: int
) -> dict[int, list[dict[str, Any]]]:
    """Return what a run's checkpoints tell of its training examples, by text."""
    from lit_nlp.explain.influence import influences

    # The error of a score is its distance from what the data says: from what the module says it has none.
    labels = drawn.given if getattr(module, "problem_type", None) == "regression" else None
    found = influences(module, checkpoints, data, drawn.texts, labels, batch_size=batch_size, progress=True)
    return {row: [vars(each) for each in some] for row, some in zip(drawn.rows, found, strict=True)}


def _title(model: LightningModule, ckpt_path: str) -> str:
    task, run = _snake_case(type(model).__name__.removesuffix("Module")), Path(ckpt_path).resolve().parent.name
    return f"Why the model decided: {task.replace('_', ' ')}{f' ({run})' if run != task else ''}"


def _places(datamodule: LightningDataModule, rows: list[int]) -> str | None:
    """Return file and line of training rows."""
    table = getattr(datamodule, "tables", {}).get("train")
    if table is None or not rows:
        return None
    places = [table[row]["where"] for row in rows[:5]]
    return "; ".join(places) + (f"; and {len(rows) - 5} rows more" if len(rows) > 5 else "")
