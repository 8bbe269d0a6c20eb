"""Warm trials train as trials in a process of their own do, and leave nothing behind."""

import hashlib

import pytest
import torch
from tiny import CPU, Recorder

from app.config import load_config, make_paths_absolute, override_config
from app.gemma import load
from app.gemma.load import DTYPES, CaptionLoss, add_lora, load_base_model
from app.gemma.share import copy_modules
from app.jobs.job import build_stream
from app.jobs.precision import resolve_precision
from app.jobs.trials import Campaign
from app.jobs.warm_trials import WarmWorker
from app.jobs.worker import adapt_base_model
from app.training.loop import TrainSetup, TrainState, train_model
from app.training.optim import build_optimizer
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.packed_blocks import PackedBlocks
from data_pipeline.stream.token_stream import Position
from data_pipeline.stream.worker_batches import read_validation_batches, split_among_workers
from tune.errors import TrialFailed

SMALL = {"optim.learning_rate": 3e-3, "lora.rank": 4, "lora.alpha": 8}
LARGE = {"optim.learning_rate": 1e-3, "lora.rank": 8, "lora.train_embeddings": False}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A search of trials of four steps, with an evaluation after two of them."""
    folder = tmp_path_factory.mktemp("warm")
    shards = str(folder / "shards")
    prepare_dataset(
        ["scenes:60:7:list"],
        PrepareConfig(out=shards, validation_share=0.1, test_share=0),
        progress=False,
    )
    config = load_config(
        "demo",
        {
            "data.shards": shards,
            "data.sequence_tokens": 128,
            "data.shuffle_block_examples": 8,
            "data.max_validation_records": 2,
            "train.output_dir": str(folder),
            "train.micro_batch_size": 2,
            "train.eval_steps": 2,
            "scaling.num_workers": 1,
            "lora.dropout": 0.1,
            "search.trial_steps": 4,
            "tracking.uri": None,
        },
    )
    config = resolve_precision(make_paths_absolute(config))
    return Campaign(config, open_shards(config.data.shards), str(folder), None)


def train_alone(campaign, overrides):
    """The evaluations of a trial whose parts are all new, with the loop of every job."""
    config = campaign.make_config(overrides, "alone")
    stream = build_stream(config, campaign.shards)
    base_model = load_base_model(
        config.model, config.quantization, device=CPU, dtype=DTYPES[config.train.precision]
    )
    objective = adapt_base_model(base_model, config)
    blocks = (stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks))
    size = config.train.micro_batch_size
    recorder = Recorder()
    setup = TrainSetup(
        objective=objective,
        optimizer=build_optimizer(objective, config.optim),
        validation=read_validation_batches(
            stream, micro_batch_size=config.evaluate.micro_batch_size, rank=0, num_workers=1
        ),
        config=config.train,
        optim=config.optim,
        context=recorder,
        compute_progress=stream.compute_progress,
    )
    batches = split_among_workers(blocks, micro_batch_size=size, rank=0, num_workers=1)
    train_model(setup, batches, TrainState())
    return [(step, loss) for step, loss, _ in recorder.reports]


def evaluations(worker, overrides, trial_id, folder=None):
    return [one[:2] for one in worker.start(overrides, trial_id, folder)]


def hash_base(worker):
    digest = hashlib.sha256()
    for name, value in worker._base.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_a_warm_trial_has_the_losses_of_a_cold_one_and_leaves_the_base_model_untouched(campaign):
    worker = WarmWorker(campaign)
    first = evaluations(worker, SMALL, "0000")
    base, data, before = worker._base, worker._data, hash_base(worker)

    assert first == train_alone(campaign, SMALL)
    assert [step for step, _ in first] == [0, 2, 4]
    assert evaluations(worker, LARGE, "0001") == train_alone(campaign, LARGE)
    assert evaluations(worker, SMALL, "0002") == first

    assert worker._base is base
    assert worker._data is data
    assert hash_base(worker) == before
    assert not [name for name, _ in base.model.named_modules() if "lora" in name]


def test_a_trial_with_other_data_or_quantization_reads_or_loads_again(campaign):
    worker = WarmWorker(campaign)
    evaluations(worker, SMALL, "0010")
    base, data = worker._base, worker._data

    longer = {**SMALL, "data.sequence_tokens": 160}
    assert evaluations(worker, longer, "0011") == train_alone(campaign, longer)
    assert worker._base is base
    assert worker._data is not data

    whole = {**SMALL, "quantization.kind": "none"}
    assert evaluations(worker, whole, "0012") == train_alone(campaign, whole)
    assert worker._base is not base


def test_a_trial_continues_from_its_checkpoint_in_another_process(campaign, tmp_path):
    worker = WarmWorker(campaign)
    trial = worker.start(SMALL, "0020", None)
    started = [next(trial), next(trial)]
    worker.save(tmp_path)
    rest = list(trial)

    assert list(WarmWorker(campaign).start(SMALL, "0020", tmp_path)) == rest
    assert [one.step for one in (*started, *rest)] == [0, 2, 4]
    assert [one.is_last for one in (*started, *rest)] == [False, False, True]


def test_a_trial_without_memory_continues_with_half_the_micro_batch(campaign, monkeypatch, capsys):
    """The allocator really refuses a tensor, in each forward pass of two sequences."""
    refused = []
    compute_hidden = CaptionLoss.compute_hidden

    def allocate(objective, input_ids, position_ids):
        if len(input_ids) > 1 and torch.is_grad_enabled():
            refused.append(len(input_ids))
            torch.empty(2**58)
        return compute_hidden(objective, input_ids, position_ids)

    whole = evaluations(WarmWorker(campaign), SMALL, "0030")
    monkeypatch.setattr(load.CaptionLoss, "compute_hidden", allocate)
    worker = WarmWorker(campaign)
    halved = evaluations(worker, SMALL, "0031")

    assert refused == [2]
    assert [step for step, _ in halved] == [0, 2, 4]
    # dropout draws one mask for a micro-batch, so the steps differ a little
    assert [loss for _, loss in halved] == pytest.approx([loss for _, loss in whole], rel=0.05)
    assert "micro_batch_size=2, retried with 1" in capsys.readouterr().out

    config = override_config(campaign.config, {"search.retry_out_of_memory": False})
    strict = Campaign(config, campaign.shards, campaign.job_dir, None)
    with pytest.raises(TrialFailed, match=r"out of memory .*: lower train\.micro_batch_size"):
        evaluations(WarmWorker(strict), SMALL, "0032")
    assert refused == [2, 2]


def test_a_trial_that_cannot_start_or_go_on_names_its_reason_and_the_next_one_runs(campaign):
    worker = WarmWorker(campaign)
    with pytest.raises(TrialFailed, match=r"lora\.rank"):
        worker.start({"lora.rank": 0}, "0040", None)
    first = evaluations(worker, SMALL, "0041")

    trial = worker.start(SMALL, "0042", None)
    next(trial)
    with torch.no_grad():
        for parameter in worker._training.context._model.parameters():
            if parameter.requires_grad:
                parameter.fill_(torch.nan)
    with pytest.raises(TrialFailed, match=r"step 1: loss nan"):
        next(trial)
    assert evaluations(worker, SMALL, "0043") == first


def test_copies_of_a_base_model_share_its_weights_and_no_module(campaign):
    config = campaign.config
    base_model = load_base_model(config.model, config.quantization, device=CPU, dtype=torch.float32)
    copied = copy_modules(base_model)
    for module, other in zip(base_model.modules(), copied.modules(), strict=True):
        assert module is not other
    pairs = zip(base_model.parameters(), copied.parameters(), strict=True)
    assert all(parameter is other for parameter, other in pairs)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight

    forwards = [vars(module).get("forward") for module in base_model.modules()]
    add_lora(copied, config.lora, seed=0)
    assert [vars(module).get("forward") for module in base_model.modules()] == forwards


@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_kept_blocks_are_those_of_the_stream(campaign, monkeypatch, max_bytes):
    monkeypatch.setattr("data_pipeline.stream.packed_blocks._MAX_BYTES", max_bytes)
    stream = build_stream(campaign.config, campaign.shards)
    blocks = PackedBlocks(stream)
    for start in (Position(), Position(2, 1, 3), Position(2, 1, 3)):
        read = list(blocks.iterate(start))
        numbers = range(start.shuffle_block, stream.num_shuffle_blocks)
        expected = [stream.pack_remaining_shuffle_block(start, number) for number in numbers]
        assert len(read) == len(expected)
        for block, other in zip(read, expected, strict=True):
            assert all((block[name] == other[name]).all() for name in other)
    assert list(blocks.iterate(Position(stream.num_shuffle_blocks))) == []
