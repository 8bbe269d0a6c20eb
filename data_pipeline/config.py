"""Configuration of the data: the `data` section, and the arguments of `prepare`.

Imports neither Ray nor a tokenizer, so that a wrong value fails before they are loaded.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """Location of the shards, and how records become prompts and packed sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: str = Field(
        "outputs/shards",
        description="folder of Parquet shards that `prepare` wrote",
    )
    system_prompt: str = Field(
        "You are an expert at describing SVG images. "
        "Provide a detailed, accurate description of this SVG image:",
        description="sentence before the SVG in the user's turn",
    )
    sequence_tokens: Annotated[int, Field(ge=16, le=131_072)] = Field(
        8192,
        description="length of a packed sequence (tokens)",
        json_schema_extra={"counterpart": "SFTConfig.max_length, SFTConfig.max_seq_length"},
    )
    too_long: Literal["drop", "truncate"] = Field(
        "drop",
        description="example longer than a packed sequence: `drop` it, or `truncate` the end of "
        "its SVG; both are counted",
    )
    shuffle_block_examples: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1024,
        description="examples shuffled and packed together (examples); resuming reads at most one "
        "shuffle block again",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0,
        description="seed of the order of the records",
        json_schema_extra={"counterpart": "TrainingArguments.data_seed"},
    )
    max_train_records: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="train only on the first N records of the train split (records); null: on all",
    )
    max_validation_records: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="evaluate only on the first N records of the validation split (records); "
        "null: on all",
    )
    cache_dir: str | None = Field(
        None,
        description="folder (or file system URI) that caches tokenised examples, so that epochs "
        "and trials after the first read tokens; null: tokenise each time",
    )
    ledger: bool = Field(
        False,
        description="write the record ids of each step to ledger/ in the job's folder",
    )
    cpus_per_task: Annotated[float, Field(gt=0, le=64)] = Field(
        0.5,
        description="CPUs that Ray reserves for one read-and-pack task (CPUs)",
    )
    prefetch_batches: Annotated[int, Field(ge=0, le=1024)] = Field(
        4,
        description="micro-batches that each worker prefetches (micro-batches)",
        json_schema_extra={"counterpart": "TrainingArguments.dataloader_prefetch_factor"},
    )


class PrepareConfig(BaseModel):
    """Arguments of `prepare`, which turns raw sources into Parquet shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_captions: ClassVar[bool] = True

    out: str = Field(description="folder (or file system URI) for the shards")
    svg_column: str | None = Field(
        None,
        description="column or key of the drawing (default: a known name)",
    )
    caption_column: str | None = Field(
        None,
        description="column or key of the caption (default: the known names)",
    )
    id_column: str | None = Field(
        None,
        description="column or key of the id (default: a known name); records are numbered if it "
        "is empty or no known name is found",
    )
    captions: Literal["first", "random", "all"] = Field(
        "first",
        description="captions to keep of a drawing with several: the `first` that is not empty, "
        "a `random` one, or `all`, one record for each",
    )
    split_column: str | None = Field(
        None,
        description="column or key of the split, with values such as train, validation and test "
        "(default: a column split with such values, or else folders and files with such names); "
        "empty: the concepts decide the split",
    )
    validation: list[str] = Field(
        [],
        description="source of records for validation; may be repeated; records for training with "
        "the same drawing or concept go to quarantine",
    )
    test: list[str] = Field(
        [],
        description="source of records for the test split, like --validation",
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the concepts held out for validation (0 to 1; default: 0.05, or 0 "
        "if the sources or --validation give records for validation)",
    )
    test_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the concepts held out for the test split, which training never "
        "reads, like --validation-share",
    )
    shard_records: Annotated[int, Field(ge=1)] = Field(
        2048,
        description="maximum size of one shard (records)",
    )
    max_svg_bytes: Annotated[int, Field(ge=64)] = Field(
        4_000_000,
        description="maximum size of a raw drawing (bytes); a larger one goes to quarantine",
    )
    max_leaked_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05,
        description="maximum share of the records whose SVG text contains their own caption "
        "(0 to 1); above it nothing is written",
    )
    max_records: Annotated[int, Field(ge=1, lt=1 << 63)] | None = Field(
        None,
        description="read only the first N records of each source (records; default: all)",
    )
    processes: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="processes that clean drawings (default: one for each available CPU)",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0,
        description="seed of the split, of the order of the records, and of random choices",
    )

    @model_validator(mode="after")
    def _check_shares(self) -> "PrepareConfig":
        held_out = get_share(self.validation_share) + get_share(self.test_share)
        if held_out >= 1:
            raise ValueError(
                f"the shares of validation and test are {held_out:g} in sum, which leaves nothing "
                "to train on: make --validation-share or --test-share smaller"
            )
        return self


def get_share(given: float | None) -> float:
    """Return the given share of the concepts of a held-out split, or the default."""
    return 0.05 if given is None else given


class DrawingsConfig(PrepareConfig):
    """Arguments of `caption`: the readers of `prepare`, for drawings without captions."""

    needs_captions: ClassVar[bool] = False

    out: str = ""
    split_column: str | None = ""  # the split of a drawing does not matter
