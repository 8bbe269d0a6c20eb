"""Configuration sections `optim`, `train`, `parallel` and `scaling`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Strategy = Literal["ddp", "zero2", "fsdp"]


class OptimConfig(BaseModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its learning-rate schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="optimizer: adamw keeps its moments in fp32, adamw_8bit in 8 bits "
        "(bitsandbytes, arXiv:2110.02861), paged_adamw_8bit in 8 bits in memory that CUDA moves "
        "to the host when GPU memory runs short",
        json_schema_extra={"counterpart": "TrainingArguments.optim"},
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4,
        description="peak learning rate",
        json_schema_extra={"counterpart": "TrainingArguments.learning_rate"},
    )
    schedule: Literal["cosine_with_restarts", "cosine", "linear", "constant"] = Field(
        "cosine_with_restarts",
        description="shape of the learning rate after the warm-up, as a function of the job's "
        "progress",
        json_schema_extra={"counterpart": "TrainingArguments.lr_scheduler_type"},
    )
    num_cycles: Annotated[int, Field(ge=1, le=100)] = Field(
        1,
        description="number of cosine cycles of cosine_with_restarts (1: no restart)",
        json_schema_extra={
            "counterpart": "get_cosine_with_hard_restarts_schedule_with_warmup.num_cycles"
        },
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05,
        description="share of the job, at its start, in which the learning rate rises linearly "
        "from 0",
        json_schema_extra={"counterpart": "TrainingArguments.warmup_steps"},
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="coefficient of the decoupled weight decay",
        json_schema_extra={"counterpart": "TrainingArguments.weight_decay"},
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9,
        description="decay of the first moment per step",
        json_schema_extra={"counterpart": "TrainingArguments.adam_beta1"},
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.95,
        description="decay of the second moment per step",
        json_schema_extra={"counterpart": "TrainingArguments.adam_beta2"},
    )
    epsilon: Annotated[float, Field(gt=0)] = Field(
        1e-8,
        description="number added to the root of the second moment, against division by 0",
        json_schema_extra={"counterpart": "TrainingArguments.adam_epsilon"},
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        0.5,
        description="global gradient norm to which larger gradients are scaled down",
        json_schema_extra={"counterpart": "TrainingArguments.max_grad_norm"},
    )

    @model_validator(mode="after")
    def _require_restarts_for_cycles(self) -> Self:
        if self.num_cycles != 1 and self.schedule != "cosine_with_restarts":
            raise ValueError(
                f"optim.num_cycles={self.num_cycles} does nothing with optim.schedule="
                f"{self.schedule}: set optim.schedule=cosine_with_restarts, or optim.num_cycles=1"
            )
        return self


class TrainConfig(BaseModel):
    """Length of the job, batch sizes, evaluation, checkpoints, precision and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_name: str = Field(
        "svgscribe",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$",
        description="name of the job: letters, digits, _, - and ., the first a letter, a digit or "
        "_; the same name continues the job from its last checkpoint",
        json_schema_extra={"counterpart": "TrainingArguments.run_name"},
    )
    output_dir: str = Field(
        "outputs",
        description="folder or URI for checkpoints and reports",
        json_schema_extra={"counterpart": "TrainingArguments.output_dir"},
    )
    num_epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1,
        description="passes over the train split (epochs)",
        json_schema_extra={"counterpart": "TrainingArguments.num_train_epochs"},
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="length of the job (optimizer steps); the job and its schedule end with the "
        "data of all epochs if that is earlier; null: all epochs",
        json_schema_extra={"counterpart": "TrainingArguments.max_steps"},
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        1,
        description="packed sequences in one forward pass of one worker (sequences)",
        json_schema_extra={"counterpart": "TrainingArguments.per_device_train_batch_size"},
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1,
        description="micro-batches of each worker in one optimizer step (micro-batches)",
        json_schema_extra={"counterpart": "TrainingArguments.gradient_accumulation_steps"},
    )
    eval_steps: Annotated[int, Field(ge=1)] = Field(
        10,
        description="interval between evaluations on the validation split (optimizer steps)",
        json_schema_extra={
            "counterpart": "TrainingArguments.eval_steps, TrainingArguments.eval_strategy"
        },
    )
    save_steps: Annotated[int, Field(ge=1)] | None = Field(
        10,
        description="interval between checkpoints (optimizer steps), a multiple of eval_steps; "
        "null: no checkpoints",
        json_schema_extra={"counterpart": "TrainingArguments.save_steps"},
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        10,
        description="the job ends after this number of evaluations since the last gain "
        "(evaluations); "
        "null: no early stopping",
        json_schema_extra={"counterpart": "EarlyStoppingCallback.early_stopping_patience"},
    )
    early_stopping_threshold: Annotated[float, Field(ge=0)] = Field(
        0.0005,
        description="drop of the evaluation loss that counts as a gain if it is exceeded; smaller "
        "drops add up (nats per token)",
        json_schema_extra={"counterpart": "EarlyStoppingCallback.early_stopping_threshold"},
    )
    save_total_limit: Annotated[int, Field(ge=1)] = Field(
        2,
        description="number of checkpoints kept, the best by evaluation loss; the newest is "
        "always kept",
        json_schema_extra={"counterpart": "TrainingArguments.save_total_limit"},
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="dtype of matrix products; auto: that of the job's newest checkpoint, "
        "otherwise bf16 on GPUs and on CPUs that multiply bf16, fp32 on other CPUs; fp16 is for "
        "GPUs without bf16: it scales the loss and keeps the residual stream in fp32",
        json_schema_extra={
            "counterpart": "TrainingArguments.bf16, TrainingArguments.fp16, "
            "from_pretrained.dtype, BitsAndBytesConfig.bnb_4bit_compute_dtype"
        },
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="action after a step whose loss or gradient is not finite: stop the job, or "
        "skip the step; both print the step and the layer",
    )
    tf32: bool = Field(
        True,
        description="allow TF32 in fp32 matrix products, on GPUs that support it",
        json_schema_extra={"counterpart": "TrainingArguments.tf32"},
    )
    compile: bool = Field(
        False,
        description="compile the model with torch.compile",
        json_schema_extra={"counterpart": "TrainingArguments.torch_compile"},
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="random seed of adapter weights and dropout",
        json_schema_extra={"counterpart": "TrainingArguments.seed"},
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3,
        description="number of restarts of the worker group from its last checkpoint before the "
        "job fails; restarts after a cloud took back a spot node do not count",
    )

    @model_validator(mode="after")
    def _require_save_with_evaluation(self) -> Self:
        if self.save_steps is not None and self.save_steps % self.eval_steps:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of "
                f"eval_steps={self.eval_steps}: the best checkpoint is chosen by evaluation loss"
            )
        return self


class ParallelConfig(BaseModel):
    """Distribution of one optimizer step over the workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Field(
        "ddp",
        description="tensors sharded over the workers: ddp none, zero2 the trained weights with "
        "their gradients and optimizer moments, fsdp the frozen base model as well; losses and "
        "checkpoints are the same",
        json_schema_extra={"counterpart": "TrainingArguments.fsdp, TrainingArguments.deepspeed"},
    )
    timeout_seconds: Annotated[int, Field(ge=10)] = Field(
        1800,
        description="longest wait for another worker in a collective operation (seconds)",
        json_schema_extra={"counterpart": "TrainingArguments.ddp_timeout"},
    )


class ScalingConfig(BaseModel):
    """Workers, and the CPUs and GPUs that Ray reserves for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: Annotated[int, Field(ge=1, le=4096)] = Field(
        2, description="number of training workers"
    )
    use_gpu: bool = Field(
        False, description="train on GPUs (NCCL), each worker on one; otherwise on CPUs (gloo)"
    )
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of a GPU, and of its memory, that Ray reserves for one worker (GPUs); "
        "0.25: four trials, or four workers of an evaluation, share a card; CPU runs ignore it",
    )
    cpus_per_worker: Annotated[float, Field(gt=0, le=256)] = Field(
        0.5,
        description="CPUs that Ray reserves for one worker (CPUs); leave some for the data tasks",
    )
    threads_per_worker: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="number of torch threads of one worker (threads)"
    )
    wait_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        0,
        description="longest wait for an autoscaler to add the missing CPUs or GPUs (seconds)",
    )

    @property
    def reserved_gpus(self) -> float:
        """GPUs that Ray reserves for one worker: 0 on CPUs."""
        return self.gpus_per_worker if self.use_gpu else 0.0

    @property
    def worker_resources(self) -> dict[str, float]:
        """Resources that Ray reserves for one worker."""
        gpu = {"GPU": self.reserved_gpus} if self.use_gpu else {}
        return {"CPU": self.cpus_per_worker, **gpu}
