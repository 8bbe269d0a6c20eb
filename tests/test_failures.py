"""Errors that last end a job at once, on all workers; other errors restart the workers."""

import errno
import os
import subprocess

import pytest
import ray
import ray.exceptions
import ray.train
import ray.train.torch

from app.config import load_config, make_paths_absolute
from app.errors import UserError
from app.full_disk import find_full_disk
from app.jobs.failures import StopAtLastingErrors, find_lasting_error, find_lost_process
from app.jobs.lease import hold_lease
from app.jobs.train import train_job
from app.training.checkpoint import save_checkpoint
from app.training.config import OptimConfig
from app.training.nonfinite import TrainingDiverged
from app.training.optim import build_optimizer
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from tests.corpus import write_shards
from tests.tiny import objective, save_model


def fail_on_one_rank(arguments):
    rank = ray.train.get_context().get_world_rank()
    with open(arguments["starts"], "a") as file:
        file.write(f"{rank}\n")
    if rank == 1:
        raise arguments["error"]
    ray.train.report({})  # waits for the other rank, which never reports


@pytest.mark.parametrize(
    ("error", "num_attempts"),
    [(DataError("the shard is gone"), 1), (RuntimeError("a node is gone"), 2)],
    ids=["lasting", "other"],
)
def test_only_a_lasting_error_is_not_tried_again(ray_local, tmp_path, error, num_attempts):
    trainer = ray.train.torch.TorchTrainer(
        fail_on_one_rank,
        train_loop_config={"starts": str(tmp_path / "starts"), "error": error},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            storage_path=str(tmp_path),
            failure_config=ray.train.FailureConfig(max_failures=1),
            callbacks=[StopAtLastingErrors()],
        ),
    )
    with pytest.raises(ray.train.TrainingFailedError) as failed:
        trainer.fit()
    assert sorted((tmp_path / "starts").read_text().split()) == sorted("01" * num_attempts)
    lasting = find_lasting_error(failed.value)
    assert str(lasting) == (str(error) if num_attempts == 1 else "None")


def die(_: object) -> None:
    os._exit(9)


def test_a_process_that_ray_loses_is_named_in_one_sentence(ray_local):
    @ray.remote(num_cpus=0.1, max_retries=0)
    def fail():
        raise RuntimeError("a fault of our own")

    deaths = [ray.remote(num_cpus=0.1, max_retries=0)(die).remote(0)]
    actor = ray.remote(num_cpus=0.1)(type("Actor", (), {"die": die})).remote()
    deaths.append(actor.die.remote())
    for death in deaths:
        with pytest.raises(ray.exceptions.RayError) as raised:
            ray.get(death)
        try:
            raise RuntimeError("wrapped") from raised.value
        except RuntimeError as error:
            sentence = str(find_lost_process(error))
        assert sentence.startswith("Ray lost a process of this command (")
        assert "start it again" in sentence
        assert "\n" not in sentence

    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(fail.remote())
    assert find_lost_process(raised.value) is None


def test_a_shard_that_disappears_ends_the_job_with_one_sentence(ray_local, tmp_path):
    write_shards(tmp_path / "shards", train=[60] * 200, validation=[60] * 5)
    config = make_paths_absolute(
        load_config(
            "demo",
            {
                "data.shards": str(tmp_path / "shards"),
                "data.shuffle_block_examples": 16,
                "train.output_dir": str(tmp_path / "jobs"),
                "train.precision": "fp32",
                "train.max_failures": 3,
                "scaling.num_workers": 1,
                "tracking.uri": None,
            },
        )
    )
    shards = open_shards(config.data.shards)
    (tmp_path / "shards" / shards.files["train"][-1].name).unlink()
    with pytest.raises(UserError) as error:
        train_job(config, shards)
    assert "cannot be read" in str(error.value)
    assert "give data.shards a folder that every node can read" in str(error.value)
    assert "\n" not in str(error.value)
    with hold_lease(str(tmp_path / "jobs" / "demo")):  # the failed job has released it
        pass


def test_an_error_is_found_inside_the_errors_that_wrap_it():
    def wrap(error):
        try:
            try:
                raise error
            except Exception as caught:
                raise RuntimeError("first") from caught
        except RuntimeError as caught:
            return caught

    task = ray.exceptions.RayTaskError("read", "traceback\nof a task", DataError("no such shard"))
    for error, sentence in (
        (wrap(DataError("no such shard")), "no such shard"),
        (task.as_instanceof_cause(), "no such shard"),
        (wrap(task.as_instanceof_cause()), "no such shard"),
        (ray.train.ControllerError(UserError("one")), "one"),
        (ray.train.WorkerGroupError("all", {3: TrainingDiverged("step 3")}), "step 3"),
    ):
        assert str(find_lasting_error(error)) == sentence
    assert find_lasting_error(wrap(KeyError("x"))) is None
    assert find_lasting_error(ray.train.WorkerGroupError("", {0: OSError(2, "x")})) is None


@pytest.fixture(params=["adapter_model.safetensors", "state.json"])
def full_folder(request, tmp_path):
    """Return a folder in which one file of a checkpoint cannot be written: no space is left."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    if request.param == "state.json":
        (folder / request.param).symlink_to("/dev/full")
        yield folder
        return

    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_whichever_file_it_cuts(tmp_path, full_folder):
    loss = objective(save_model(tmp_path / "model"))
    optimizer = build_optimizer(loss, OptimConfig())
    with pytest.raises(Exception, match=r"No space left on device") as failed:
        save_checkpoint(full_folder, loss.model, optimizer, {"step": 1})
    found = find_lasting_error(ray.train.WorkerGroupError("", {0: failed.value}))
    assert found is not None
    assert str(found).startswith("no space is left (")
    assert "train.output_dir" in str(found)


def test_only_a_full_disk_is_called_full():
    assert find_full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert find_full_disk(OSError(errno.EACCES, "Permission denied")) is None
    assert find_full_disk(ValueError("28")) is None
