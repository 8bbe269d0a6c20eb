"""The token stream: every epoch as shuffle blocks of packed sequences.

One shuffle block is a pure function of its number: its examples are shuffled, encoded and packed
together. A position in the stream is therefore a few integers, and packed sequence n is the same
for any number of workers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import ShardRecord, Shards
from data_pipeline.stream.cache import encode_cached
from data_pipeline.stream.encode import IGNORE_INDEX, Example, PromptEncoder
from data_pipeline.stream.pack import PackedSequence, pack_examples

Column = npt.NDArray[np.int32]
Batch = dict[str, Column]
"""Columns of packed sequences.

- `input_ids`, `position_ids`, `targets` [sequences, sequence_tokens]: padded with the pad id, 0 and
  IGNORE_INDEX.
- `shuffle_block`, `index`, `num_block_sequences` [sequences]: the place of a sequence in the
  stream, see Position.
- `num_examples`, `num_tokens` [sequences]: the content of a sequence, without padding.
- `num_dropped`, `num_truncated` [sequences]: numbers of examples of the block that were longer
  than a sequence. The first sequence of a block carries both counts, the others carry 0.
- `example_numbers` [sequences, n], only with `data.ledger`: the numbers of the sequence's examples
  in their split, padded with -1.
"""

_Numbered = tuple[int, Example]
"""The number of an example in its split, and the example."""


@dataclass(frozen=True, order=True)
class Position:
    """Place of the next packed sequence. Later positions compare greater."""

    shuffle_block: int = 0
    """Number of finished shuffle blocks, counted through all epochs."""
    index: int = 0
    """Number of consumed sequences of the next shuffle block."""
    num_block_sequences: int = 1
    """Number of sequences in that shuffle block; not used while index is 0."""


@dataclass(frozen=True)
class Stream:
    """All epochs of the train split, and the validation split, as blocks of packed sequences."""

    shards: Shards
    config: DataConfig
    tokenizer: str
    """Folder or hub name, as PromptEncoder takes it."""
    num_epochs: int

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of this stream; one for each process."""
        return _encoder(self.tokenizer, self.config.system_prompt)

    @property
    def num_train_examples(self) -> int:
        """Number of examples in one epoch."""
        return self._num_examples("train", self.config.max_train_records)

    @property
    def num_shuffle_blocks_per_epoch(self) -> int:
        """Number of shuffle blocks in one epoch."""
        return math.ceil(self.num_train_examples / self.config.shuffle_block_examples)

    @property
    def num_shuffle_blocks(self) -> int:
        """Number of shuffle blocks in all epochs. The stream ends there."""
        return self.num_epochs * self.num_shuffle_blocks_per_epoch

    def compute_progress(self, position: Position) -> float:
        """Return the finished share of all epochs, from 0 to 1, by numbers of examples."""
        num_blocks, size = self.num_shuffle_blocks_per_epoch, self.config.shuffle_block_examples
        epoch, turn = divmod(position.shuffle_block, num_blocks)

        # only the last block of the shards may be short
        num_missing = num_blocks * size - self.num_train_examples
        order = _order_blocks(self.config.seed, epoch, num_blocks)
        sizes = np.where(order == num_blocks - 1, size - num_missing, size)

        done = sizes[:turn].sum() + sizes[turn] * position.index / position.num_block_sequences
        return float((epoch + done / self.num_train_examples) / self.num_epochs)

    def pack_shuffle_block(self, number: int) -> Batch:
        """Return the packed sequences of block `number`, 0 ≤ number < num_shuffle_blocks.

        This is a pure function of shards, config and number.
        """
        num_blocks, seed = self.num_shuffle_blocks_per_epoch, self.config.seed
        epoch, turn = divmod(number, num_blocks)
        block = int(_order_blocks(seed, epoch, num_blocks)[turn])  # of the shards

        # shuffle inside the block; + 1 because numpy seeds (seed, epoch, 0) like (seed, epoch)
        example_order = np.random.default_rng((seed, epoch, block + 1))
        examples = self._encode_block("train", block, self.num_train_examples)
        return self._pack(examples, number, example_order)

    def pack_remaining_shuffle_block(self, start: Position, number: int) -> Batch:
        """Return the sequences of block `number` ≥ start.shuffle_block from `start` on."""
        block = self.pack_shuffle_block(number)
        if number == start.shuffle_block:
            return slice_batch(block, slice(start.index, None))
        return block

    def read_record_ids(self, example_numbers: Sequence[int]) -> list[str]:
        """Return the record ids of the train examples with these numbers."""
        ids: dict[int, str] = {}
        block_size = self.config.shuffle_block_examples
        for block in sorted({number // block_size for number in example_numbers}):
            first, records = self._read_block("train", block, self.num_train_examples)
            ids |= {first + i: record.id for i, record in enumerate(records)}
        return [ids[number] for number in example_numbers]

    def iterate_validation_blocks(self) -> Iterator[Batch]:
        """Yield the packed sequences of the validation split, in the order of the shards."""
        num_examples = self._num_examples("validation", self.config.max_validation_records)
        for block in range(math.ceil(num_examples / self.config.shuffle_block_examples)):
            yield self._pack(self._encode_block("validation", block, num_examples), block)

    def require_fitting_examples(self, split: str) -> None:
        """Raise DataError if no example of a split fits into a sequence.

        Read at most _MAX_CHECKED examples: `prepare` has shuffled them.
        """
        limit = self.config.max_train_records
        if split == "validation":
            limit = self.config.max_validation_records
        num_examples = self._num_examples(split, limit)
        lengths: list[int] = []

        for block in range(math.ceil(num_examples / self.config.shuffle_block_examples)):
            examples = self._encode_block(split, block, num_examples)
            if self._fit(self.encoder, examples)[0]:
                return
            lengths += [len(example.input_ids) for _, example in examples]
            if len(lengths) >= _MAX_CHECKED:
                break

        remedy = f"raise it to at least {min(lengths)}, or set data.too_long=truncate"
        if self.config.too_long == "truncate":
            remedy = "prompt and caption alone are longer; raise it"
        raise DataError(
            f"none of {len(lengths)} examples of the {split} split fits into "
            f"data.sequence_tokens={self.config.sequence_tokens}: {remedy}"
        )

    def _num_examples(self, split: str, limit: int | None) -> int:
        num_examples = self.shards.num_records(split)
        if not num_examples:
            share = "test" if split == "test" else "validation"
            raise DataError(
                f"the {split} split of {self.shards.folder!r} is empty: "
                f"prepare it from more records, or with another --{share}-share"
            )
        return num_examples if limit is None else min(num_examples, limit)

    def _read_block(
        self, split: str, block: int, num_examples: int
    ) -> tuple[int, list[ShardRecord]]:
        """Return the number of the block's first record in the split, and its records."""
        start = block * self.config.shuffle_block_examples
        stop = min(start + self.config.shuffle_block_examples, num_examples)
        return start, self.shards.read(split, start, stop)

    def _encode_block(self, split: str, block: int, num_examples: int) -> list[_Numbered]:
        first, records = self._read_block(split, block, num_examples)
        pairs = [(record.svg, record.caption) for record in records]
        cache_dir = self.config.cache_dir
        if cache_dir is None:
            examples = self.encoder.encode_batch(pairs)
        else:
            examples = encode_cached(self.encoder, pairs, cache_dir)
        return [*enumerate(examples, first)]

    def _pack(
        self, examples: Sequence[_Numbered], number: int, order: np.random.Generator | None = None
    ) -> Batch:
        """Pack the examples of block `number`; `order` shuffles examples and sequences."""
        encoder = self.encoder

        # shuffle, fit, pack
        if order is not None:
            examples = [examples[i] for i in order.permutation(len(examples))]
        fitting, num_truncated = self._fit(encoder, examples)
        packed = pack_examples([example for _, example in fitting], self.config.sequence_tokens)
        packed = packed or [_EMPTY_SEQUENCE]  # it carries the counts of the block
        if order is not None:
            order.shuffle(packed)  # pack_examples puts sequences with long examples first

        columns = self._make_columns(packed, number, encoder)
        columns["num_dropped"][0] = len(examples) - len(fitting)
        columns["num_truncated"][0] = num_truncated
        if self.config.ledger:
            max_examples = max(1, self.config.sequence_tokens // encoder.min_tokens)
            numbers = [np.array([fitting[i][0] for i in s.members], np.int32) for s in packed]
            columns["example_numbers"] = _pad(numbers, max_examples, -1)
        return columns

    def _make_columns(
        self, packed: Sequence[PackedSequence], number: int, encoder: PromptEncoder
    ) -> Batch:
        """Return the columns of block `number`, with num_dropped and num_truncated set to 0."""
        length, num_sequences = self.config.sequence_tokens, len(packed)
        return {
            "input_ids": _pad([s.input_ids for s in packed], length, encoder.pad_id),
            "position_ids": _pad([s.position_ids for s in packed], length, 0),
            "targets": _pad([s.targets for s in packed], length, IGNORE_INDEX),
            "shuffle_block": np.full(num_sequences, number, np.int32),
            "index": np.arange(num_sequences, dtype=np.int32),
            "num_block_sequences": np.full(num_sequences, num_sequences, np.int32),
            "num_examples": np.array([len(s.members) for s in packed], np.int32),
            "num_tokens": np.array([len(s.input_ids) for s in packed], np.int32),
            "num_dropped": np.zeros(num_sequences, np.int32),
            "num_truncated": np.zeros(num_sequences, np.int32),
        }

    def _fit(
        self, encoder: PromptEncoder, examples: Sequence[_Numbered]
    ) -> tuple[list[_Numbered], int]:
        """Return the examples that fit into a sequence, and the number of truncated ones."""
        limit = self.config.sequence_tokens
        fitting: list[_Numbered] = []
        num_truncated = 0

        for number, example in examples:
            if len(example.input_ids) <= limit:
                fitting.append((number, example))
                continue
            if self.config.too_long == "drop":
                continue

            shorter = encoder.truncate(example, limit)
            if shorter is not None:
                fitting.append((number, shorter))
                num_truncated += 1

        return fitting, num_truncated


@lru_cache(maxsize=2)
def _order_blocks(seed: int, epoch: int, num_blocks: int) -> npt.NDArray[np.int64]:
    """Return the blocks of the shards in the order in which an epoch reads them."""
    return np.random.default_rng((seed, epoch)).permutation(num_blocks)


_MAX_CHECKED = 16_384  # a few seconds of tokenising
_NO_TOKENS = np.zeros(0, np.int32)
_EMPTY_SEQUENCE = PackedSequence(_NO_TOKENS, _NO_TOKENS, _NO_TOKENS, members=())


def slice_batch(batch: Batch, part: slice) -> Batch:
    """Return the sequences of a batch that the slice selects."""
    return {name: column[part] for name, column in batch.items()}


def _pad(columns: Sequence[Column], length: int, fill: int) -> Column:
    padded = np.full((len(columns), length), fill, np.int32)
    for i, column in enumerate(columns):
        padded[i, : len(column)] = column
    return padded


_encoder = cache(PromptEncoder)
