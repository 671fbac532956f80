"""TransformerModule: backbone, optimizer, schedule, self-contained checkpoint, attribution hooks."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from transformers import PreTrainedConfig, get_scheduler

from lit_nlp.checkpoints import SECTION, check_primitives, check_written_by, pack_backbone, read_checkpoint
from lit_nlp.errors import CheckpointError, ConfigError, NonFiniteError, UserError, known_name, require
from lit_nlp.files import json_lines
from lit_nlp.modules.attention import check_attention, restore_attention
from lit_nlp.modules.backbones import check_vocabulary, load_model
from lit_nlp.modules.dropout import cheapen_dropout, restore_dropout
from lit_nlp.modules.formula import attend_by_formula
from lit_nlp.modules.optimization import Place, parameter_groups, parameter_places, warmup_steps
from lit_nlp.modules.optimization import freeze as freeze_parameters
from lit_nlp.modules.recording import record_passes, stop_recording
from lit_nlp.modules.resuming import count_epochs_rightly
from lit_nlp.modules.rng import rng_state, set_rng_state
from lit_nlp.modules.rowwise_adamw import RowwiseAdamW, may_be_sparse, sparse_gradient
from lit_nlp.modules.varlen import can_skip_padding, has_flash_attention, skip_padding
from lit_nlp.pretrained import load_config, load_tokenizer
from lit_nlp.targets import AttributionTarget, Label
from lit_nlp.tokenization import Encoded, Text, Tokens, encode, pad, resolve_max_length, widened

# What transformers' forward takes, `labels`, `row`, and texts that ride along.
Batch = Mapping[str, Any]
# What a verb leaves in the run's folder: file name -> its lines, which may be made one by one.
Files = dict[str, Iterable[str]]
EvaluationSplit = Literal["val", "test"]
M = TypeVar("M", bound="TransformerModule")

_STEPS_BETWEEN_SHOWN_LOSSES = 10


class TransformerModule(LightningModule):
    """Fully fine-tunes a pretrained transformer; a task adds its head, loss, metrics and predictions.

    Args:
        backbone: A hub id, folder, ``package:name/folder``, GGUF file, or a checkpoint to go on from.
        learning_rate: The peak of the schedule.
        weight_decay: AdamW's, on all weights but biases and norms.
        warmup: Steps of linear warm-up; below 1 a share of all steps.
        scheduler: What the rate does after the warm-up, by step: `linear` or `cosine` decay to 0, or `constant`.
        layer_decay: Each layer learns at this share of the rate of the layer above it.
        freeze: Parameters that don't learn, by name or pattern, such as ``embeddings``. None: all learn.
        label_smoothing: Probability mass that the loss spreads over all classes.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third slower.
        compile: Compile the model for training steps.
        cuda_graphs: On one GPU, record the passes of training steps as CUDA graphs, for each shape of a batch that
            comes again, and replay them: short steps run several times as fast, and take the memory of another step,
            where that is free. Gradients are then found at `grad` of the parameters alone, until the next step; where
            hooks look on, passes run as they are.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, …; None: transformers' choice, but that under a
            Trainer attention of most encoders skips padding on a GPU in half precision, and on a CPU takes the
            formula where that is quicker.
        max_length: Tokens of a sequence when the module tokenises texts by itself. None: what the
            backbone reads, at most 512.

    Raises:
        BackboneError: The backbone can't be loaded or doesn't fit its tokenizer.
        ConfigError: Arguments out of range.
        TypeError: An argument that is no JSON primitive, and so would not load from a checkpoint.
    """

    # The kind of task, as data modules tell theirs.
    task: ClassVar[str | None] = None
    # Arguments that change how the module runs and not what it is: a checkpoint doesn't fix them.
    runtime_arguments: ClassVar[set[str]] = {"compile", "cuda_graphs", "attn_implementation", "gradient_checkpointing"}

    def __init__(
        self,
        backbone: str,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        scheduler: Literal["linear", "cosine", "constant"] = "linear",
        layer_decay: float = 1.0,
        freeze: list[str] | None = None,
        label_smoothing: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        cuda_graphs: bool = True,
        attn_implementation: str | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_primitives(dict(self.hparams), type(self).__name__)
        require(learning_rate > 0, f"learning_rate must be above 0, got {learning_rate}", "model")
        require(weight_decay >= 0, f"weight_decay must be at least 0, got {weight_decay}", "model")
        require(warmup >= 0, f"warmup must be at least 0, got {warmup}", "model")
        known_name(scheduler, ("linear", "cosine", "constant"), "model.scheduler")
        require(0 < layer_decay <= 1, f"layer_decay must lie above 0 and be at most 1, got {layer_decay}", "model")
        require(0 <= label_smoothing < 1, f"label_smoothing must lie in [0, 1), got {label_smoothing}", "model")
        self.learning_rate, self.weight_decay, self.layer_decay = learning_rate, weight_decay, layer_decay
        self.warmup, self.scheduler = warmup, scheduler
        self.label_smoothing = label_smoothing
        if attn_implementation is not None:
            check_attention(attn_implementation)
        self.tokenizer = load_tokenizer(backbone)
        self.max_length = resolve_max_length(self.tokenizer, max_length)
        config = load_config(backbone, pad_token_id=self.tokenizer.pad_token_id, **self.config_changes())
        self.model = load_model(backbone, self.auto_class(config), config, attn_implementation=attn_implementation)
        check_vocabulary(self.model, self.tokenizer, backbone)
        if self.tokenizer.pad_token_id == self.tokenizer.eos_token_id:
            # An embedding never learns its padding token; but here it is one that texts may hold.
            self.model.get_input_embeddings().padding_idx = None  # type: ignore[assignment]
        self._check_positions()
        self.metrics = _Metrics({split: self.new_metrics() for split in ("val", "test")})
        # Lightning's own mean over processes rounds how many rows each has; torchmetrics would leave out a batch that
        # has no finite loss, and with "disable" the weights.
        self.losses = _Metrics(
            {split: MeanMetric(nan_strategy=math.nan).set_dtype(torch.float32) for split in ("val", "test")}
        )
        self._places = parameter_places(self.model)
        if freeze:
            freeze_parameters(self.model, freeze)
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self._since_update: list[tuple[Tensor | None, Tensor]] = []
        self._update: _Update | None = None
        self._compiled_call: Any = None
        self._rng_to_restore: dict[str, Any] | None = None

    # What a task says

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return transformers' auto class that puts the task's head on a backbone."""
        raise NotImplementedError

    def config_changes(self) -> dict[str, Any]:
        """Return what the task sets in the backbone's configuration."""
        return {}

    def forward_batch(self, batch: Batch) -> Tensor:
        """Run the model on a batch; returns what `row_losses` and `score` take."""
        return cast(Tensor, self(**self.inputs(batch)))

    def row_losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " rows"]:
        """Return the loss of each row in nats; their sum over `loss_weight` is trained on."""
        raise NotImplementedError

    def own_losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " rows"]:
        """Return the loss of each row by itself, in nats, without the weights and the smoothing of `row_losses`."""
        return self.row_losses(outputs, batch)

    def loss_weight(self, batch: Batch) -> int | Tensor:
        """Return what the batch counts: its rows, or what else a task takes the mean over."""
        return len(batch["labels"])

    def score(self, outputs: Tensor, target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the scalar that an attribution explains, one for each row of `outputs`."""
        raise NotImplementedError

    def log_probability(self, outputs: Tensor, target: Int[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Return the log probability in nats of each row's target: the score itself, where it is one."""
        return self.score(outputs, target)

    def attribution_targets(
        self,
        texts: Sequence[Text],
        *,
        target: str | None = None,
        contrast: str | None = None,
        outputs: Sequence[Label] | None = None,
        batch_size: int = 16,
    ) -> list[AttributionTarget]:
        """Return what is to be explained of each text: by default what the module says of it.

        Args:
            texts: Texts, or pairs of texts.
            target: What to explain instead.
            contrast: What it is to be told apart from.
            outputs: What is taken as said of each text.
            batch_size: Sequences that are run at once.

        Raises:
            ConfigError: The module knows no such target, or nothing that could be explained.
        """
        raise ConfigError(f"{type(self).__name__} decides nothing that could be explained", where="explain")

    def target_choices(self) -> list[tuple[str | None, str | None]]:
        """Return the targets of any text between which a reader may want to switch, each with its contrast."""
        return [(None, None)]

    def asked(
        self, texts: Sequence[Text], labels: Sequence[Label] | None = None, *, batch_size: int = 16
    ) -> list[Batch]:
        """Return texts in batches, with what training examples are to account for: what `asked_losses` takes.

        The key `row` holds the number of each sequence's text; a text's sequences stand together, and a text of
        which nothing is said is in no batch.

        Args:
            texts: Texts, or pairs of texts.
            labels: What is to be accounted for, one for each text. None: what the module says.
            batch_size: Sequences that are run at once.

        Raises:
            ConfigError: The module says nothing that could be accounted for, or a label can't be what it says.
        """
        raise ConfigError(f"{type(self).__name__} decides nothing that could be accounted for", where="explain")

    def asked_losses(self, batch: Batch) -> Float[Tensor, " texts"]:
        """Run the model on a batch of `asked`, and return the loss of each text in nats."""
        return self.own_losses(self.forward_batch(batch), batch)

    def most_wrong(self, texts: Sequence[Text], labels: Sequence[Label]) -> list[int]:
        """Return the numbers of the texts that the module gets wrong, or as wrong as any, the worst first.

        Args:
            texts: Texts, or pairs of texts.
            labels: What the data says of each.

        Raises:
            ConfigError: The module says nothing that could be wrong.
        """
        raise ConfigError(f"{type(self).__name__} decides nothing that could be wrong", where="explain")

    def new_metrics(self) -> MetricCollection:
        """Return what a split is measured by; what it needs is set before the base's `__init__`."""
        raise NotImplementedError

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Any]:
        """Update the split's metrics, and return what was found of each row, with its number as `row`."""
        raise NotImplementedError

    def figures(self, measured: dict[str, Any]) -> dict[str, Tensor]:
        """Return what is logged of a split, by name: its mean loss, and what its metrics measured."""
        return measured

    def evaluation_files(self, rows: Sequence[Any]) -> Files:
        """Return what `validate` and `test` leave beside metrics, from the `rows` of their steps, in order.

        There may be more of them than memory holds: they are read where they are written.
        """
        return {}

    def predict_files(self, rows: Sequence[Any]) -> Files:
        """Return what a prediction leaves, from its typed results in order, as `evaluation_files` does."""
        return {"predictions.jsonl": json_lines(map(as_json, rows))}

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that tells the best checkpoint, and its direction."""
        return "val/loss", "min"

    @property
    def differs_in_width_alone(self) -> bool:
        """Whether a batch of as many rows as another differs from it in nothing but one width."""
        return True

    # Training

    def setup(self, stage: str) -> None:
        """Compile the model where fitting asks for it, and let it run in a quicker way.

        On a GPU attention skips padding, and passes are recorded; on a CPU attention takes the formula where that is
        quicker, and masks of dropout are drawn from fewer random numbers. Attention is changed only where nobody chose
        how to attend. `teardown` gives all back; a run that breaks off leaves it to the next one.
        """
        self._compiled_call = None
        stop_recording(self.model)
        device, free = self.trainer.strategy.root_device, self.hparams["attn_implementation"] is None
        if free and can_skip_padding(self.model) and has_flash_attention(device):
            skip_padding(self.model)
        elif device.type == "cpu" and not self.hparams["compile"]:
            cheapen_dropout(self.model)
            if free:
                attend_by_formula(self.model)
        if stage == "fit":
            if self.hparams["compile"]:
                self.model.compile(dynamic=True)
            if self._records_passes():
                record_passes(self.model)

    def teardown(self, stage: str) -> None:
        """Drop recordings, and give the model transformers' attention and torch's dropout back."""
        stop_recording(self.model)
        restore_attention(self.model)
        restore_dropout(self.model)

    def on_validation_start(self) -> None:
        """Validate the plain model: to compile it for that, too, takes longer than it saves."""
        self._compiled_call, self.model._compiled_call_impl = self.model._compiled_call_impl, None

    def on_validation_end(self) -> None:
        """Go on with the compiled model."""
        self.model._compiled_call_impl, self._compiled_call = self._compiled_call, None

    def on_fit_start(self) -> None:
        """Switch dropout on, whatever the module was used for before, and check that it will load again.

        Raises:
            TypeError: A hyperparameter that was added since is no JSON primitive.
        """
        check_primitives(dict(self.hparams), type(self).__name__)
        # A fit that broke off may have left something.
        self._since_update, self._update = [], None
        self.train()

    def on_train_start(self) -> None:
        """Let the training data go on where the run that is resumed stopped."""
        # Lightning 2.6 gives a loader its state when it sets it up, and not where that came before the state was
        # there: in `estimated_stepping_batches`, for the schedule. Without this, the epoch would begin anew.
        self.trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Go on with the random numbers of the run that is resumed."""
        if self._rng_to_restore is not None:
            set_rng_state(self._rng_to_restore)
            self._rng_to_restore = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch; whether it is finite is asked at the update."""
        if self.device.type != "cpu":
            # For each width, cuDNN plans how to attend where it does, and a compiled step records its graph.
            batch = widened(batch, self.baseline_id, self.max_length)
        with sparse_gradient(self.model) if self._takes_rows() else nullcontext():
            losses = self.row_losses(self.forward_batch(batch), batch)
        loss = losses.sum() / self.loss_weight(batch)
        if self.automatic_optimization:  # else who steps by hand looks after it
            self._since_update.append((batch.get("row"), losses.detach()))
        self.log("train/loss", loss, batch_size=len(losses))
        if self.device.type == "cpu" or batch_idx % _STEPS_BETWEEN_SHOWN_LOSSES == 0:
            # At each step Lightning asks for the number that is shown: a GPU would be waited for.
            self.log("loss", loss.detach().cpu(), prog_bar=True, logger=False, batch_size=len(losses))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of what the optimizer holds, and let it leave out an update that isn't finite.

        Whether it was is asked at the next update or at the end of the epoch: a GPU would have to be waited for.
        A gradient scaler (float16) leaves out such updates by itself and lowers its scale.

        Raises:
            NonFiniteError: The loss or gradient of the update before was infinite or not a number.
        """
        self._check_update()
        if gradient_clip_val is not None and gradient_clip_val <= 0:
            gradient_clip_val = None  # as Lightning takes it
        losses = [losses.float().sum() for _, losses in self._since_update]
        if isinstance(self.trainer.strategy, FSDPStrategy):
            # Each process holds a part of each gradient; only the wrapped model knows the whole norm.
            norm = self.trainer.model.clip_grad_norm_(gradient_clip_val or math.inf)  # type: ignore[union-attr, operator]
            self._begin_update(*losses, norm)
            self._check_update()
            return
        if not self._holds_whole_gradients():
            self._begin_update(*losses)
            self._check_update()
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = nn.utils.get_total_norm([_coalesced(parameter) for parameter in parameters])
        finite = self._begin_update(*losses, norm)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer leaves weights and moments alone where this is 1, as it does for a gradient scaler.
            optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        else:
            self._check_update()
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def on_train_epoch_end(self) -> None:
        """Ask of the last update, too, whether it was finite."""
        self._check_update()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, and a schedule by step."""
        beside = self._parameters_beside_the_model()
        groups = parameter_groups(
            [*self.model.named_parameters(), *beside.items()],
            self._places | {name: Place(0, each.ndim >= 2) for name, each in beside.items()},
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
        )
        kind = RowwiseAdamW if self._updates_rows() and may_be_sparse(self.model) else torch.optim.AdamW
        if any(each.dtype == torch.float16 for group in groups for each in group["params"]):
            rank_zero_warn(
                "trainer.precision: AdamW's squares of gradients vanish in weights of float16, which then diverge;"
                " 16-mixed and bf16-true keep them."
            )
        # Lightning refuses to clip gradients for the fused kernel; where it has to, we do without.
        fused = self._holds_whole_gradients()
        optimizer = kind(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        # Lightning lets go of the gradients behind the next forward pass, where they lie beside its activations.
        if not self._overrides("on_before_zero_grad"):
            optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf") and (self.scheduler != "constant" or 0 < self.warmup < 1):
            raise ConfigError(
                "a schedule needs to know how long training takes",
                where="trainer.max_epochs",
                mend="set it or trainer.max_steps, or set model.scheduler to constant and model.warmup to 0",
            )
        name = "constant_with_warmup" if self.scheduler == "constant" else self.scheduler
        steps = 0 if total_steps == float("inf") else int(total_steps)
        schedule = get_scheduler(name, optimizer, warmup_steps(self.warmup, steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Measure anew, also after an evaluation that broke off."""
        self._reset_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Measure anew, also after an evaluation that broke off."""
        self._reset_metrics("test")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Measure a batch; returns under `rows` what was found of each row, for who writes it."""
        return {"rows": self.evaluate("val", batch)}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Measure a batch; returns under `rows` what was found of each row, for who writes it."""
        return {"rows": self.evaluate("test", batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test")

    def metrics_of(self, split: EvaluationSplit) -> MetricCollection:
        """Return the metrics of a split."""
        return cast(MetricCollection, self.metrics[split])

    def check_numbers(self, logits: Float[Tensor, "..."]) -> None:
        """Make sure that what the model says can be told; -inf stands for what it doesn't choose from.

        While it is fitted, the update after tells what diverges.

        Raises:
            UserError: There is what is no number, or infinite, as where training diverged.
        """
        state = None if self._trainer is None else self._trainer.state
        fits = state is not None and state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING
        if not fits and (logits.isnan() | logits.isposinf()).any():
            mend = "take a checkpoint from before the weights diverged, or a wider precision"
            raise UserError("what the model says is no finite number", mend=mend)

    def log_loss(self, split: EvaluationSplit, losses: Float[Tensor, " rows"], weight: int | Tensor) -> None:
        """Add a batch to the mean loss of a split, over all that `weight` counts in its batches."""
        cast(MeanMetric, self.losses[split]).update(losses.sum() / weight, weight)

    def _reset_metrics(self, split: EvaluationSplit) -> None:
        self.metrics_of(split).reset()
        cast(MeanMetric, self.losses[split]).reset()

    def _log_metrics(self, split: EvaluationSplit) -> None:
        loss = cast(MeanMetric, self.losses[split]).compute()
        figures = self.figures({"loss": loss, **self.metrics_of(split).compute()})
        self._reset_metrics(split)
        self.log_dict({f"{split}/{name}": figure.float() for name, figure in figures.items()}, sync_dist=True)

    # The self-contained checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the module without its backbone, and the random state.

        Raises:
            NonFiniteError: The last update was left out: who resumed from here would never learn of its rows.
        """
        self._check_update()
        checkpoint[SECTION] = {
            "module": type(self).__name__,
            "rng": rng_state(),
            "precision": self.trainer.precision,
            **pack_backbone(self.model.config, self.tokenizer, getattr(self.model, "generation_config", None)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state for the first batch of a resumed run, and let that begin at the right one."""
        resumes = self.trainer.state.fn == "fit"
        if resumes and "loops" in checkpoint:  # which one of weights alone lacks
            count_epochs_rightly(checkpoint, by_steps=self.trainer.max_steps != -1)
        self._rng_to_restore = checkpoint[SECTION]["rng"] if resumes and SECTION in checkpoint else None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls: type[M],
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: None = None,
        strict: Literal[True] | None = None,
        weights_only: Literal[True] | None = None,
        **changes: Any,
    ) -> M:
        """Rebuild a module from its checkpoint alone, offline, by tensors and primitives only.

        Args:
            checkpoint_path: A local file that `fit` or a `Trainer` wrote.
            map_location: The device to load to.
            hparams_file: Lightning's; the checkpoint holds the arguments itself.
            strict: Lightning's; all weights must fit.
            weights_only: Lightning's; nothing but tensors and primitives is ever unpickled.
            changes: Arguments that should differ from those the module was trained with.

        Raises:
            CheckpointError: It is missing, damaged, or of another module, or its weights don't fit the changes.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        check_written_by(cls.__name__, checkpoint, str(checkpoint_path))
        hyperparameters = {**checkpoint["hyper_parameters"], **changes}
        name = hyperparameters["backbone"]
        module = cls(**{**hyperparameters, "backbone": str(checkpoint_path)})
        try:
            module.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(
                f"its weights don't fit {', '.join(changes) or 'the module'}: {str(error).splitlines()[-1].strip()}",
                where=str(checkpoint_path),
                mend="leave out what changes the model's shape",
            ) from error
        module.save_hyperparameters({"backbone": name})
        return module.to(map_location)

    # Attribution hooks: how `explain` runs the module, and what of

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Tokenise texts, or pairs of texts, as they were in training."""
        return encode(self.tokenizer, texts, max_length=self.max_length)

    def pad(self, sequences: Sequence[Tokens]) -> dict[str, Int[Tensor, "batch sequence"]]:
        """Pad sequences to a batch on the module's device."""
        batch = pad(sequences, self.baseline_id)
        return {name: tensor.to(self.device) for name, tensor in self.inputs(batch).items()}

    def embedding_layers(self) -> list[nn.Module]:
        """Return the layers whose outputs stand for the tokens.

        An encoder-decoder looks each token up in encoder and decoder apart, also where they share their weights.
        """
        if not self.model.config.is_encoder_decoder:
            return [self.model.get_input_embeddings()]
        return [half.get_input_embeddings() for half in (self.model.get_encoder(), self.model.get_decoder())]

    @property
    def baseline_id(self) -> int:
        """The token whose embedding stands for the absence of a word: padding."""
        return int(self.tokenizer.pad_token_id)

    def absence_id(self, baseline: str) -> int:
        """Return the token whose embedding stands for a word that isn't there.

        Args:
            baseline: `pad`, `mask` or `unk`.

        Raises:
            ConfigError: The tokenizer has no such token.
        """
        known = {"pad": self.baseline_id, "mask": self.tokenizer.mask_token_id, "unk": self.tokenizer.unk_token_id}
        token = known.get(baseline)
        if token is None:
            there = ", ".join(name for name, each in known.items() if each is not None)
            raise ConfigError(f"the baseline {baseline!r} is not one of {there}", where="baseline")
        return token

    @contextmanager
    def attributing(self) -> Iterator[None]:
        """Run the plain model in eval mode, differentiable to its inputs but not to its frozen weights."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        compiled, self.model._compiled_call_impl = self.model._compiled_call_impl, None
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with (
                self.evaluating(),
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(self.device.type, enabled=False),
            ):
                yield
        finally:
            self.model._compiled_call_impl = compiled
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off, and each part back to its mode afterwards."""
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what of a batch the model's forward takes, without the labels."""
        taken = inspect.signature(self.model.forward).parameters
        return {name: tensor for name, tensor in batch.items() if name in taken and name != "labels"}

    def _records_passes(self) -> bool:
        """Whether steps run as CUDA graphs: on one GPU, if few shapes come."""
        # Who recomputes activations is short of memory.
        wanted = self.hparams["cuda_graphs"] and not self.model.is_activation_checkpointing
        return wanted and self._runs_on_one("cuda") and self.differs_in_width_alone

    def _runs_on_one(self, kind: str) -> bool:
        """Whether the run is of one process on one device of this kind."""
        strategy = self.trainer.strategy
        return isinstance(strategy, SingleDeviceStrategy) and strategy.root_device.type == kind

    def _holds_whole_gradients(self) -> bool:
        """Whether this process sees gradients unscaled and unsharded, and so can check and clip them by itself."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        return not scaled and isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy)

    def _updates_rows(self) -> bool:
        """Whether the optimizer is to get gradients of some rows of a matrix: on one CPU, where nobody else sees them.

        On a GPU, filling and applying one of all rows takes next to no time.
        """
        clips_numbers = self.trainer.gradient_clip_algorithm == "value"
        wanted_whole = clips_numbers or self.hparams["compile"] or self._shows_gradients()
        return self._runs_on_one("cpu") and self._holds_whole_gradients() and not wanted_whole

    def _takes_rows(self) -> bool:
        """Whether the run's optimizer takes gradients of rows: who subclasses may put another in the place of ours."""
        trainer, weight = self._trainer, cast(Any, self.model.get_input_embeddings().weight)
        if trainer is None or trainer.state.status != TrainerStatus.RUNNING or weight._backward_hooks:
            return False
        return [type(each) for each in trainer.optimizers] == [RowwiseAdamW]

    def _shows_gradients(self) -> bool:
        """Whether somebody else sees gradients, and so should find what most functions of torch take."""
        of_all = ("on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
        of_module = ("backward", "optimizer_step", "optimizer_zero_grad")
        weight: Any = self.model.get_input_embeddings().weight
        return (
            not self.automatic_optimization
            or bool(weight._backward_hooks)
            or any(
                is_overridden(own, self, TransformerModule) for own in ("training_step", "configure_gradient_clipping")
            )
            or any(is_overridden(hook, self, LightningModule) for hook in of_module)
            or any(map(self._overrides, of_all))
        )

    def _overrides(self, hook: str) -> bool:
        """Whether this module or a callback does something of its own at a hook of Lightning's."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        by_callback = any(is_overridden(hook, callback, Callback) for callback in callbacks)
        return by_callback or is_overridden(hook, self, LightningModule)

    def _parameters_beside_the_model(self) -> dict[str, nn.Parameter]:
        """Return the parameters that a subclass adds, by names that none of the model's has."""
        own = set(self.model.parameters())
        return {f"beside {name}": each for name, each in self.named_parameters() if each not in own}

    def _check_positions(self) -> None:
        positions = positions_of(self.model)
        if positions is not None and self.max_length > positions > 0:
            if self.hparams["max_length"] is not None:
                raise ConfigError(
                    f"max_length is {self.max_length}, but the backbone has {positions} positions",
                    where="model.max_length",
                    mend=f"set data.max_length to {positions} or less",
                )
            self.max_length = positions

    def _begin_update(self, *figures: Tensor) -> Int[Tensor, ""]:
        """Return whether the figures are finite in all processes, as 1 or 0, and keep it for `_check_update`."""
        finite = torch.ones((), dtype=torch.int32, device=self.device)
        for each in figures:
            finite = finite * each.to(self.device).isfinite().int()
        if _is_distributed():
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
        told, event = finite, None
        if finite.is_cuda:
            # Copied behind the backward pass, so that who asks later doesn't wait for what was started since.
            told, event = finite.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
        self._update = _Update(self.global_step, told, event, self._since_update)
        self._since_update = []
        return finite

    def _check_update(self) -> None:
        """Stop, in all processes, if what the last update was to learn of wasn't finite.

        Raises:
            NonFiniteError: It wasn't.
        """
        update, self._update = self._update, None
        if update is None:
            return
        if update.event is not None:
            update.event.synchronize()
        if update.finite:
            return
        rows, failed = list[int](), list[int]()
        for numbers, losses in update.learnt_of:
            rows += _row_numbers(numbers, len(losses))
            failed += [rows[i - len(losses)] for i, fine in enumerate(losses.isfinite().tolist()) if not fine]
        if _is_distributed():
            everyone: list[tuple[list[int], list[int]]] = [([], [])] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, (rows, failed))
            rows, failed = ([row for some in each for row in some] for each in zip(*everyone, strict=True))
        raise NonFiniteError(
            f"the {'loss' if failed else 'gradient'} is not finite at step {update.step};"
            " training stopped before the update",
            rows=failed or rows,
            mend="look at these rows, lower model.learning_rate, or use a wider precision; "
            "the checkpoints written before are good",
        )


class _Metrics(nn.ModuleDict):
    """Metrics that stay in their type when the module is converted: sums of rows don't fit into half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Metrics":
        def in_its_type(state: Tensor) -> Tensor:
            applied = fn(state)
            return applied if applied.dtype == state.dtype else state.to(applied.device)

        return super()._apply(in_its_type, recurse)


class _Update(NamedTuple):
    """What an update was to learn of.

    Attributes:
        step: The number of updates before.
        finite: Whether losses and gradient are finite, as 1 or 0.
        event: When `finite` is there; None where it is at once.
        learnt_of: Of each batch the row numbers of its sequences, where it has them, and the rows' losses.
    """

    step: int
    finite: Tensor
    event: torch.cuda.Event | None
    learnt_of: list[tuple[Tensor | None, Tensor]]


def as_json(result: Any) -> dict[str, Any]:
    """Return a typed result as a JSON object, without fields that say nothing."""
    return {name: value for name, value in asdict(result).items() if value is not None}


def token_scores(
    logits: Float[Tensor, "rows places vocabulary"], target: Int[Tensor, "rows 2"]
) -> Float[Tensor, " rows"]:
    """Return the log probability of a token at a place of each row: `target` holds place and token."""
    place, token = target.unbind(1)
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, place].float().log_softmax(-1).gather(1, token.unsqueeze(1)).squeeze(1)


def positions_of(model: nn.Module) -> int | None:
    """Return how many tokens have a position, where the model says it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa and its kin count positions from beyond the padding token's number.
            return module.num_embeddings - module.padding_idx - 1
    # Two encoders that became one encoder-decoder have their positions each; they are of one backbone.
    config = getattr(model.config, "decoder", model.config)
    return getattr(config, "max_position_embeddings", None)


def _coalesced(parameter: nn.Parameter) -> Tensor:
    """Let a sparse gradient of a parameter have each row once, and return the numbers of the gradient."""
    gradient = cast(Tensor, parameter.grad)
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _row_numbers(of_sequences: Tensor | None, rows: int) -> list[int]:
    return list(range(rows)) if of_sequences is None else torch.unique_consecutive(of_sequences).tolist()
