"""Every allowed attention keeps the documents of a micro-batch apart, whatever its size.

flash-attn runs on GPUs only. Here its two functions are references by the definition, under
transformers' own code that chooses between them.
"""

from typing import get_args

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from torch.nn.functional import pad

from app.gemma.config import ModelConfig
from app.gemma.load import unwrap_gemma
from data_pipeline.stream.encode import IGNORE_INDEX
from data_pipeline.stream.pack import pack_examples
from tests.reference import furthest, jogged, loss_and_gradients, naive, packed
from tests.tiny import examples, objective, save_model

IMPLEMENTATIONS = get_args(ModelConfig.model_fields["attention"].annotation)
LENGTH = 60


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
):  # fmt: skip
    """flash-attn's function for documents [tokens, H, D] that begin at `cu_seqlens_q`."""
    lengths = cu_seqlens_q.diff()
    assert causal
    assert dropout_p == 0.0
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert int(lengths.max()) == int(max_seqlen_q) == int(max_seqlen_k)
    attended = naive(
        *(tensor[None].transpose(1, 2) for tensor in (q, k, v)),
        scale=softmax_scale,
        softcap=softcap or None,
        window=None if window_size[0] < 0 else window_size[0] + 1,
        document_ids=packed(lengths.tolist()),
    )
    return attended.transpose(1, 2)[0]


def flash_attn_func(q, k, v, **options):
    """flash-attn's function for sequences [B, S, H, D] of one document each."""
    batch, length = q.shape[:2]
    ends = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32)
    flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
    attended = flash_attn_varlen_func(*flat, ends, ends, length, length, **options)
    return attended.unflatten(0, (batch, length))


@pytest.fixture
def flash_attn(monkeypatch):
    """Let transformers' flash attention call the two references."""
    monkeypatch.setattr(flash, "_loaded_implementation", "flash_attention_2")
    monkeypatch.setattr(flash, "_flash_fn", flash_attn_func)
    monkeypatch.setattr(flash, "_flash_varlen_fn", flash_attn_varlen_func)
    process = flash._lazy_define_process_function(flash_attn_varlen_func)
    monkeypatch.setattr(flash, "_process_flash_kwargs_fn", process)


@pytest.fixture(scope="module")
def loss(tmp_path_factory):
    return jogged(objective(save_model(tmp_path_factory.mktemp("model")), kind="none"))


def micro_batch(*sequences):
    """Return the padded tensors of packed sequences."""
    columns = {"input_ids": 0, "position_ids": 0, "targets": IGNORE_INDEX}
    return {
        name: torch.stack(
            [
                pad(torch.from_numpy(column), (0, LENGTH - len(column)), value=fill)
                for column in (getattr(sequence, name) for sequence in sequences)
            ]
        ).long()
        for name, fill in columns.items()
    }


DOCUMENTS = examples(9, seed=4)
PACKED = pack_examples(DOCUMENTS, LENGTH)[:2]
(FULL,) = pack_examples(DOCUMENTS[:3], LENGTH)
(SINGLE,) = pack_examples(DOCUMENTS[:1], LENGTH)
(EMPTY,) = (type(SINGLE)(*(column[:0] for column in (SINGLE.input_ids,) * 3), ()),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's and transformers' own
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "sequences",
    [[PACKED[0]], [SINGLE], [*PACKED, FULL], [SINGLE, SINGLE, PACKED[0]], [PACKED[1], EMPTY, FULL]],
    ids=["1 packed", "1 document", "3 packed", "3 with single documents", "3 with an empty one"],
)
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_no_document_sees_another_one(loss, flash_attn, attention, sequences):
    batch = micro_batch(*sequences)
    config = unwrap_gemma(loss.model).config

    config._attn_implementation = "eager"
    parts = [
        loss_and_gradients(loss, micro_batch(sequence))
        for sequence in sequences
        if sequence.members
    ]
    whole = loss_and_gradients(loss, batch)
    assert whole[0] == pytest.approx(sum(value for value, _ in parts), rel=1e-5)

    config._attn_implementation = attention
    if attention == "flex_attention":  # on a CPU it has no backward pass
        # its mask counts here, so torch computes by it without a kernel of its own
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            assert float(loss(**batch)[0]) == pytest.approx(whole[0], rel=1e-5)
    else:
        assert furthest(loss_and_gradients(loss, batch), whole) < 1e-4
