"""Promotion to champion: only with a better loss on the same test examples, on a real registry."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from app.__main__ import main
from app.config import Config, load_config
from app.errors import UserError
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import add_lora, load_base_model
from app.jobs.materials import describe_code
from app.jobs.open_captioner import open_captioner
from app.jobs.promote import promote
from app.jobs.trained_model import find_model, save_config
from app.tracking import TrackingConfig, check_tracking, find_champion
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import ShardRecord, Shards, open_shards
from data_pipeline.stream.encode import IGNORE_INDEX, PromptEncoder

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with shards and a registry for all tests: the schema of a database takes 8 s."""
    made = tmp_path_factory.mktemp("promote")
    config = PrepareConfig(out=str(made / "shards"), validation_share=0.1, test_share=0.3)
    prepare_dataset(["scenes:100"], config, progress=False)
    check_tracking(TrackingConfig(uri=f"sqlite:///{made}/mlflow.db"))
    return made


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return load_config(
        "demo",
        {
            "data.shards": str(folder / "shards"),
            "train.precision": "fp32",
            "quantization.kind": "none",
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        },
    )


@pytest.fixture(autouse=True)
def client(config: Config) -> MlflowClient:
    """Empty the registry."""
    client = MlflowClient(str(config.tracking.uri))
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return client


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return open_shards(str(folder / "shards"))


@cache
def load_model() -> Any:
    base = load_base_model(
        ModelConfig(name="tiny", attention="eager"),
        QuantizationConfig(kind="none"),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return add_lora(base, LoraConfig(rank=4, alpha=8), seed=0).eval()


def save_adapter(folder: Path, config: Config, *, noise: float, seed: int = 0) -> str:
    """Save an adapter of the tiny model; without noise it computes as the base model does."""
    model = load_model()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) * noise)
    model.save_pretrained(str(folder))
    digest = open_shards(config.data.shards).digest
    state = {"state": {"step": 4}, "job": {"the digest of data.shards": digest}, "code": "1.2 abc"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    save_config(folder, config)
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Return exit code, JSON and the last line of stderr of `promote`."""
    code = main(["promote", *arguments])
    captured = capsys.readouterr()
    report = json.loads(captured.out) if captured.out else None
    return code, report, captured.err.strip().splitlines()[-1]


def test_losses_are_those_of_a_plain_model(config: Config, shards: Shards, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", config, noise=0.05)
    records = shards.read("test", 0, 6)
    pairs = [(record.svg, record.caption) for record in records]
    captioner = open_captioner(config, adapter)
    found = captioner.measure_losses(pairs)

    model = load_model()
    encoder = PromptEncoder("app/gemma/tiny", config.data.system_prompt)
    for (svg, caption), (loss, count) in zip(pairs, found, strict=True):
        example = encoder.encode(svg, caption)
        with torch.no_grad():
            logits = model(input_ids=torch.as_tensor(example.input_ids)[None].long()).logits[0]
        targets = torch.as_tensor(example.targets).long()
        kept = targets != IGNORE_INDEX
        plain = torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum")
        assert count == int(kept.sum())
        assert loss == pytest.approx(float(plain), rel=1e-4)

    # an example that is too long has no loss
    captioner.max_prompt_tokens = 10
    assert not np.any(captioner.measure_losses(pairs[:1]))


def test_the_alias_moves_only_to_a_better_model_or_by_force(
    client: MlflowClient,
    config: Config,
    shards: Shards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracking = config.tracking
    bad = save_adapter(tmp_path / "bad", config, noise=0.1)
    good = save_adapter(tmp_path / "good", config, noise=0)
    worse = save_adapter(tmp_path / "worse", config, noise=0.1, seed=1)

    # the first
    assert find_champion(tracking) is None
    code, report, line = run(capsys, bad)
    assert (code, report["promoted"], report["champion_before"]) == (0, True, None)
    assert report["num_examples"] == shards.num_records("test") > 20
    assert report["low"] is None
    assert "first champion, as models:/svgscribe/1" in line

    # a better one: the champion comes from the registry alone
    shutil.rmtree(bad)
    code, report, line = run(capsys, good)
    assert (code, report["promoted"], report["forced"]) == (0, True, False)
    assert 0 < report["low"] < report["gain"] < report["high"]
    difference = report["champion_loss"] - report["challenger_loss"]
    assert report["gain"] == pytest.approx(difference)
    assert "is the champion, as models:/svgscribe/2" in line
    assert report["trained_on_other_data"] == []

    # a worse one
    code, report, line = run(capsys, worse)
    assert (code, report["promoted"], report["champion"]) == (1, False, "models:/svgscribe/2")
    assert report["high"] < 0
    assert "models:/svgscribe/2 stays the champion" in line
    assert find_champion(tracking) == "models:/svgscribe/2"
    assert len(client.search_model_versions("name = 'svgscribe'")) == 2

    # by force
    code, report, line = run(capsys, worse, "--force")
    assert (code, report["promoted"], report["forced"]) == (0, True, True)
    assert "by --force, as models:/svgscribe/3" in line
    tags = client.get_model_version("svgscribe", "3").tags
    assert (tags["forced"], tags["before"]) == ("True", "models:/svgscribe/2")
    assert float(tags["test/high"]) == report["high"]

    # the champion again, and back to an earlier version without a copy
    code, report, line = run(capsys, worse)
    assert code == 0
    assert line.endswith("is the champion already, as models:/svgscribe/3: there is nothing to do")
    assert report == {"promoted": False, "challenger": worse, "champion": "models:/svgscribe/3"}
    uri = f"tracking.uri={tracking.uri}"
    code, report, _ = run(capsys, "models:/svgscribe/2", uri)
    assert (code, report["champion"]) == (0, "models:/svgscribe/2")
    assert len(client.search_model_versions("name = 'svgscribe'")) == 3

    # the registered model is usable, and names its materials
    found = find_model("models:/svgscribe@champion", tracking)
    assert (found.step, found.config) == (4, config)
    assert not (Path(found.adapter) / "optimizer.safetensors").exists()
    pairs = [(record.svg, record.caption) for record in shards.read("test", 0, 5)]
    losses = [
        open_captioner(config, adapter).measure_losses(pairs) for adapter in (found.adapter, good)
    ]
    np.testing.assert_array_equal(*losses)
    version = client.get_model_version("svgscribe", "2")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert model.params["data.digest"] == shards.digest
    assert model.params["lora.rank"] == str(config.lora.rank)
    assert model.params["code"] == "1.2 abc"
    assert len(model.params["adapter.sha256"]) == 64


def test_an_adapter_that_is_a_pickle_of_numbers_is_promoted_and_found_again(
    config: Config, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(save_adapter(tmp_path / "pickled", config, noise=0.1))
    plain = adapter / "adapter_model.safetensors"
    copy = shutil.copytree(adapter, tmp_path / "plain")
    torch.save(load_file(plain), adapter / "adapter_model.bin")
    plain.unlink()

    assert run(capsys, str(adapter))[0] == 0
    code, _, line = run(capsys, str(adapter))
    assert (code, line.endswith("there is nothing to do")) == (0, True)
    champion = find_model("models:/svgscribe@champion", config.tracking)
    pairs = [(record.svg, record.caption) for record in shards.read("test", 0, 3)]
    losses = [
        open_captioner(config, each).measure_losses(pairs) for each in (champion.adapter, str(copy))
    ]
    np.testing.assert_array_equal(*losses)


def test_a_difference_that_may_be_chance_promotes_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save_adapter(tmp_path / "first", config, noise=0.01)
    second = save_adapter(tmp_path / "second", config, noise=0.01, seed=1)
    assert run(capsys, first)[0] == 0
    code, report, line = run(capsys, second)
    assert report["low"] < 0 < report["high"]
    assert (code, report["promoted"], report["champion"]) == (1, False, "models:/svgscribe/1")
    assert "is not better" in line


@pytest.mark.parametrize("force", [False, True])
def test_a_comparison_with_a_champion_of_before_moves_nothing(
    config: Config, shards: Shards, tmp_path: Path, force: bool
) -> None:
    adapters = [
        save_adapter(tmp_path / name, config, noise=noise)
        for name, noise in (("first", 0.1), ("other", 0.05), ("slow", 0))
    ]
    first, other, slow = (find_model(adapter) for adapter in adapters)
    moved = []

    class SlowShards(Shards):
        """Shards that are read after another process has promoted its model."""

        def read(self, split: str, start: int, stop: int) -> list[ShardRecord]:
            moved.append(promote(other, shards, config.tracking)["champion"])
            return super().read(split, start, stop)

    promote(first, shards, config.tracking)
    slow_shards = SlowShards(**vars(shards))
    with pytest.raises(UserError, match=r"svgscribe/1 to \S+/2 during .* `promote \S+/3`"):
        promote(slow, slow_shards, config.tracking, force=force)
    assert moved == [find_champion(config.tracking)] == ["models:/svgscribe/2"]

    # the advice
    report = promote(find_model("models:/svgscribe/3", config.tracking), shards, config.tracking)
    assert (report["champion"], report["champion_before"]) == ("models:/svgscribe/3", moved[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tracking.uri=null"], ["tracking.uri=null", "registry"]),
        (["data.shards=EMPTY"], ["test split", "0 records", "--test-share"]),
        (["data.sequence_tokens=16"], ["0 test examples fit", "data.sequence_tokens"]),
        (["tracking.uri=sqlite:///EMPTY/shards"], ["tracking.uri", "cannot be used"]),
    ],
)
def test_a_comparison_that_cannot_be_made_is_named(
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    words: list[str],
) -> None:
    empty = PrepareConfig(out=str(tmp_path / "shards"), test_share=0)
    prepare_dataset(["scenes:30"], empty, progress=False)
    adapter = save_adapter(tmp_path / "adapter", config, noise=0)
    given = [text.replace("=EMPTY", f"={empty.out}") for text in overrides]
    given = [text.replace("EMPTY", str(tmp_path)) for text in given]
    code, report, line = run(capsys, adapter, *given)
    assert (code, report) == (2, None)
    assert all(word in line for word in words), line


def test_the_code_is_named_by_version_and_commit() -> None:
    name, commit = describe_code().split(" ")
    assert name
    assert len(commit.removesuffix("-dirty")) == 40
