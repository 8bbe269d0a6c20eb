"""Configuration section `evaluate`."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

TARGETS: dict[str, float | None] = {
    "bleu4": 0.18,
    "clip_cosine": 0.28,
    "instruction_following": 0.85,
}
"""The users' targets. Their "CLIP Score" is the cosine: CLIPScore is 2.5 times as large."""

SCORES = (
    *("eval_loss", "perplexity", "valid_output"),
    *("instruction_following", "instruction_following_loose"),
    *("single_instruction", "single_instruction_loose"),
    *("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "meteor", "embedding_cosine"),
    *("clip_cosine", "clip_score", "facts_precision", "facts_recall"),
    *(
        f"facts_{kind}_{part}"
        for kind in ("colour", "count", "shape", "side", "size")
        for part in ("precision", "recall")
    ),
)
"""Names of all scores, without the accuracy of `evaluate.fields`."""

Phrase = Annotated[str, Field(min_length=1)]


class EvaluateConfig(BaseModel):
    """Measurements on the held-out split, with the base model and with the trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        2,
        description="packed sequences in one forward pass of an evaluation (sequences)",
        json_schema_extra={"counterpart": "TrainingArguments.per_device_eval_batch_size"},
    )
    max_captions: Annotated[int, Field(ge=0)] = Field(
        240, description="number of held-out drawings to caption and score (drawings); 0: none"
    )
    generation_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        20, description="largest number of drawings captioned in one batch (drawings)"
    )
    max_cache_tokens: Annotated[int, Field(ge=1)] = Field(
        8192,
        description="length of the key-value cache of one batch of captions: its longest prompt "
        "with max_new_tokens, times its drawings (tokens); one drawing may exceed it",
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
        128,
        description="length limit of a generated caption (tokens)",
        json_schema_extra={"counterpart": "GenerationConfig.max_new_tokens"},
    )
    caption_engine: Literal["own", "vllm"] = Field(
        "own",
        description="program that computes the captions of `caption` and `serve`; vllm: on GPU "
        "nodes where it is installed, as `model.name` with the adapter",
    )
    max_gallery_items: Annotated[int, Field(ge=0, le=5000)] = Field(
        60, description="largest number of drawings in the gallery (drawings)"
    )
    probes: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="number of held-out drawings on which attention and softcaps are measured at "
        "each evaluation of a job (drawings); 0: none",
    )
    watch_captions: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="number of held-out drawings that are captioned at each evaluation of a job "
        "(drawings); 0: none",
    )
    fields: dict[str, Annotated[tuple[Phrase, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="fields for the accuracy metric: for each field the phrases of which a "
        "caption names one, such as weight: [thin, bold]",
    )
    targets: dict[str, float | None] = Field(
        default_factory=lambda: dict(TARGETS),
        description="target of a score by its name in the report; a score must be above it, and "
        "eval_loss and perplexity below it; null: no target",
    )
    clip_model: str | None = Field(
        None,
        description="hub name or folder of a CLIP model, with which clip_score and clip_cosine are "
        "computed; null: without them",
    )
    max_instruction_prompts: Annotated[int, Field(ge=0)] = Field(
        208,
        description="number of held-out drawings that are captioned once more, with instructions "
        "(drawings); 0: none",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _add_default_targets(cls, given: Any) -> Any:
        return {**TARGETS, **given} if isinstance(given, dict) else given

    @field_validator("targets")
    @classmethod
    def _require_known_scores(
        cls, targets: dict[str, float | None], info: ValidationInfo
    ) -> dict[str, float | None]:
        scores = [*SCORES, *(f"{field}_accuracy" for field in info.data.get("fields", {}))]
        for name in targets:
            if name not in scores:
                nearest = difflib.get_close_matches(name, scores, 1, 0)[0]
                raise ValueError(
                    f"{name} is not a score; did you mean {nearest}? All: {', '.join(scores)}"
                )
        return targets
