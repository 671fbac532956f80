"""Backbones from scratch: configurations in each of their forms, and tokenizers trained on one's own texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import MarianConfig, MarianMTModel
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from lit_nlp import GenerativeQuestionAnsweringDataModule, LanguageModelingDataModule, LanguageModelingModule, scratch
from lit_nlp.errors import BackboneError
from lit_nlp.files import cache_folder
from lit_nlp.objectives import Objective
from lit_nlp.pretrained import load_config, load_tokenizer
from tests.backbones import CORPUS
from tests.contract import outputs, plain_trainer, rows_of, write_rows

SIZES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "t5": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2},
    "marian": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}
OBJECTIVES: dict[str, Objective] = {"bert": "masked", "llama": "causal", "gpt2": "causal", "t5": "denoising"}


def configuration(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, "vocab_size": 400, **SIZES[kind], **changes}


def inline(kind: str, **changes: Any) -> str:
    return f"scratch:{json.dumps(configuration(kind, **changes))}"


# Configurations


def test_a_configuration_stands_in_place_in_a_file_or_in_a_folder(tmp_path: Path) -> None:
    given = configuration("bert")
    (tmp_path / "bert.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "bert.json").write_text(json.dumps(given))
    scratch.read_config(inline("bert")).save_pretrained(tmp_path / "folder")
    flow = "scratch:{model_type: bert, vocab_size: 400, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2,"
    forms = [f"scratch:{tmp_path / name}" for name in ("bert.yaml", "bert.json", "folder")]
    expected = scratch.read_config(inline("bert"))
    assert (expected.hidden_size, expected.num_hidden_layers, expected.vocab_size) == (16, 2, 400)
    for form in [*forms, f"{flow} intermediate_size: 32}}", f"{flow.replace(':{', ': {')}\n intermediate_size: 32}}"]:
        ours = scratch.read_config(form).to_dict()
        assert {name: ours[name] for name in given} == given
        assert type(scratch.read_config(form)) is type(expected)


def test_what_a_configuration_does_not_say_is_transformers_default() -> None:
    assert scratch.read_config("scratch:{model_type: bert}").num_hidden_layers == 12


def test_special_tokens_beyond_a_small_vocabulary_are_the_trained_tokenizers(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("gpt2", "marian"):
        config = scratch.read_config(inline(kind))
        fitted = scratch.fitting(config, scratch.train_tokenizer(config, lambda: CORPUS))
        ids = {
            name: value for name, value in fitted.to_dict().items() if name.endswith("token_id") and value is not None
        }
        assert max(ids.values()) < fitted.vocab_size
    assert "must be `None` or an integer within the vocabulary" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{model_type: brt}", "model_type 'brt' is no architecture; did you mean 'bert'?"),
        ("{hidden_size: 16}", "model_type None is no architecture"),
        ("{model_type: bert, hiden_size: 16}", "bert has no argument 'hiden_size'; did you mean 'hidden_size'?"),
        ("{model_type: bert, 16: 16}", "bert has no argument 16; see the documentation of BertConfig"),
        ("{model_type: bert, xyz: 16}", "bert has no argument 'xyz'; see the documentation of BertConfig"),
        ("{model_type: bert, hidden_size: wide}", "the configuration is none of bert (Validation error for field"),
        ("{model_type: bert, vocab_size: many}", "the configuration is none of bert (Validation error for field"),
        ("{model_type: bert", "the configuration can't be read"),
        ("./gone.yaml", "the configuration can't be read ([Errno 2] No such file or directory: 'gone.yaml')"),
        ("", "the configuration can't be read"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError) as raised:
        scratch.read_config(f"scratch:{given}")
    assert message in str(raised.value)
    assert str(raised.value).startswith("backbone scratch:")
    assert "\n" not in str(raised.value)


def test_a_folder_that_holds_no_configuration_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"^backbone scratch:.*the configuration can't be read"):
        scratch.read_config(f"scratch:{tmp_path}")


# Tokenizers

HARD = 'A warm, funny film; it\'s 100% "good": naïve café, 你好!'


@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "marian"])
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    config = scratch.read_config(inline(kind))
    trained = {scratch.train_tokenizer(config, lambda: CORPUS).backend_tokenizer.to_str() for _ in range(4)}
    assert len(trained) == 1


def test_an_architecture_with_several_end_tokens_may_have_a_small_vocabulary() -> None:
    config = scratch.read_config("scratch:{model_type: glm, vocab_size: 400}")
    tokenizer = scratch.train_tokenizer(config, lambda: CORPUS)
    assert scratch.fitting(config, tokenizer).eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "marian"])
def test_what_a_tokenizer_takes_apart_it_puts_together_again(kind: str) -> None:
    config = scratch.read_config(inline(kind))
    tokenizer = scratch.train_tokenizer(config, lambda: [*CORPUS, HARD])
    for text in [*CORPUS, HARD, "two  words"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(tokenizer) <= 400


def test_a_decoders_tokenizer_knows_every_byte() -> None:
    tokenizer = scratch.train_tokenizer(scratch.read_config(inline("llama")), lambda: CORPUS)
    text = "😀 never\tseen\n\x01"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_encoders_tokenizer_keeps_all_but_the_blanks() -> None:
    tokenizer = scratch.train_tokenizer(scratch.read_config(inline("bert")), lambda: [*CORPUS, HARD])
    for text in [*CORPUS, HARD]:
        back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert "".join(back.split()) == "".join(text.split())
    ids = tokenizer("good", "bad")
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"]) == ["[CLS]", "good", "[SEP]", "bad", "[SEP]"]
    assert ids["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("bert", {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}),
        ("llama", {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
        ("t5", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}),
    ],
)
def test_model_and_tokenizer_agree_on_size_and_special_tokens(kind: str, roles: dict[str, str]) -> None:
    backbone = scratch.with_tokenizer(inline(kind), lambda: CORPUS, "corpus")
    tokenizer, config = load_tokenizer(backbone), load_config(backbone)
    assert config.vocab_size == len(tokenizer)
    for role, token in roles.items():
        assert getattr(tokenizer, f"{role}_token") == token
        assert getattr(config, f"{role}_token_id") == tokenizer.convert_tokens_to_ids(token)
    assert (tokenizer("good")["input_ids"][-1] == tokenizer.eos_token_id) == (kind == "t5")
    if kind == "t5":
        assert {f"<extra_id_{i}>" for i in range(100)} <= tokenizer.get_vocab().keys()
        assert config.decoder_start_token_id == tokenizer.pad_token_id


def test_a_trained_tokenizer_is_found_again_in_the_cache() -> None:
    backbone = scratch.with_tokenizer(inline("bert"), lambda: CORPUS, ["corpus", 1])
    assert backbone.startswith(f"scratch:{cache_folder()}")
    assert not list(cache_folder().glob("**/*.part"))
    found = scratch.with_tokenizer(inline("bert"), lambda: pytest.fail("the texts were read again"), ["corpus", 1])
    assert found == backbone
    others = {
        scratch.with_tokenizer(inline("bert"), lambda: CORPUS, ["corpus", 2]),
        scratch.with_tokenizer(inline("bert", vocab_size=150), lambda: CORPUS, ["corpus", 1]),
    }
    assert len(others | {backbone}) == 3


def test_without_a_tokenizer_the_backbone_says_who_trains_one() -> None:
    with pytest.raises(BackboneError, match="it has no tokenizer yet; give it to a data module first"):
        load_tokenizer(inline("bert"))


# From a data module to a module


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_data_module_trains_the_tokenizer_and_the_module_is_built_from_it_and_from_a_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("".join(f"{text}\n" for text in CORPUS))

    def make(backbone: str) -> LanguageModelingDataModule:
        given = {"train": str(source), "val": str(source), "max_length": 32, "batch_size": 2}
        return LanguageModelingDataModule(backbone, objective=OBJECTIVES[kind], **given)

    data = make(inline(kind))
    assert scratch.has_tokenizer(data.backbone)
    assert make(inline(kind)).backbone == data.backbone
    module = LanguageModelingModule(data.backbone, max_length=32)
    assert module.model.config.vocab_size == len(module.tokenizer) == len(data.tokenizer)
    other = LanguageModelingModule(data.backbone, max_length=32)
    assert not torch.equal(module.model.get_input_embeddings().weight, other.model.get_input_embeddings().weight)
    trainer = plain_trainer(max_steps=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")

    shutil.rmtree(cache_folder())
    loaded = LanguageModelingModule.load_from_checkpoint(tmp_path / "x.ckpt")
    again = make(str(tmp_path / "x.ckpt"))
    batch = rows_of(again, [0, 1, 2])
    assert torch.equal(outputs(loaded, batch), outputs(module, batch))


# The classic Transformer (Vaswani et al. 2017), which `scratch:{model_type: marian, …}` builds


@pytest.mark.parametrize(("positions", "width"), [(64, 16), (512, 128)])
def test_positions_are_sines_on_even_and_cosines_on_odd_dimensions(positions: int, width: int) -> None:
    """PE[pos, 2i] = sin(pos / 10000^(2i / d)), PE[pos, 2i + 1] = cos(pos / 10000^(2i / d)): section 3.5."""
    table = np.empty((positions, width))
    for pos in range(positions):
        for i in range(width // 2):
            table[pos, 2 * i] = np.sin(pos / 10_000 ** (2 * i / width))
            table[pos, 2 * i + 1] = np.cos(pos / 10_000 ** (2 * i / width))
    # Marian puts the even dimensions first and then the odd ones: the same for every layer that reads them.
    reordered = np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)
    theirs = MarianSinusoidalPositionalEmbedding(positions, width)
    np.testing.assert_allclose(theirs.create_weight().numpy(), reordered, rtol=0, atol=1e-7)

    changes = {"d_model": width, "max_position_embeddings": positions}
    model = MarianMTModel(scratch.read_config(inline("marian", **changes)))
    for half in (model.get_encoder(), model.get_decoder()):
        np.testing.assert_allclose(half.embed_positions.weight.numpy(), reordered, rtol=0, atol=1e-7)
        assert not half.embed_positions.weight.requires_grad


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_attention_is_the_softmax_of_scaled_dot_products_times_the_values(half: str, attention: str) -> None:
    """softmax(Q K^T / sqrt(d_k)) V, for each head, concatenated and projected: sections 3.2.1 and 3.2.2."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=50,
        pad_token_id=0,
        decoder_start_token_id=0,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        attn_implementation=attention,
    )
    model = MarianMTModel(config).double().eval()
    layer = getattr(model.model, half).layers[0].self_attn
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
        torch.nn.init.normal_(projection.weight, std=0.5)
        torch.nn.init.normal_(projection.bias)
    seen: list[Any] = []
    layer.register_forward_hook(lambda _, given, named, out: seen.append((*given, named, out)), with_kwargs=True)
    ids = torch.randint(1, 50, (2, 7))
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False)
    *given, named, (theirs, *_) = seen[0]
    x = (given[0] if given else named["hidden_states"]).numpy()
    weights = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}

    ours = np.empty_like(x)
    for row in range(2):
        q, k, v = (x[row] @ weights[f"{n}_proj.weight"].T + weights[f"{n}_proj.bias"] for n in "qkv")
        heads = []
        for head in range(4):
            of_head = slice(4 * head, 4 * head + 4)
            scores = q[:, of_head] @ k[:, of_head].T / np.sqrt(4)
            hidden = np.tile(mask[row].numpy() == 0, (7, 1))
            if half == "decoder":
                hidden |= np.triu(np.ones((7, 7), dtype=bool), 1)
            scores[hidden] = -np.inf
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ v[:, of_head])
        ours[row] = np.concatenate(heads, axis=1) @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-10, atol=1e-12)


def test_a_tokenizer_learns_from_all_that_is_read_and_written(tmp_path: Path) -> None:
    asked = [{"question": "what is up", "context": "zebras jump", "answer": "quick"} for _ in range(4)]
    source = write_rows(tmp_path / "rows.jsonl", asked)
    data = GenerativeQuestionAnsweringDataModule(inline("t5"), train=source, val=source, max_length=64)
    data.setup("fit")
    assert data.tokenizer.unk_token_id not in data.tables["train"]["source_ids"][0]
    assert data.tokenizer.unk_token_id not in data.tables["train"]["target_ids"][0]
