"""Measure the learning of a small model: the scenes base, tuned on a caption style new to it.

    python -m benchmarks.learning --json outputs/bench/learning.json

Whole compositions (pairs of shapes and colours) are held out, also from the training of the base.
The tuned model is compared with the base model and with the best constant caption. The tuning is an
ordinary `train` job.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from app.config import Config, load_config, make_paths_absolute
from app.evaluation.metrics import compute_bleu4, find_best_constant_caption
from app.evaluation.scores import BASE, TUNED
from app.jobs.evaluate import evaluate_base_and_tuned
from app.jobs.job import connect_workers
from app.jobs.precision import resolve_precision
from app.jobs.train import train_job
from app.tracking import check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.sources.scenes import COLOURS, SHAPES, SIZES

SCENES = 6_000
SEED = 77
FIELDS = {
    "shape": rf"\b({'|'.join(SHAPES)}) x\d",
    "colour": rf"\(({'|'.join(COLOURS)}),",
    "size": rf", ({'|'.join(SIZES)})\)",
    "relation": r"at the (left|right|top|bottom)",
}
"""Fields of a caption in the `list` style. A field is right if all its mentions are, in order."""


def tuning_config(folder: Path) -> Config:
    """Return the config of the job that tunes the demo model on the shards in the folder."""
    overrides = {
        "data.shards": str(folder / "shards"),
        "data.sequence_tokens": 512,
        "data.max_validation_records": 200,
        "train.output_dir": str(folder),
        "train.run_name": f"learning-{int(time.time())}",
        "train.max_steps": 500,
        "train.eval_steps": 100,
        "train.save_steps": 100,
        "optim.learning_rate": 2e-3,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "evaluate.max_captions": 200,
        "evaluate.max_instruction_prompts": 0,
    }
    return resolve_precision(make_paths_absolute(load_config("demo", overrides)))


def score_fields(captions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the share of references whose mentions of a field, in order, the captions repeat."""
    accuracies = {}
    for field, pattern in FIELDS.items():
        correct = []
        for caption, reference in zip(captions, references, strict=True):
            wanted = re.findall(pattern, reference)
            if wanted:
                correct.append(re.findall(pattern, caption) == wanted)
        accuracies[field] = sum(correct) / len(correct)
    return accuracies


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    # prepare
    started = time.monotonic()
    folder = arguments.json.parent.absolute() / "learning"
    prepare_dataset(
        [f"scenes:{SCENES}:{SEED}:list"], PrepareConfig(out=str(folder / "shards"), test_share=0)
    )
    config = tuning_config(folder)
    check_tracking(config.tracking)

    # train and caption
    with connect_workers(config, config.scaling.num_workers):
        adapter = train_job(config, open_shards(config.data.shards)).adapter
        assert adapter is not None
        held_out, evaluations = evaluate_base_and_tuned(
            config, open_shards(config.data.shards), adapter
        )

    # score
    base, tuned = (
        [output.text for output in held_out.list_captions(evaluations[model].outputs)]
        for model in (BASE, TUNED)
    )
    references = [record.caption for record in held_out.records]
    constant, constant_bleu4 = find_best_constant_caption(
        open_shards(config.data.shards).read_captions("train"), references
    )
    figures = {
        "bleu4_tuned": compute_bleu4(tuned, references),
        "bleu4_base": compute_bleu4(base, references),
        "bleu4_constant": constant_bleu4,
    }
    candidates = {
        "tuned": tuned,
        "base": base,
        "constant": [constant] * len(references),
    }
    for who, captions in candidates.items():
        accuracies = score_fields(captions, references)
        figures |= {f"{field}_accuracy_{who}": value for field, value in accuracies.items()}
        figures[f"field_accuracy_{who}"] = sum(accuracies.values()) / len(FIELDS)

    # report
    report = {
        "figures": figures,
        "num_captions": len(references),
        "eval_loss_before": evaluations[BASE].eval_loss,
        "eval_loss_after": evaluations[TUNED].eval_loss,
        "constant_caption": constant,
        "seconds": round(time.monotonic() - started, 1),
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for reference, before, after in [*zip(references, base, tuned, strict=True)][:5]:
        print(f"\nreference  {reference}\nbase       {before}\ntuned      {after}")


if __name__ == "__main__":
    main()
