"""The `data` section. Imports neither Ray nor a tokenizer, so that a bad value fails at once."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Where the shards are, how rows become prompts, and how prompts become packed rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: str = Field(
        "outputs/shards", description="folder of Parquet shards written by `prepare`"
    )
    system_prompt: str = Field(
        "You are an expert at describing SVG images. Provide a detailed, accurate description of this SVG image:",
        description="sentence that stands before the SVG in the user's turn",
    )
    sequence_tokens: Annotated[int, Field(ge=16, le=131_072)] = Field(
        8192,
        description="length of a packed row (tokens)",
        json_schema_extra={"counterpart": "SFTConfig.max_length"},
    )
    too_long: Literal["drop", "truncate"] = Field(
        "drop",
        description="an example longer than a packed row is left out, or loses the end of its SVG; both are counted",
    )
    shuffle_block_examples: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1024,
        description="examples shuffled and packed together (rows); resuming re-reads at most one window",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0,
        description="seed of the order in which rows are seen",
        json_schema_extra={"counterpart": "TrainingArguments.data_seed"},
    )
    max_train_examples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="train on the first N rows of the train split only (rows); null: on all"
    )
    max_validation_examples: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="evaluate on the first N rows of the validation split only (rows); null: on all",
    )
    cache_dir: str | None = Field(
        None,
        description="folder (or file system URI) that keeps tokenised examples, so that epochs and trials after the "
        "first read tokens; null: encode anew",
    )
    ledger: bool = Field(
        False, description="write the ids of the rows of each step to ledger/ in the job's folder"
    )
    cpus_per_task: Annotated[float, Field(gt=0, le=64)] = Field(
        0.5, description="CPUs that Ray reserves for one read-and-pack task"
    )
    prefetch_batches: Annotated[int, Field(ge=0, le=1024)] = Field(
        4,
        description="micro-batches that each worker holds ready (micro-batches)",
        json_schema_extra={"counterpart": "TrainingArguments.dataloader_prefetch_factor"},
    )


class PrepareConfig(BaseModel):
    """Arguments of `prepare`: raw sources to Parquet shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str = Field(description="folder (or file system URI) that receives the shards")
    svg_column: str | None = Field(
        None, description="column or key of the drawing (default: a known name)"
    )
    caption_column: str | None = Field(
        None, description="column or key of the caption (default: the known names)"
    )
    id_column: str | None = Field(
        None,
        description="column or key of the id (default: a known name); empty or none known: rows are numbered",
    )
    captions: Literal["first", "random", "all"] = Field(
        "first",
        description="of a drawing with several: the `first` that is not empty, a `random` one, or `all`, each apart",
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the concepts that are held out for validation"
    )
    shard_records: Annotated[int, Field(ge=1)] = Field(
        2048, description="rows in one shard at most (rows)"
    )
    max_svg_bytes: Annotated[int, Field(ge=64)] = Field(
        4_000_000, description="a longer raw drawing is refused (bytes)"
    )
    max_leaked_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05,
        description="share of the rows whose SVG text may contain their own caption; above it all is refused",
    )
    max_records: Annotated[int, Field(ge=1)] | None = Field(
        None, description="read the first N examples of each source only (rows; default: all)"
    )
    processes: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="processes that clean drawings (default: one for each CPU that this one may use)",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of the split, of the order of rows, and of what is chosen at random"
    )
