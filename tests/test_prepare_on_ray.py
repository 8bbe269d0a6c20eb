"""Drawings cleaned on Ray: the same dataset byte for byte, in order, whatever is killed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import main
from app.jobs.cluster import ConnectedRay
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset


def write_source(path: Path) -> str:
    drawing = '<svg viewBox="0 0 256 256"><path d="M0,0H{}V{}"/></svg>'
    svgs = [drawing.format(n % 250 + 1, n // 250 + 1) if n % 7 else f"<{n}" for n in range(2000)]
    rows = [{"id": n % 1500, "svg": svg, "caption": f"{n}"} for n, svg in enumerate(svgs)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def hash_files(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_a_cluster_writes_the_same_bytes_as_one_machine(
    ray_local: ConnectedRay, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "a.jsonl")
    alone = PrepareConfig(out=str(tmp_path / "alone"), shard_records=256, processes=1)
    prepare_dataset([source], alone, progress=False)

    command = ["prepare", source, "--out", str(tmp_path / "ray"), "--shard-records", "256"]
    # The fixture set RAY_ADDRESS, so this joins its Ray.
    done = subprocess.run([sys.executable, "-m", "app", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "286 in quarantine (not_xml 286)" in done.stdout
    hashes = hash_files(tmp_path / "ray")
    assert hashes == hash_files(tmp_path / "alone")
    assert {"dataset.json", "report.json", "quarantine.parquet", "train-00000.parquet"} < {*hashes}


TWO_NODES = """
import os, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from app.jobs.prepare import map_on_ray
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset

source, out, batches = sys.argv[1:]

def map_and_note(clean, batches_of_records):
    def clean_and_note(batch):
        with Path(batches, ray.get_runtime_context().get_node_id()).open("a") as file:
            file.write(".")
        deadline = time.monotonic() + 60
        while len(os.listdir(batches)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)  # until the other node cleans too: its worker may start later
        return clean(batch)

    return map_on_ray(clean_and_note, batches_of_records)

node = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
os.environ["RAY_ADDRESS"] = cluster.address
config = PrepareConfig(out=out, shard_records=256)
prepare_dataset([source], config, map_batches=map_and_note, progress=False)
with open(f"{batches}.nodes", "w") as file:
    file.writelines(f"{one.node_id}\\n" for one in cluster.list_all_nodes())
cluster.shutdown()
"""


def test_two_nodes_both_clean_and_write_the_bytes_of_one_machine(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.jsonl")
    alone = PrepareConfig(out=str(tmp_path / "alone"), shard_records=256, processes=1)
    prepare_dataset([source], alone, progress=False)

    out, batches = tmp_path / "out", tmp_path / "batches"
    batches.mkdir()
    command = [sys.executable, "-c", TWO_NODES, source, str(out), str(batches)]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    num_batches = {node.name: len(node.read_text()) for node in batches.iterdir()}
    nodes = (tmp_path / "batches.nodes").read_text().split()
    assert len(nodes) == 2
    assert num_batches.keys() == {*nodes}
    assert sum(num_batches.values()) == 4  # 2,000 records
    assert hash_files(out) == hash_files(tmp_path / "alone")


MAP_ON_RAY = """
import os, signal, sys, time
from pathlib import Path
from app.errors import UserError
from app.jobs.prepare import map_on_ray

folder = Path(sys.argv[1])
results = open(sys.argv[2], "w")  # Ray prints its own messages to stdout

def clean(batch):
    number = batch[0]
    marker = folder / str(number)
    if number % 10 == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2 if number % 5 == 0 else 0)  # later batches are done before earlier ones
    return number, os.getpid()

numbers, pids = zip(*map_on_ray(clean, [[n] for n in range(40)]))
print(numbers == tuple(range(40)), os.getpid() in pids, len(list(folder.iterdir())), file=results)

def die(batch):
    os.kill(os.getpid(), signal.SIGKILL)

try:
    list(map_on_ray(die, [[0]]))
except UserError as error:
    print(error, file=results)
"""


def test_the_order_survives_killed_workers(ray_local: ConnectedRay, tmp_path: Path) -> None:
    markers, results = tmp_path / "markers", tmp_path / "results"
    markers.mkdir()
    command = [sys.executable, "-c", MAP_ON_RAY, str(markers), str(results)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = results.read_text().splitlines()
    assert first == "True False 4"  # in order, none here, and each of four kills has fired
    assert second.startswith("a Ray task that cleans drawings was lost (")
    assert second.endswith(
        "give the nodes more memory, or unset RAY_ADDRESS to clean on this machine"
    )


def test_processes_of_this_machine_are_refused_beside_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "scenes:3", "--out", str(tmp_path / "out"), "--processes", "2"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main([*command, "--ray"]) == 2
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(command) == 2
    assert capsys.readouterr().err.count("--processes 2 counts processes of this machine") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_cannot_be_joined_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "a.jsonl")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["prepare", source, "--out", str(tmp_path / "out")]) == 2
    assert "cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.jsonl"]
