import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from app.jobs.cluster import ConnectedRay
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import IGNORE_INDEX, PromptEncoder
from data_pipeline.stream.ray_dataset import build_dataset, iterate_batches
from data_pipeline.stream.token_stream import Batch, Position, Stream
from data_pipeline.stream.worker_batches import (
    Dealer,
    read_validation_batches,
    split_among_workers,
    split_share,
)
from tests.corpus import save_tokenizer, svg_of, write_shards

# Ray Data warns of the defaults that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

T = TypeVar("T")

NUM_TRAIN, NUM_VALIDATION = 150, 37
LENGTHS = np.random.default_rng(0).integers(20, 160, NUM_TRAIN + NUM_VALIDATION).tolist()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def stream(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Two epochs of two shuffle blocks; the first has more sequences than one round."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=LENGTHS[:NUM_TRAIN], validation=LENGTHS[NUM_TRAIN:])
    config = DataConfig(
        shards=str(folder),
        system_prompt="Look:",
        sequence_tokens=232,
        shuffle_block_examples=120,
        seed=1,
    )
    return Stream(open_shards(config.shards), config, tokenizer, num_epochs=2)


def changed(stream: Stream, **config: object) -> Stream:
    return dataclasses.replace(stream, config=stream.config.model_copy(update=config))


def icons(stream: Stream, batch: Batch) -> list[list[int]]:
    """Return the icons in each sequence, read back from its tokens."""
    encoder = PromptEncoder(stream.tokenizer, stream.config.system_prompt)
    found = []
    for ids, positions, num_tokens in zip(
        batch["input_ids"], batch["position_ids"], batch["num_tokens"], strict=True
    ):
        starts = np.flatnonzero(positions[:num_tokens] == 0)
        texts = [encoder.decode(part.tolist()) for part in np.split(ids[:num_tokens], starts)[1:]]
        found.append([int(re.findall(r"icon (\d+)", text)[0]) for text in texts])
    return found


def flat(nested: Iterable[list[T]]) -> list[T]:
    return list(itertools.chain.from_iterable(nested))


def epochs_of(stream: Stream) -> list[list[int]]:
    per_block = [
        flat(icons(stream, stream.pack_shuffle_block(number)))
        for number in range(stream.num_shuffle_blocks)
    ]
    per_epoch = stream.num_shuffle_blocks_per_epoch
    return [
        flat(per_block[start : start + per_epoch])
        for start in range(0, stream.num_shuffle_blocks, per_epoch)
    ]


def concatenated(blocks: Iterable[Batch]) -> Batch:
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def assert_same(left: Batch, right: Batch) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype == np.int32
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_every_epoch_has_every_example_once_and_its_own_order(stream: Stream) -> None:
    first, second = epochs_of(stream)
    assert sorted(first) == sorted(second) == list(range(NUM_TRAIN))
    assert first != second
    # Neighbours in the shards are not neighbours in training. Sequences with long examples are
    # not first.
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(first)) < NUM_TRAIN // 10
    longest = [
        max(LENGTHS[icon] for icon in members)
        for members in icons(stream, stream.pack_shuffle_block(0))
    ]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3
    company = [
        icons(stream, stream.pack_shuffle_block(number))
        for number in range(stream.num_shuffle_blocks)
    ]
    first_sets = {frozenset(members) for members in flat(company[:2])}
    assert first_sets != {frozenset(members) for members in flat(company[2:])}


def test_shuffle_blocks_take_turns_at_random(stream: Stream) -> None:
    many = dataclasses.replace(changed(stream, shuffle_block_examples=10), num_epochs=3)
    turns = [[icon // 10 for icon in epoch] for epoch in epochs_of(many)]
    orders = [[block for block, _ in itertools.groupby(turn)] for turn in turns]
    assert [sorted(order) for order in orders] == [list(range(15))] * 3
    assert len({tuple(order) for order in [*orders, range(15)]}) == 4


def test_a_shuffle_block_depends_on_nothing_but_its_number_and_the_seed(stream: Stream) -> None:
    before = stream.pack_shuffle_block(2)
    stream.pack_shuffle_block(0)
    assert_same(stream.pack_shuffle_block(2), before)
    assert_same(dataclasses.replace(stream, num_epochs=9).pack_shuffle_block(2), before)
    assert epochs_of(changed(stream, seed=2)) != epochs_of(stream)


def test_a_sequence_is_its_examples_one_after_another(stream: Stream) -> None:
    encoder = PromptEncoder(stream.tokenizer, stream.config.system_prompt)
    block = stream.pack_shuffle_block(1)
    assert block["num_examples"].max() > 1
    for sequence, members in enumerate(icons(stream, block)):
        examples = [encoder.encode(svg_of(LENGTHS[i]), f"icon {i}") for i in members]
        num_tokens = sum(len(example.input_ids) for example in examples)
        padding = stream.config.sequence_tokens - num_tokens
        expected = {
            "input_ids": [
                *(example.input_ids for example in examples),
                np.full(padding, encoder.pad_id),
            ],
            "targets": [*(example.targets for example in examples), np.full(padding, IGNORE_INDEX)],
            "position_ids": [
                *(np.arange(len(example.input_ids)) for example in examples),
                np.zeros(padding),
            ],
        }
        for name, parts in expected.items():
            np.testing.assert_array_equal(block[name][sequence], np.concatenate(parts))
        assert block["num_tokens"][sequence] == num_tokens
        assert block["num_examples"][sequence] == len(members)


def test_max_train_records_keeps_the_first_examples(stream: Stream) -> None:
    few = changed(stream, max_train_records=130)
    assert (few.num_train_examples, few.num_shuffle_blocks_per_epoch, few.num_shuffle_blocks) == (
        130,
        2,
        4,
    )
    assert [sorted(epoch) for epoch in epochs_of(few)] == [list(range(130))] * 2
    assert changed(stream, max_train_records=10**6).num_train_examples == NUM_TRAIN


def test_examples_longer_than_a_sequence_are_dropped_and_counted(
    tokenizer: str, tmp_path: Path
) -> None:
    write_shards(tmp_path, train=[30, 500, 30, 600, 700, 30, 30, 800], validation=[500, 30])
    config = DataConfig(
        shards=str(tmp_path), system_prompt="Look:", sequence_tokens=200, shuffle_block_examples=2
    )
    stream = Stream(open_shards(config.shards), config, tokenizer, num_epochs=3)
    assert [sorted(epoch) for epoch in epochs_of(stream)] == [[0, 2, 5, 6]] * 3
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    assert [int(block["num_dropped"].sum()) for block in blocks] == [1] * 12

    # a block whose examples are all dropped must still be counted
    alone = changed(stream, shuffle_block_examples=1)
    blocks = [
        alone.pack_shuffle_block(number) for number in range(alone.num_shuffle_blocks_per_epoch)
    ]
    assert sum(int(block["num_dropped"].sum()) for block in blocks) == 4
    assert [block["num_tokens"].sum() > 0 for block in blocks].count(True) == 4
    assert len(blocks) == 8

    (batch,) = read_validation_batches(stream, micro_batch_size=4, rank=0, num_workers=1)
    assert (int(batch["num_dropped"].sum()), int(batch["num_examples"].sum())) == (1, 1)


def test_examples_longer_than_a_sequence_are_truncated_and_counted_on_request(
    tokenizer: str, tmp_path: Path
) -> None:
    """The drawing loses its end; template, caption and targets stay whole."""
    write_shards(tmp_path, train=[30, 500, 30, 600], validation=[500, 30])
    config = DataConfig(
        shards=str(tmp_path),
        system_prompt="Look:",
        sequence_tokens=200,
        shuffle_block_examples=2,
        too_long="truncate",
    )
    stream = Stream(open_shards(config.shards), config, tokenizer, num_epochs=2)
    assert [sorted(epoch) for epoch in epochs_of(stream)] == [[0, 1, 2, 3]] * 2
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    assert [int(block["num_truncated"].sum()) for block in blocks] == [1] * 4
    assert [int(block["num_dropped"].sum()) for block in blocks] == [0] * 4

    encoder = PromptEncoder(tokenizer, "Look:")
    whole = encoder.encode(svg_of(500), "icon 1")
    num_cut = len(whole.input_ids) - 200
    cut = encoder.encode(svg_of(500)[:-num_cut], "icon 1")
    alone = (
        (block, sequence)
        for block in blocks
        for sequence, found in enumerate(icons(stream, block))
        if found == [1]
    )
    block, sequence = next(alone)
    np.testing.assert_array_equal(block["input_ids"][sequence], cut.input_ids)
    np.testing.assert_array_equal(block["targets"][sequence], cut.targets)

    # An example whose caption alone is longer than a sequence is dropped, not truncated.
    short = changed(stream, sequence_tokens=20)
    block = short.pack_shuffle_block(0)
    assert (int(block["num_truncated"].sum()), int(block["num_dropped"].sum())) == (0, 2)
    (batch,) = read_validation_batches(stream, micro_batch_size=2, rank=0, num_workers=1)
    assert (int(batch["num_truncated"].sum()), int(batch["num_examples"].sum())) == (1, 2)


def split_naively(batch: Batch, micro_batch_size: int, num_workers: int) -> list[list[list[int]]]:
    """Return the sequences of each [worker][micro-batch]; -1 is a filler sequence."""
    num_sequences = len(batch["index"])
    num_steps = -(-num_sequences // (micro_batch_size * num_workers))
    filler = itertools.repeat(-1, micro_batch_size * num_workers)
    everything = iter([*range(num_sequences), *filler])

    parts: list[list[list[int]]] = [[] for _ in range(num_workers)]
    for _ in range(num_steps):
        for part in parts:
            part.append([next(everything) for _ in range(micro_batch_size)])
    return parts


@pytest.mark.parametrize(
    ("micro_batch_size", "num_workers"),
    [(1, 1), (1, 2), (3, 1), (2, 3), (5, 4), (1, 200), (300, 2)],
)
def test_every_sequence_goes_to_one_worker_and_filler_completes_the_end(
    stream: Stream, micro_batch_size: int, num_workers: int
) -> None:
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    sequences = concatenated(blocks)
    for rank, part in enumerate(split_naively(sequences, micro_batch_size, num_workers)):
        found = list(
            split_among_workers(
                blocks, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
            )
        )
        assert len(found) == len(part)
        for k, ((batch, position), wanted) in enumerate(zip(found, part, strict=True)):
            real = [sequence for sequence in wanted if sequence >= 0]
            assert_same(
                {name: column[: len(real)] for name, column in batch.items()},
                {name: column[real] for name, column in sequences.items()},
            )
            for name, value in {
                "targets": IGNORE_INDEX,
                "num_tokens": 0,
                "num_examples": 0,
                "num_dropped": 0,
                "num_truncated": 0,
            }.items():
                assert (batch[name][len(real) :] == value).all()
                assert len(batch[name]) == micro_batch_size
            consumed = min((k + 1) * micro_batch_size * num_workers, len(sequences["index"]))
            assert num_sequences_before(position, blocks) == consumed


def num_sequences_before(position: Position, blocks: Sequence[Batch]) -> int:
    if position.index:
        assert (
            len(blocks[position.shuffle_block]["index"])
            == position.num_block_sequences
            > position.index
        )
    return sum(len(block["index"]) for block in blocks[: position.shuffle_block]) + position.index


def test_a_shuffle_block_that_got_lost_is_noticed(stream: Stream) -> None:
    blocks = [stream.pack_shuffle_block(0), stream.pack_shuffle_block(2)]
    with pytest.raises(AssertionError):
        list(split_among_workers(blocks, micro_batch_size=1, rank=0, num_workers=1))


@pytest.mark.parametrize("num_workers", [1, 8, 64, 512])
@pytest.mark.parametrize("micro_batch_size", [1, 6])
def test_a_worker_is_sent_its_own_sequences_only(
    stream: Stream, micro_batch_size: int, num_workers: int
) -> None:
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    needed = sum(column.nbytes for column in concatenated(blocks).values())
    dealer = Dealer(micro_batch_size=micro_batch_size, num_workers=num_workers, start=Position())
    rounds = [shares for block in blocks for shares in dealer.add(block)] + dealer.finish()

    # filler completes the last micro-batches of all workers
    num_sequences = sum(len(block["index"]) for block in blocks)
    group = micro_batch_size * num_workers
    with_filler = needed * -(-num_sequences // group) * group / num_sequences
    for rank in range(num_workers):
        sent = sum(column.nbytes for shares in rounds for column in shares[rank].values())
        assert sent <= 1.02 * with_filler / num_workers

    # the shares of all workers hold every sequence once
    places = [
        (int(batch["shuffle_block"][i]), int(batch["index"][i]))
        for shares in rounds
        for share in shares
        for batch, _ in split_share(share)
        for i in np.flatnonzero(batch["num_tokens"])
    ]
    everything = [(number, i) for number, b in enumerate(blocks) for i in range(len(b["index"]))]
    assert sorted(places) == everything


@pytest.mark.parametrize("start", [Position(1), Position(0, 3, 9)])
def test_sequences_that_do_not_follow_the_start_are_noticed(
    stream: Stream, start: Position
) -> None:
    dealer = Dealer(micro_batch_size=1, num_workers=1, start=start)
    with pytest.raises(AssertionError):
        dealer.add(stream.pack_shuffle_block(0))


def test_progress_grows_from_0_to_1_with_the_position(stream: Stream) -> None:
    blocks = (stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks))
    positions = [
        Position(),
        *(p for _, p in split_among_workers(blocks, micro_batch_size=1, rank=0, num_workers=1)),
    ]
    shares = [stream.compute_progress(position) for position in positions]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert positions == sorted(positions)
    assert positions[-1] == Position(shuffle_block=4)
    num_done = 0
    for number in range(stream.num_shuffle_blocks):  # blocks of 120 and of 30 examples
        assert stream.compute_progress(Position(number)) == num_done / (2 * NUM_TRAIN)
        num_done += int(stream.pack_shuffle_block(number)["num_examples"].sum())
    for position in positions[:: len(positions) // 7]:
        assert Position(**json.loads(json.dumps(dataclasses.asdict(position)))) == position


@pytest.mark.parametrize(("micro_batch_size", "num_workers"), [(1, 1), (2, 2), (3, 3), (1, 50)])
def test_workers_share_the_validation_split_in_equal_parts(
    stream: Stream, micro_batch_size: int, num_workers: int
) -> None:
    stream = changed(stream, max_validation_records=33, shuffle_block_examples=10)
    parts = [
        read_validation_batches(
            stream, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
        )
        for rank in range(num_workers)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {len(batch["index"]) for part in parts for batch in part} == {micro_batch_size}
    seen = flat(flat(icons(stream, batch)) for part in parts for batch in part)
    assert sorted(seen) == list(range(33))


def test_an_empty_split_is_refused(stream: Stream, tmp_path: Path) -> None:
    write_shards(tmp_path, train=[30], validation=[])
    other = changed(stream, shards=str(tmp_path))
    stream = dataclasses.replace(other, shards=open_shards(str(tmp_path)))
    assert stream.num_shuffle_blocks == 2
    with pytest.raises(
        DataError, match=r"the validation split of .* is empty: .*--validation-share"
    ):
        read_validation_batches(stream, micro_batch_size=1, rank=0, num_workers=1)


# The tests below use Ray Data.


def consume(
    stream: Stream,
    start: Position,
    *,
    micro_batch_size: int,
    num_workers: int,
    steps: int | None = None,
) -> list[list[tuple[Batch, Position]]]:
    """Return the first `steps` micro-batches of each worker; None: all of them."""
    dataset = build_dataset(
        stream, start=start, micro_batch_size=micro_batch_size, num_workers=num_workers
    )
    shards = dataset.streaming_split(num_workers, equal=True)

    def read(rank: int) -> list[tuple[Batch, Position]]:
        own = iterate_batches(
            shards[rank],
            micro_batch_size=micro_batch_size,
            num_workers=num_workers,
            prefetch=2,
        )
        return list(itertools.islice(own, steps))

    with ThreadPoolExecutor(num_workers) as threads:
        return list(threads.map(read, range(num_workers)))


@pytest.mark.parametrize(("micro_batch_size", "num_workers"), [(4, 1), (1, 2), (2, 3)])
def test_ray_data_gives_workers_the_same_sequences_as_plain_python(
    ray_local: ConnectedRay, stream: Stream, micro_batch_size: int, num_workers: int
) -> None:
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    assert len(blocks[0]["index"]) > 64  # more than one round
    parts = consume(stream, Position(), micro_batch_size=micro_batch_size, num_workers=num_workers)
    for rank, part in enumerate(parts):
        expected = split_among_workers(
            blocks, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
        )
        for (batch, position), (wanted, wanted_position) in zip(part, expected, strict=True):
            assert_same(batch, wanted)
            assert position == wanted_position
            assert all(column.flags.writeable for column in batch.values())


def test_two_workers_stop_and_three_go_on(ray_local: ConnectedRay, stream: Stream) -> None:
    before = consume(stream, Position(), micro_batch_size=1, num_workers=2, steps=34)
    (position,) = {part[-1][1] for part in before}
    assert position.index > 64
    after = consume(stream, position, micro_batch_size=2, num_workers=3)
    assert {part[-1][1] for part in after} == {Position(shuffle_block=stream.num_shuffle_blocks)}
    seen = flat(flat(icons(stream, batch)) for part in [*before, *after] for batch, _ in part)
    assert sorted(seen) == sorted([*range(NUM_TRAIN)] * 2)
    assert consume(
        stream, Position(shuffle_block=stream.num_shuffle_blocks), micro_batch_size=2, num_workers=2
    ) == [[], []]


def test_resuming_reads_nothing_of_the_shuffle_blocks_before(
    ray_local: ConnectedRay, tokenizer: str, tmp_path: Path
) -> None:
    """Only the shard of the last block is readable; a late position reads no other."""
    write_shards(tmp_path, train=[30 + i % 50 for i in range(6 * 64)])
    config = DataConfig(
        shards=str(tmp_path), system_prompt="Look:", sequence_tokens=232, shuffle_block_examples=64
    )
    stream = Stream(open_shards(config.shards), config, tokenizer, num_epochs=1)
    last = stream.pack_shuffle_block(5)
    (shard,) = {i // 64 for i in flat(icons(stream, last))}
    for file in tmp_path.glob("train-*.parquet"):
        if file.name != f"train-{shard:05d}.parquet":
            content = file.read_bytes()
            footer = int.from_bytes(content[-8:-4], "little") + 8
            file.write_bytes(b"PAR1" + bytes(len(content) - footer - 4) + content[-footer:])
    with pytest.raises(DataError, match="cannot be read"):
        stream.pack_shuffle_block(4)
    start = Position(shuffle_block=5, index=3, num_block_sequences=len(last["index"]))
    (part,) = consume(stream, start, micro_batch_size=1, num_workers=1)
    assert [int(batch["index"][0]) for batch, _ in part] == list(range(3, len(last["index"])))
    np.testing.assert_array_equal(
        concatenated(batch for batch, _ in part)["input_ids"], last["input_ids"][3:]
    )


def test_a_shard_that_a_node_cannot_read_is_named_by_its_error(
    ray_local: ConnectedRay, tokenizer: str, tmp_path: Path
) -> None:
    write_shards(tmp_path, train=[30] * 4)
    config = DataConfig(shards=str(tmp_path), system_prompt="Look:", sequence_tokens=232)
    stream = Stream(open_shards(config.shards), config, tokenizer, num_epochs=1)
    shard = tmp_path / "train-00000.parquet"
    shard.unlink()
    with pytest.raises(Exception, match=f"DataError: shard {shard} cannot be read"):
        consume(stream, Position(), micro_batch_size=1, num_workers=1)
