"""Two workers, all strategies: the losses of one process, a share of its bytes, one checkpoint."""

import peft
import pytest
import torch
import torch.distributed as dist
from bitsandbytes.nn import Params4bit
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, Gemma2ForCausalLM

from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.adapter import read_adapter
from app.gemma.config import LoraConfig, MemoryConfig
from app.gemma.load import unwrap_gemma
from app.training import checkpoint
from app.training.config import OptimConfig, TrainConfig
from app.training.loop import TrainSetup, TrainState, state_from_json, state_to_json, train_model
from app.training.optim import build_optimizer
from app.training.parallel import wrap_model
from data_pipeline.stream.encode import IGNORE_INDEX
from tests.tiny import CPU, Recorder, batches, objective, run_two_processes, save_model

STRATEGIES = ("ddp", "zero2", "fsdp")
OPTIM = OptimConfig(learning_rate=2e-2, schedule="cosine", warmup_ratio=0.1, max_grad_norm=0.5)
STEPS, SAVED = 6, 4
RESUMED = [("ddp", "zero2"), ("zero2", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp"), ("one", "fsdp")]


class Saving(Recorder):
    """Recorder that saves a checkpoint of one step."""

    def __init__(self, rank, size, folder, model, optimizer):
        super().__init__(rank, size)
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.folder.mkdir(exist_ok=True)

    def report(self, state, eval_loss, *, save):
        super().report(state, eval_loss, save=save)
        if state.step == SAVED:
            checkpoint.save_checkpoint(
                self.folder if self.rank == 0 else None,
                self.model,
                self.optimizer,
                state_to_json(state),
            )


def held(tensors):
    """Return the bytes of this worker, with each storage counted once."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values()
    )


def write_peft_adapter(base, folder):
    """Save a random adapter of transformers and PEFT alone; return its loss of the validation."""
    torch.manual_seed(5)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    plain = Gemma2ForCausalLM.from_pretrained(
        base, quantization_config=nf4, dtype=torch.float32, attn_implementation="eager"
    )
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=8,
        target_modules=list(LoraConfig().target_modules),
        modules_to_save=["embed_tokens", "lm_head"],
        ensure_weight_tying=True,
        init_lora_weights=False,  # random: it changes the model
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(plain, settings)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)
    model.save_pretrained(folder)

    model.eval()
    total, count = 0.0, 0
    for batch in validation():
        ids, positions = (torch.tensor(batch[name]) for name in ("input_ids", "position_ids"))
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        targets = torch.tensor(batch["targets"][0]).long()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += int((targets != IGNORE_INDEX).sum())
    return total / count


def validation(rank=0, size=1):
    return [batch for batch, _ in batches(12, seed=9, rank=rank, num_workers=size)][: 4 // size]


def run(
    folder,
    strategy,
    rank,
    size,
    *,
    saved,
    resumed=None,
    initial=None,
    dtype=torch.float32,
    **config,
):
    """Train one worker of a job, and return its losses and the bytes that it holds.

    The job has trained embeddings, dropout, recomputed layers and gradient accumulation.
    """
    loss = objective(folder, dtype=dtype, rank=3, dropout=0.1, train_embeddings=True)
    inner = unwrap_gemma(loss.model).model
    apply_memory_config(unwrap_gemma(loss.model), MemoryConfig(tile_tokens=16, offload=True))
    wrapped = wrap_model(loss, strategy, size=size, device=CPU)
    optimizer = build_optimizer(wrapped, OPTIM)
    state = TrainState()
    if resumed is not None:
        state = state_from_json(checkpoint.restore_checkpoint(resumed, loss.model, optimizer))
    if initial is not None:
        checkpoint.load_weights(read_adapter(initial, "the adapter").weights, loss.model)
    context = Saving(rank, size, saved, loss.model, optimizer)
    if resumed is not None:
        context.report(state, 0.0, save=True)

    # sharding of idle modules, and bytes of gradients
    is_sharded, gradients = [], []
    idle = [inner.embed_tokens.original_module, inner.layers[0]]
    inner.layers[1].register_forward_pre_hook(
        lambda *_: is_sharded.extend(
            isinstance(next(module.parameters()), DTensor) for module in idle
        )
    )
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    optimizer.register_step_pre_hook(lambda *_: gradients.append(held(p.grad for p in trained)))

    # train
    config = TrainConfig(
        **{
            "max_steps": STEPS,
            "eval_steps": 2,
            "save_steps": 2,
            "gradient_accumulation_steps": 4 // size,
            **config,
        }
    )
    stream = batches(90, rank=rank, num_workers=size)[
        state.step * config.gradient_accumulation_steps :
    ]
    setup = TrainSetup(
        objective=wrapped,
        optimizer=optimizer,
        validation=validation(rank, size),
        config=config,
        optim=OPTIM,
        context=context,
        compute_progress=lambda position: position.index / position.num_block_sequences,
    )
    train_model(setup, iter(stream), state)

    return {
        "losses": context.losses(),
        "norms": [
            metrics["train/grad_norm"] for _, metrics in context.metrics if "train/loss" in metrics
        ],
        "evaluations": [report[1] for report in context.reports if report[1]],
        "base": held(p for p in loss.parameters() if not p.requires_grad),
        "trained": held(trained),
        "gradients": gradients[-1],
        "moments": held(v for s in optimizer.state.values() for v in s.values() if v.ndim),
        "idle_is_sharded": set(is_sharded),
    }


def work(rank, folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    seen = {
        strategy: run(folder, strategy, rank, 2, saved=out / strategy) for strategy in STRATEGIES
    }
    for before, after in RESUMED:
        seen[before, after] = run(
            folder, after, rank, 2, saved=out / f"{before}-{after}", resumed=out / before
        )
    for strategy in STRATEGIES:
        settings = {"saved": out / "none", "initial": out / "peft", "max_steps": 2}
        seen["peft", strategy] = run(folder, strategy, rank, 2, **settings)
    for every in (1, 100):
        seen[f"evaluated every {every}"] = run(
            folder,
            "fsdp",
            rank,
            2,
            saved=out / "none",
            dtype=torch.bfloat16,
            eval_steps=every,
            save_steps=None,
        )
    torch.save(seen, out / f"rank-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def one(folder, out):
    return run(folder, "ddp", 0, 1, saved=out / "one")


@pytest.fixture(scope="module")
def peft_loss(folder, out):
    return write_peft_adapter(folder, out / "peft")


@pytest.fixture(scope="module")
def two(folder, out, one, peft_loss):
    run_two_processes(work, (folder, out))
    return [torch.load(out / f"rank-{rank}") for rank in (0, 1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_norms_and_evaluations_are_those_of_one_process(one, two, strategy):
    assert min(one["norms"]) > OPTIM.max_grad_norm, "nothing was clipped"
    for figure in ("losses", "norms", "evaluations"):
        assert two[0][strategy][figure] == pytest.approx(one[figure], rel=1e-5), figure


def share(parameters):
    """Return the bytes of half the rows of each weight, rounded up."""
    return sum(-(-len(p) // 2) * p[0].numel() * p.element_size() for p in parameters)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_worker_holds_the_share_of_its_strategy(folder, two, rank):
    whole = objective(folder, rank=3, train_embeddings=True)
    trained = [p for p in whole.parameters() if p.requires_grad]
    base = [p for p in whole.parameters() if not p.requires_grad]
    assert sum(isinstance(p, Params4bit) for p in base) == 14
    expected = {
        "ddp": (held(base), held(trained)),
        "zero2": (held(base), share(trained)),
        "fsdp": (share(base), share(trained)),
    }
    for strategy, (base_bytes, trained_bytes) in expected.items():
        seen = two[rank][strategy]
        assert (seen["base"], seen["trained"]) == (base_bytes, trained_bytes), strategy
        assert seen["gradients"] == trained_bytes, strategy
        moments = [rank[strategy]["moments"] for rank in two]
        assert sum(moments) == 2 * held(trained) * (2 if strategy == "ddp" else 1), strategy
        assert max(moments) <= 2 * trained_bytes, strategy
        # weights of another layer while the second computes
        assert seen["idle_is_sharded"] == {strategy == "fsdp"}


@pytest.mark.parametrize(("before", "after"), RESUMED)
def test_a_job_goes_on_under_another_strategy(one, two, out, before, after):
    resumed = two[0][before, after]
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "state.json"):
        assert (out / before / name).read_bytes() == (
            out / f"{before}-{after}" / name
        ).read_bytes(), name
    assert resumed["losses"] == pytest.approx(one["losses"][SAVED:], rel=1e-5)
    if before == after:
        assert resumed["losses"] == two[0][before]["losses"][SAVED:], "not bit for bit"
    assert resumed["moments"] == two[0][after]["moments"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_adapter_of_plain_peft_trains_on_with_the_loss_it_had(one, two, peft_loss, strategy):
    before, after = two[0]["peft", strategy]["evaluations"]
    assert before == pytest.approx(peft_loss, rel=1e-5)
    assert after < before
    assert after == pytest.approx(two[0]["peft", "ddp"]["evaluations"][1], rel=1e-5)
    assert abs(peft_loss - one["evaluations"][0]) > 0.01  # a new adapter has another loss


def test_a_job_goes_on_with_one_worker(one, two, folder, out):
    alone = run(folder, "fsdp", 0, 1, saved=out / "alone", resumed=out / "fsdp")
    assert alone["losses"] == pytest.approx(one["losses"][SAVED:], rel=1e-5)


def test_evaluation_between_steps_changes_no_loss_of_a_sharded_base(two):
    assert two[0]["evaluated every 1"]["losses"] == two[0]["evaluated every 100"]["losses"]
