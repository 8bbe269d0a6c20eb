"""`python -m app export`: write a trained model for other programs, and measure what it lost."""

import dataclasses
import gc
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from app.config import Config
from app.errors import UserError
from app.evaluation.drift import Drift, ModelOutputs, compute_drift, run_plain_model
from app.gemma.adapter import read_adapter
from app.gemma.adapter_check import require_same_adapter
from app.gemma.base_model import get_stored_quantization, get_tokenizer_source, load_model_config
from app.jobs.card_scores import find_scores
from app.jobs.export_formats import FORMATS, name_base_model, save_prompt
from app.jobs.job_dir import read_job_file
from app.jobs.model_card import DATA_DIGEST, describe_drift, render_model_card
from app.jobs.open_captioner import find_adapter_folder, open_captioner
from app.jobs.trained_model import TrainedModel
from app.storage import require_new_folder
from app.training.checkpoint import STATE_FILE
from data_pipeline.shards import ShardRecord, Shards, open_shards
from data_pipeline.stream.encode import PromptEncoder

NUM_DRAWINGS = 8
"""Number of drawings on which the drift is measured."""
MAX_PROMPT_TOKENS = 2048
"""Longer drawings are not used for the drift: plain transformers needs memory for each pair."""


def export_model(model: TrainedModel, kind: str, out: Path, max_drift: float) -> dict[str, Any]:
    """Write a trained model in the format `kind` into the new folder `out`; return the drift.

    `max_drift` is the largest allowed mean KL divergence from the trained model (nats per caption
    token). The folder appears when all of it is written and measured. Raises UserError if the
    format cannot hold the model, if the drift is larger, or if `out` cannot be written.
    """
    config = model.config
    require_new_folder(out)
    _require_format(config, kind)
    folder = find_adapter_folder(model.adapter)
    adapter = read_adapter(folder, model.name)
    require_same_adapter(adapter, config.lora, load_model_config(config.model))
    shards = open_shards(config.data.shards)
    encoder = PromptEncoder(get_tokenizer_source(config.model), config.data.system_prompt)
    split, drawings = _choose_drawings(config, shards, encoder)

    # the trained model
    _print(f"running the trained model on {len(drawings)} drawings of the {split} split")
    captioner = open_captioner(config, str(folder))
    trained = ModelOutputs(
        [captioner.compute_log_probs(each.svg, each.caption) for each in drawings],
        captioner.caption([each.svg for each in drawings]),
    )
    del captioner
    _free_memory()

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            (written := Path(name, out.name)).mkdir()

            # write
            FORMATS[kind].write(config, adapter, written)
            _write_pin(model, kind, written)
            save_prompt(config, kind, written, encoder, [each.svg for each in drawings])

            # measure
            _print("running the export in plain transformers")
            plain = FORMATS[kind].load(config, adapter, written)
            exported = run_plain_model(
                plain, encoder, drawings, max_new_tokens=config.evaluate.max_new_tokens
            )
            drift = compute_drift(drawings, trained, exported)
            _require_small_drift(drift, max_drift, kind, split)
            report = {"kind": kind, "split": split, "max_drift": max_drift}
            report |= dataclasses.asdict(drift)
            (written / "drift.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
            card = render_model_card(model, kind, drift, split, find_scores(model))
            (written / "README.md").write_text(card)

            # publish
            _open_files(written)
            os.rename(written, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--out {out} cannot be written ({error}): free some space, or give another folder"
        ) from error
    _print(describe_drift(drift, split))
    return {"out": str(out), **report}


def _open_files(folder: Path) -> None:
    """Let all users read the files of a folder."""
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _write_pin(model: TrainedModel, kind: str, out: Path) -> None:
    """Write the pin of an adapter's base model where `require_same_base_model` reads it."""
    state = read_job_file(model.adapter, STATE_FILE) or {}
    if kind == "adapter" and "base" in state:
        digest = state.get("job", {}).get(DATA_DIGEST)
        kept = {
            "state": {"step": model.step},
            "base": {**state["base"], "name": name_base_model(model.config)},
            "job": {DATA_DIGEST: digest} if digest else {},
        }
        (out / STATE_FILE).write_text(json.dumps(kept, indent=2) + "\n")


# checks


def _require_format(config: Config, kind: str) -> None:
    """Raise UserError if the format cannot hold the model, or its package is missing."""
    if kind == "gguf-lora":
        if config.lora.train_embeddings:
            raise UserError(
                "--gguf-lora cannot hold the trained embedding (lora.train_embeddings=true): "
                "give --merged or --adapter"
            )
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                "--gguf-lora needs the package gguf: "
                "pip install -c deploy/constraints.txt -e '.[export]'"
            )
    model_config = load_model_config(config.model)
    if kind == "merged" and get_stored_quantization(config.model, model_config) is not None:
        raise UserError(
            f"--merged needs the 16-bit weights that the checkpoint was trained on, but "
            f"model.name={config.model.name} holds 4 bits: give --adapter or --gguf-lora"
        )


def _require_small_drift(drift: Drift, max_drift: float, kind: str, split: str) -> None:
    if not drift.mean_kl <= max_drift:  # not: it may be NaN
        raise UserError(
            f"--{kind} is not written, because its drift exceeds --max-drift {max_drift:g}: "
            f"{describe_drift(drift, split)}; give another format, or a larger --max-drift"
        )


def _choose_drawings(
    config: Config, shards: Shards, encoder: PromptEncoder
) -> tuple[str, Sequence[ShardRecord]]:
    """Return the split and the first drawings of the test set, or of the validation set."""
    split = "test" if shards.files.get("test") else "validation"
    num_records = min(shards.num_records(split), 32 * NUM_DRAWINGS)
    limit = min(MAX_PROMPT_TOKENS, config.data.sequence_tokens)
    records = [
        record
        for record in shards.read(split, 0, num_records)
        if len(encoder.encode_prompt(record.svg)) <= limit
    ]
    if not records:
        raise UserError(
            f"the drift cannot be measured: none of the first {num_records} drawings of the "
            f"{split} split of data.shards={config.data.shards} has a prompt of at most {limit} "
            "tokens; give other shards"
        )
    return split, records[:NUM_DRAWINGS]


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _free_memory() -> None:
    """Return the memory of a model that is not referenced any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
