"""The lease of a job's folder, with processes that are killed and threads that race."""

import json
import multiprocessing
import os
import signal
import threading
import uuid
from pathlib import Path

import pytest

from app.errors import UserError
from app.jobs import lease
from app.jobs.lease import hold_lease


def files(folder) -> list[Path]:
    return sorted(Path(folder, "lease").glob("*.json"))


def hold_and_wait(folder: str, held) -> None:
    with hold_lease(folder):
        held.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease."""
    processes = multiprocessing.get_context("fork")
    held = processes.Event()
    process = processes.Process(target=hold_and_wait, args=(str(tmp_path), held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def change(file: Path, *, seconds_ago: float, **values: object) -> None:
    """Change a lease file as if another machine had written it."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    written_at = file.stat().st_mtime - seconds_ago
    os.utime(file, (written_at, written_at))


def test_a_second_process_is_refused_and_the_first_one_is_named(tmp_path, holder):
    (file,) = files(tmp_path)
    first = json.loads(file.read_text())
    with pytest.raises(UserError) as error, hold_lease(str(tmp_path)):
        pass
    for part in (tmp_path, first["user"], first["host"], holder.pid, first["since"]):
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == [file], "the first lease stays, and the second leaves nothing"


def test_the_lease_of_a_killed_process_ends_at_once(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    (left,) = files(tmp_path)
    with hold_lease(str(tmp_path)):
        assert left not in files(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"pid_namespace": "pid:[1]"}], ids=str)
def test_a_lease_from_elsewhere_expires_when_it_is_not_renewed(tmp_path, holder, elsewhere):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    (file,) = files(tmp_path)
    change(file, seconds_ago=lease.EXPIRE_SECONDS - 5, **elsewhere)
    with pytest.raises(UserError, match="is running"), hold_lease(str(tmp_path)):
        pass
    change(file, seconds_ago=lease.EXPIRE_SECONDS + 5)
    with hold_lease(str(tmp_path)):
        assert file not in files(tmp_path)


@pytest.mark.parametrize("loss", ["removed", "not renewed"])
def test_a_job_that_loses_its_lease_is_interrupted(tmp_path, monkeypatch, loss):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    interrupted = []

    def work():
        with hold_lease(str(tmp_path)):
            if loss == "removed":
                files(tmp_path)[0].unlink()
            else:
                monkeypatch.setattr(lease, "EXPIRE_SECONDS", -1.0)
            try:
                threading.Event().wait(60)
            except KeyboardInterrupt:
                interrupted.append(True)
                raise

    interrupts: list[int] = []  # of the user: the loss is none
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        with pytest.raises(UserError, match=r"lost its lease .* start it again"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupts == []
    assert interrupted
    assert files(tmp_path) == []


@pytest.mark.parametrize("storage", ["a local folder", "fsspec"])
def test_of_many_that_start_together_at_most_one_holds_the_lease(tmp_path, storage):
    for number in range(10):
        folder = str(tmp_path / str(number))
        if storage == "fsspec":
            folder = f"fsspec+memory://lease-{uuid.uuid4().hex}"
        start, done, inside, refused = threading.Barrier(6), threading.Event(), [], []

        def contend(folder=folder, start=start, done=done, inside=inside, refused=refused):
            start.wait()
            try:
                with hold_lease(folder):
                    inside.append(1)
                    done.wait(60)
            except UserError as error:
                refused.append(str(error))
                if len(refused) == 5:
                    done.set()

        threads = [threading.Thread(target=contend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(inside), len(refused)) == (1, 5)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(UserError, match=r"cannot write into .*train\.output_dir")
    with refused, hold_lease(str(tmp_path / "file" / "job")):
        pass
