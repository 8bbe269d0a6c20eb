"""Sections `optim`, `train`, `parallel`, `scaling`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Strategy = Literal["ddp", "zero2", "fsdp"]


class OptimConfig(BaseModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its learning-rate schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="moments in fp32; or in 8 bits (bitsandbytes, arXiv:2110.02861); or these in memory that a GPU "
        "moves to the host when it is short of its own",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4, description="peak learning rate"
    )
    schedule: Literal["cosine_with_restarts", "cosine", "linear", "constant"] = Field(
        "cosine_with_restarts",
        description="shape after the warm-up, as a function of the job's progress",
    )
    restarts: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="cosine cycles of `cosine_with_restarts` (1: no restart inside the job)"
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="share of the job in which the learning rate rises linearly from 0"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="decoupled weight decay"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="decay of the first moment")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.95, description="decay of the second moment"
    )
    epsilon: Annotated[float, Field(gt=0)] = Field(
        1e-8, description="added to the root of the second moment"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        0.5, description="global gradient norm above which gradients are scaled down"
    )


class TrainConfig(BaseModel):
    """How long, in what portions, how often measured and saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_name: str = Field(
        "svgscribe", min_length=1, pattern=r"^[A-Za-z0-9._-]+$",
        description="the job's name; the same name continues the job from its last checkpoint",
    )  # fmt: skip
    output_dir: str = Field(
        "outputs", description="folder or URI that keeps checkpoints and reports"
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="passes over the train split"
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop after N optimizer steps (steps); null: after all epochs"
    )
    micro_batch_rows: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="packed rows in one forward pass of one worker (rows)"
    )
    accumulation: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1, description="micro-batches of each worker in one optimizer step"
    )
    evaluate_every_steps: Annotated[int, Field(ge=1)] = Field(
        10, description="optimizer steps between evaluations on the validation split (steps)"
    )
    save_every_steps: Annotated[int, Field(ge=1)] | None = Field(
        10,
        description="optimizer steps between checkpoints (steps), a multiple of evaluate_every_steps; null: none",
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        10, description="evaluations without a gain after which the job ends; null: never"
    )
    early_stopping_threshold: Annotated[float, Field(ge=0)] = Field(
        0.0005, description="drop of the evaluation loss that counts as a gain (nats per token)"
    )
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(
        2, description="checkpoints kept: the best by evaluation loss; the newest is kept besides"
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16",
        description="dtype of matrix products; fp16, for cards without bf16, scales the loss and keeps the residual "
        "stream in fp32",
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="what a step does whose loss or gradient is not finite; either way it is reported",
    )
    tf32: bool = Field(True, description="allow TF32 in fp32 matrix products on GPUs that have it")
    compile: bool = Field(False, description="torch.compile the model")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="seed of adapter weights and dropout"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="restarts of the worker group from its last checkpoint before the job fails"
    )

    @model_validator(mode="after")
    def _saved_when_evaluated(self) -> Self:
        if self.save_every_steps is not None and self.save_every_steps % self.evaluate_every_steps:
            raise ValueError(
                f"save_every_steps={self.save_every_steps} must be a multiple of "
                f"evaluate_every_steps={self.evaluate_every_steps}: the best checkpoint is chosen by evaluation loss"
            )
        return self


class ParallelConfig(BaseModel):
    """How the workers share one optimizer step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Field(
        "ddp",
        description="what is cut over the workers: ddp nothing, zero2 the trained weights with gradients and optimizer "
        "moments, fsdp the frozen base as well; losses and checkpoints are the same",
    )
    timeout_seconds: Annotated[int, Field(ge=10)] = Field(
        1800, description="longest wait for another worker in a collective operation (seconds)"
    )


class ScalingConfig(BaseModel):
    """What Ray reserves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: Annotated[int, Field(ge=1, le=4096)] = Field(2, description="training workers")
    use_gpu: bool = Field(False, description="one GPU per worker (NCCL); otherwise CPU (gloo)")
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] = Field(
        0.5, description="CPUs that Ray reserves for one worker; leave room for the data tasks"
    )
    threads_per_worker: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="torch threads of one worker (threads)"
    )
    wait_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0, description="how long an autoscaler may take to bring the missing CPUs or GPUs (seconds)"
    )
