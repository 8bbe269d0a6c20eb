"""`prepare` under a limit on its address space, with corpora of several sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

RECORD_BYTES = 1 << 16
LIMIT_BYTES = 48 << 20

PREPARE = f"""
import re, resource, sys
from pathlib import Path
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset

def prepare(source):
    config = PrepareConfig(out=sys.argv[1], shard_records=16, processes=1, seed=1)
    return prepare_dataset([source], config, progress=False)

prepare("scenes:100")  # memory that libraries keep after their first use does not count
used = re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())
limit = int(used[1]) * 1024 + {LIMIT_BYTES}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for source in sys.argv[2:]:
    print(prepare(source).num_written)
"""


def write_corpus(path: Path, num_records: int) -> None:
    """Write drawings of RECORD_BYTES in one row group of many pages; all have the same id."""

    def draw(number: int) -> str:
        words = f"{number:07d} " * (RECORD_BYTES // 8)
        return f'<svg viewBox="0 0 256 256"><text x="1" y="9">{words}</text></svg>'

    captions = [f"caption of number {n}" for n in range(num_records)]
    schema = pa.schema([(name, pa.string()) for name in ("id", "svg", "caption")])
    pages = {"use_dictionary": False, "compression": "none", "write_batch_size": 16}
    with pq.ParquetWriter(path, schema, **pages) as writer:
        columns = [["icon.svg"] * num_records, [draw(n) for n in range(num_records)], captions]
        writer.write_table(pa.table(columns, schema=schema), row_group_size=num_records)


def test_memory_does_not_follow_the_corpus(tmp_path: Path) -> None:
    sizes = [50, 200, 2400]
    assert sizes[-1] * RECORD_BYTES > 3 * LIMIT_BYTES
    for size in sizes:
        write_corpus(tmp_path / f"{size}.parquet", size)
    paths = [str(tmp_path / f"{size}.parquet") for size in sizes]
    # These allocators reserve address space that they never use.
    environment = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path / "out"), *paths],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(size) for size in sizes]
