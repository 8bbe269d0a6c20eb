"""Every example is trained on once per epoch, after any kill and with any number of workers."""

import dataclasses
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.shards import open_shards
from data_pipeline.stream.ledger import Ledger
from data_pipeline.stream.token_stream import Batch, Position, Stream
from data_pipeline.stream.worker_batches import split_among_workers
from tests.corpus import save_tokenizer, write_shards

NUM_EXAMPLES, NUM_EPOCHS = 40, 2


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Two epochs of three shuffle blocks, some 30 sequences in all."""
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder, train=np.random.default_rng(0).integers(20, 100, NUM_EXAMPLES).tolist())
    config = DataConfig(
        shards=str(folder),
        system_prompt="Look:",
        sequence_tokens=232,
        shuffle_block_examples=15,
        ledger=True,
    )
    return Stream(
        open_shards(config.shards),
        config,
        save_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        NUM_EPOCHS,
    )


Steps = list[list[tuple[Batch, Position]]]


def split_into_steps(blocks: Iterable[Batch], num_workers: int, micro_batch_size: int = 1) -> Steps:
    """Return [step][worker]: the micro-batch, and the position after the step."""
    blocks = list(blocks)
    parts = [
        split_among_workers(
            blocks, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
        )
        for rank in range(num_workers)
    ]
    return [list(step) for step in zip(*parts, strict=True)]


def remaining(stream: Stream, start: Position) -> Iterator[Batch]:
    return (
        stream.pack_remaining_shuffle_block(start, number)
        for number in range(start.shuffle_block, stream.num_shuffle_blocks)
    )


def trained_on(stream: Stream, steps: Steps) -> list[tuple[int, int]]:
    """Return (epoch, example number) of every example that is trained on."""
    return [
        (int(block) // stream.num_shuffle_blocks_per_epoch, int(number))
        for step in steps
        for batch, _ in step
        for block, numbers in zip(batch["shuffle_block"], batch["example_numbers"], strict=True)
        for number in numbers[numbers >= 0]
    ]


EVERYTHING = [(epoch, number) for epoch in range(NUM_EPOCHS) for number in range(NUM_EXAMPLES)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_from_every_checkpoint_another_number_of_workers_trains_on_exactly_the_rest(
    stream: Stream, before: int, after: int, micro_batch_size: int
) -> None:
    steps = split_into_steps(remaining(stream, Position()), before, micro_batch_size)
    for num_steps in range(len(steps) + 1):
        done = steps[:num_steps]
        position = done[-1][0][1] if done else Position()
        rest = split_into_steps(remaining(stream, position), after, micro_batch_size)
        assert sorted(trained_on(stream, done) + trained_on(stream, rest)) == EVERYTHING


class Job:
    """A training job without a model: it only writes its ledgers and keeps its checkpoint."""

    def __init__(self, stream: Stream, folder: Path, save_every: int) -> None:
        self.stream, self.folder, self.save_every = stream, str(folder), save_every
        self.saved = 0, Position()

    def run(
        self, num_workers: int, kill_after: int | None = None, lose_the_checkpoint: bool = False
    ) -> None:
        """Run from the last checkpoint until the end or the kill."""
        start, position = self.saved
        ledgers = [Ledger(self.folder, self.stream, rank=rank) for rank in range(num_workers)]
        ledgers[0].delete_entries_after(start)
        steps = split_into_steps(remaining(self.stream, position), num_workers)
        for step, micro_batches in enumerate(steps, start + 1):
            for ledger, (batch, _) in zip(ledgers, micro_batches, strict=True):
                ledger.add(step, [batch])
            if step % self.save_every == 0 or step == start + len(steps):
                for ledger in ledgers:
                    ledger.write(step)
                if not (lose_the_checkpoint and step == kill_after):
                    self.saved = step, micro_batches[0][1]
            if step == kill_after:
                return

    def entries(self) -> list[tuple[int, int, int, str]]:
        table = pq.read_table(self.folder)
        assert table.column_names == ["epoch", "step", "rank", "record_id"]
        return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(("first", "second", "third"), [(1, 2, 3), (3, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize("kill_after", [6, 8])
def test_after_kills_the_files_name_every_record_once_per_epoch(
    stream: Stream, tmp_path: Path, first: int, second: int, third: int, kill_after: int
) -> None:
    """Kill the job between checkpoints, and after the files of a checkpoint that was not saved."""
    job = Job(stream, tmp_path, save_every=4)
    job.run(first, kill_after=kill_after, lose_the_checkpoint=True)
    assert job.saved[0] == 4
    (tmp_path / ".00000008-0.parquet").write_bytes(b"PAR1 of a writer that was killed")
    job.run(second, kill_after=7)
    job.run(third)
    entries = job.entries()
    assert sorted((epoch, int(record_id)) for epoch, _, _, record_id in entries) == EVERYTHING
    assert {rank for _, step, rank, _ in entries if step <= 4} == set(range(first))
    assert {rank for _, step, rank, _ in entries if step > 4} == set(range(third))
    assert {step for _, step, _, _ in entries} == set(range(1, job.saved[0] + 1))
    assert not list(tmp_path.glob(".*"))


def test_entries_name_worker_record_and_step(stream: Stream, tmp_path: Path) -> None:
    job = Job(stream, tmp_path, save_every=5)
    job.run(2)
    wanted = {
        (epoch, step, rank, str(number))
        for step, micro_batches in enumerate(split_into_steps(remaining(stream, Position()), 2), 1)
        for rank, pair in enumerate(micro_batches)
        for epoch, number in trained_on(stream, [[pair]])
    }
    entries = job.entries()
    assert len(entries) == len(wanted) == NUM_EPOCHS * NUM_EXAMPLES
    assert set(entries) == wanted


def test_a_job_of_the_same_name_that_starts_again_starts_a_new_ledger(
    stream: Stream, tmp_path: Path
) -> None:
    for _ in range(2):
        Job(stream, tmp_path, save_every=3).run(2)
        assert len(Job(stream, tmp_path, save_every=3).entries()) == NUM_EPOCHS * NUM_EXAMPLES


def test_without_a_ledger_sequences_are_the_same_but_for_their_example_numbers(
    stream: Stream,
) -> None:
    plain = dataclasses.replace(stream, config=stream.config.model_copy(update={"ledger": False}))
    for number in range(stream.num_shuffle_blocks):
        without, with_numbers = plain.pack_shuffle_block(number), stream.pack_shuffle_block(number)
        assert with_numbers.keys() - without.keys() == {"example_numbers"}
        for name, column in without.items():
            np.testing.assert_array_equal(column, with_numbers[name])


def test_the_digest_of_all_workers_is_that_of_sha256sum(stream: Stream, tmp_path: Path) -> None:
    job = Job(stream, tmp_path, save_every=2)
    ledger = Ledger(job.folder, stream, rank=0)
    empty = ledger.compute_digest()
    job.run(2, kill_after=4)
    first = ledger.compute_digest()
    job.run(3)
    (Path(job.folder) / ".00000099-0.parquet").touch()  # a writer was killed
    done = subprocess.run(
        "sha256sum *.parquet | sha256sum",
        shell=True,
        cwd=job.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ledger.compute_digest() == done.stdout.split()[0]
    assert len({empty, first, ledger.compute_digest()}) == 3
