"""What a small model can really learn: the scenes base, tuned on a caption style that it never saw.

    python -m benchmarks.learning --json outputs/bench/learning.json

Whole compositions (which shapes in which colours) are held out, from the base's training too. Beside the tuned
model stand the base and the best constant caption. The tuning is a `train` job like any other.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from app.config import load_config, make_paths_absolute
from app.evaluation.metrics import compute_bleu4, find_best_constant_caption
from app.jobs.cluster import connect
from app.jobs.evaluate import evaluate_both
from app.jobs.job import require_workers
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
"""What the `list` style says of a scene: every mention, in order, must be right for a field to count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = arguments.json.parent.absolute() / "learning"
    prepare_dataset([f"scenes:{SCENES}:{SEED}:list"], PrepareConfig(out=str(folder / "shards")))
    config = make_paths_absolute(
        load_config(
            "demo",
            {
                "data.shards": str(folder / "shards"), "data.sequence_tokens": 512, "data.max_validation_examples": 200,
                "train.output_dir": str(folder), "train.run_name": f"learning-{int(time.time())}",
                "train.max_steps": 500, "train.eval_steps": 100, "train.save_steps": 100,
                "optim.learning_rate": 2e-3, "tracking.uri": f"sqlite:///{folder}/mlflow.db",
                "evaluate.max_captions": 200,
            },
        )
    )  # fmt: skip
    check_tracking(config.tracking)
    with connect():
        require_workers(config, config.scaling.num_workers)
        adapter = train_job(config, open_shards(config.data.shards)).adapter
        assert adapter is not None
        rows, base, tuned = evaluate_both(config, open_shards(config.data.shards), adapter)
    references = [row.caption for row in rows]
    constant, constant_bleu4 = find_best_constant_caption(
        open_shards(config.data.shards).captions("train"), references
    )
    figures = {"bleu4_tuned": compute_bleu4(tuned.captions, references), "bleu4_base": compute_bleu4(base.captions, references),
               "bleu4_constant": constant_bleu4}  # fmt: skip
    candidates: dict[str, Callable[[int], str]] = {
        "tuned": lambda i: tuned.captions[i], "base": lambda i: base.captions[i], "constant": lambda _: constant,
    }  # fmt: skip
    for who, caption in candidates.items():
        for field, pattern in FIELDS.items():
            named = [(re.findall(pattern, reference), re.findall(pattern, caption(i)))
                     for i, reference in enumerate(references)]  # fmt: skip
            scored = [truth == said for truth, said in named if truth]
            figures[f"{field}_accuracy_{who}"] = sum(scored) / len(scored)
        figures[f"field_accuracy_{who}"] = sum(
            figures[f"{field}_accuracy_{who}"] for field in FIELDS
        ) / len(FIELDS)
    report = {"figures": figures, "num_captions": len(rows), "eval_loss_before": base.eval_loss,
              "eval_loss_after": tuned.eval_loss, "constant_caption": constant,
              "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for i in range(5):
        print(
            f"\nreference  {references[i]}\nbase       {base.captions[i]}\ntuned      {tuned.captions[i]}"
        )


if __name__ == "__main__":
    main()
