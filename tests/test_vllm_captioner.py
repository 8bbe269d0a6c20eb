"""Captions by vLLM, up to the import of vLLM: its arguments, and adapters that it cannot hold."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.config import load_config
from app.errors import UserError
from app.evaluation.vllm_captioner import build_engine_arguments
from app.gemma.base_model import TINY
from app.jobs.open_captioner import _list_vllm_settings, open_engine, require_engine
from app.jobs.trained_model import save_config
from tests.checkpoints import write_checkpoint_files

VLLM = {"evaluate.caption_engine": "vllm", "tracking.uri": "null"}


def save_adapter(folder: Path, **changes: Any) -> str:
    """Write an adapter without weights: they are not loaded before vLLM is there."""
    write_checkpoint_files(folder, {"state": {"step": 0}})
    settings = {"peft_type": "LORA", "r": 16, "modules_to_save": None, "rank_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "rank"),
    [({}, 16), ({"r": 17}, 32), ({"r": 300}, 320), ({"rank_pattern": {"q_proj": 40}}, 64)],
)
def test_vllm_gets_the_smallest_of_its_ranks_that_holds_the_adapter(
    tmp_path: Path, changes: dict[str, Any], rank: int
) -> None:
    config = load_config("demo", {**VLLM, "train.precision": "bf16"})
    adapter = Path(save_adapter(tmp_path / "adapter", **changes))
    assert build_engine_arguments(adapter, **_list_vllm_settings(config)) == {
        "model": str(TINY),
        "revision": None,
        "dtype": "bfloat16",
        "quantization": "bitsandbytes",
        "max_model_len": config.data.sequence_tokens + config.evaluate.max_new_tokens,
        "enable_lora": True,
        "max_lora_rank": rank,
        "skip_tokenizer_init": True,
    }


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"r": 513}, {}, "has rank 513, and vLLM takes ranks up to 512"),
        ({"rank_pattern": {"q_proj": 600}}, {}, "has rank 600"),
        ({"modules_to_save": ["embed_tokens"]}, {}, r"embed_tokens; lora\.train_embeddings=true"),
        ({}, {"model.attention_softcap": False}, r"switched off model\.attention_softcap or"),
        ({}, {"model.logit_softcap": False}, "both softcaps"),
        ({}, {"quantization.kind": "fp4"}, "quantises to nf4"),
        ({}, {"evaluate.max_new_tokens": 8192}, "vLLM takes 8192 with this model: lower one"),
    ],
)
def test_an_adapter_that_vllm_cannot_hold_is_refused_before_a_model_is_loaded(
    tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], words: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=f"{words}.*set evaluate\\.caption_engine=own"):
        require_engine(load_config("demo", {**VLLM, **overrides}), adapter)
    require_engine(load_config("demo", {**VLLM, **overrides, "evaluate.caption_engine": "own"}), "")


def test_a_machine_without_vllm_is_named_and_the_command_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    adapter = save_adapter(tmp_path / "adapter")
    config = load_config("demo", VLLM)
    save_config(tmp_path / "adapter", config)
    with pytest.raises(UserError, match="needs vLLM and a GPU"):
        open_engine(config, adapter)

    (tmp_path / "a.svg").write_text('<svg viewBox="0 0 9 9"><path d="M0 0H5V5z"/></svg>')
    arguments = [str(tmp_path / "a.svg"), "--model", adapter, "--out", str(tmp_path / "a.jsonl")]
    assert main(["caption", *arguments]) == 2
    assert "evaluate.caption_engine=vllm needs vLLM and a GPU" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "adapter"]
