"""Peak memory of `prepare` in a new process, for three sizes, and its time without cleaning.

`python -m benchmarks.scale_prepare NUM_RECORDS` prints the peak for one size (bytes).
"""

import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.clean import Batch
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.sources.record import Record

Clean = Callable[[list[Record]], Batch]
SIZES = (5_000, 20_000, 80_000)  # records of about 2 KB; the largest corpus has 170 MB
_DRIVER_RECORDS = 40_000
_SHARD_RECORDS = 1024
_DRAWING_BYTES = 2000


def measure_prepare() -> dict[str, float]:
    """Return the peak resident memory for each size, and the growth from the first to the last.

    A peak is the median of three processes, whose allocators differ by 10 %.
    """
    peaks = {size: median(_measure_in_new_process(size) for _ in range(3)) for size in SIZES}
    growth = peaks[SIZES[-1]] / peaks[SIZES[0]] - 1
    figures = {f"prepare_rss_mib_{size}": peak / 2**20 for size, peak in peaks.items()}
    return {**figures, "prepare_rss_growth": growth, "driver_ms_per_record": _measure_driver()}


def _measure_in_new_process(num_records: int) -> int:
    """Run this module, which imports no torch: its memory would hide the growth."""
    command = [sys.executable, "-m", "benchmarks.scale_prepare", str(num_records)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _measure_peak(num_records: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "raw.parquet"
        _write_corpus(source, num_records)
        config = PrepareConfig(
            out=f"{folder}/shards", shard_records=_SHARD_RECORDS, validation_share=0.1, processes=1
        )
        report = prepare_dataset([str(source)], config, progress=False)
        assert report.num_written == num_records, report
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure_driver() -> float:
    """Return the CPU milliseconds a record of the process that sends records to be cleaned.

    The batches were cleaned before. Pickling stands for the transfer; Ray itself is not included.
    """
    cleaned: list[bytes] = []

    def clean_and_keep(clean: Clean, batches: Iterable[list[Record]]) -> Iterator[Batch]:
        for batch in batches:
            cleaned.append(pickle.dumps(clean(batch)))
            yield pickle.loads(cleaned[-1])

    def replay(_: Clean, batches: Iterable[list[Record]]) -> Iterator[Batch]:
        for batch, result in zip(batches, cleaned, strict=True):
            pickle.dumps(batch)
            yield pickle.loads(result)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "raw.parquet"
        _write_corpus(source, _DRIVER_RECORDS)
        config = PrepareConfig(out=f"{folder}/shards")
        for map_batches in (clean_and_keep, replay):
            began = time.process_time()
            prepare_dataset([str(source)], config, progress=False, map_batches=map_batches)
    return (time.process_time() - began) * 1000 / _DRIVER_RECORDS


def _write_corpus(path: Path, num_records: int) -> None:
    """Write drawings that are different texts, in row groups of one batch."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "svg", "caption")])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in _make_batches(num_records):
            writer.write_table(pa.table([*zip(*batch, strict=True)], schema=schema))


def _make_batches(num_records: int) -> Iterator[list[tuple[str, str, str]]]:
    words = " ".join(f"{n * 7919 % 10_007}" for n in range(_DRAWING_BYTES // 5))
    for start in range(0, num_records, 1000):
        numbers = range(start, min(start + 1000, num_records))
        yield [
            (
                f"{n}",
                f'<svg viewBox="0 0 256 256"><text x="1" y="9">{n} {words}</text></svg>',
                f"caption of icon {n}",
            )
            for n in numbers
        ]


if __name__ == "__main__":
    print(_measure_peak(int(sys.argv[1])))
