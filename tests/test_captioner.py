"""Captions of a loaded model, whole and in pieces."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from app.config import Config, load_config
from app.errors import UserError
from app.evaluation.captioner import Captioner, decode_pieces
from app.jobs.open_captioner import open_captioner
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.svg import canonicalise
from tests.tiny import save_trained_model


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("demo", {"evaluate.max_new_tokens": 24, "train.precision": "fp32"})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, config: Config) -> str:
    return save_trained_model(tmp_path_factory.mktemp("adapter"), config)


@pytest.fixture(scope="module")
def captioner(config: Config, adapter: str) -> Captioner:
    return open_captioner(config, adapter)


@pytest.fixture(scope="module")
def svgs() -> list[str]:
    return [canonicalise(record.svg) for record in list(read_phosphor())[::2000]]


def test_pieces_are_the_caption_and_leave_the_state_of_torch(
    captioner: Captioner, svgs: list[str]
) -> None:
    for svg, caption in zip(svgs, captioner.caption(svgs), strict=True):
        pieces = []
        for piece in captioner.stream(svg):
            assert torch.is_grad_enabled()
            pieces.append(piece)
        assert "".join(pieces) == caption
        assert len(pieces) > 3


def test_an_adapter_changes_the_captions(
    config: Config, captioner: Captioner, svgs: list[str]
) -> None:
    assert open_captioner(config, None).caption(svgs) != captioner.caption(svgs)


def test_an_adapter_of_another_base_model_is_refused(config: Config, adapter: str) -> None:
    fp4 = config.quantization.model_copy(update={"kind": "fp4"})
    with pytest.raises(UserError, match="was trained on the base model tiny"):
        open_captioner(config.model_copy(update={"quantization": fp4}), adapter)


def test_a_masked_base_model_is_named(config: Config, adapter: str) -> None:
    masked = config.model.model_copy(update={"name": "s3://***@bucket/base"})
    with pytest.raises(UserError, match="without its credentials: give the whole value"):
        open_captioner(config.model_copy(update={"model": masked}), adapter)


def test_a_character_of_several_bytes_is_one_piece(tmp_path: Path) -> None:
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    letters = ["\n", *map(chr, range(32, 127))]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(control)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = PromptEncoder(str(tmp_path), "Describe:")

    ids = tokenizer.encode(" a é漢 b\n", add_special_tokens=False).ids
    assert len(ids) == 11
    assert list(decode_pieces(encoder, ids)) == ["a", " é", "漢", " b"]
    # a caption that ends inside a character keeps its bytes, as the whole caption does
    cut = tokenizer.encode("a漢", add_special_tokens=False).ids[:-1]
    assert "".join(decode_pieces(encoder, cut)) == encoder.decode(cut) == "a\ufffd\ufffd"
