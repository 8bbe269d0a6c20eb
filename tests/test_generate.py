"""Batched greedy decoding, against decoding each drawing without padding, cache or batch."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.evaluation.caption_cache import plan_batches
from app.evaluation.generate import generate_captions, generate_outputs
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import add_lora, evaluation_mode, load_base_model
from data_pipeline.stream.encode import PromptEncoder

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
SVGS = [f"<svg><path d='M{8 * i} {'1 2 3 ' * i}'/></svg>" for i in (3, 0, 6, 1, 5, 4, 2)]
MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """One token per printable ASCII character."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokens = [*CONTROL, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return PromptEncoder(str(folder), "Describe:")


@pytest.fixture(scope="module")
def model() -> Gemma2ForCausalLM:
    """A random Gemma 2 in fp32, so that all batches round alike.

    The weights are so large that its captions differ. The embeddings are untied, because with tied
    embeddings a random model repeats its last token.
    """
    torch.set_num_threads(1)  # on a busy machine two threads take minutes where one takes seconds
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=103,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=30.0,
        initializer_range=0.3,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config).eval()


@torch.no_grad()
def alone(model: nn.Module, encoder: PromptEncoder, svg: str) -> str:
    """Caption one drawing by running the whole prompt again for every token (the oracle)."""
    ids = encoder.encode_prompt(svg)
    start = len(ids)
    while len(ids) < start + MAX_NEW_TOKENS:
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in encoder.stop_ids:
            break
        ids.append(token)
    return encoder.decode(ids[start:]).strip()


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_any_batch_gives_the_captions_of_drawings_decoded_alone(
    model: Gemma2ForCausalLM, encoder: PromptEncoder, batch: int
) -> None:
    batches: list[dict[int, str]] = []
    captions = generate_captions(
        model,
        encoder,
        SVGS,
        batch_size=batch,
        max_new_tokens=MAX_NEW_TOKENS,
        on_batch=batches.append,
    )
    assert captions == [alone(model, encoder, svg) for svg in SVGS]
    finished = dict(chain.from_iterable(each.items() for each in batches))
    assert [finished[i] for i in range(len(SVGS))] == captions
    assert sum(map(len, batches)) == len(SVGS)
    assert max(map(len, batches)) == min(batch, len(SVGS))
    # The test needs captions that differ, some with a stop id and some cut at the limit.
    assert len(set(captions)) == len(SVGS)
    assert min(map(len, captions)) < MAX_NEW_TOKENS - 4
    assert max(map(len, captions)) >= MAX_NEW_TOKENS - 4


@pytest.mark.parametrize("max_cache_tokens", [1, 150, 250])
def test_a_small_cache_gives_the_captions_of_transformers(
    model: Gemma2ForCausalLM, encoder: PromptEncoder, max_cache_tokens: int
) -> None:
    captions = generate_captions(
        model,
        encoder,
        SVGS,
        batch_size=100,
        max_new_tokens=MAX_NEW_TOKENS,
        max_cache_tokens=max_cache_tokens,
    )
    theirs = []
    for svg in SVGS:
        ids = torch.tensor([encoder.encode_prompt(svg)])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=list(encoder.stop_ids),
            pad_token_id=encoder.pad_id,
        )
        theirs.append(encoder.decode(made[0, ids.shape[1] :].tolist()).strip())
    assert captions == theirs
    assert model.config._attn_implementation == "eager"


def test_an_output_says_if_the_model_ended_it(
    model: Gemma2ForCausalLM, encoder: PromptEncoder
) -> None:
    prompts = [encoder.encode_prompt(svg) for svg in SVGS]
    outputs = generate_outputs(model, encoder, prompts, batch_size=4, max_new_tokens=MAX_NEW_TOKENS)
    # run each prompt with its answer again: the next token after a finished answer is a stop id
    is_finished = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + MAX_NEW_TOKENS and ids[-1] not in encoder.stop_ids:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        is_finished.append(ids[-1] in encoder.stop_ids)
    assert [output.is_finished for output in outputs] == is_finished
    assert set(is_finished) == {True, False}


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is made."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return out


def test_a_long_prompt_makes_no_scores_of_all_pairs_of_tokens(
    model: Gemma2ForCausalLM, encoder: PromptEncoder
) -> None:
    svg = f"<svg><path d='M0 0{'1 2 3 ' * 250}'/></svg>"
    num_tokens = len(encoder.encode_prompt(svg))
    with LargestTensor() as largest:
        generate_captions(model, encoder, [svg] * 3, batch_size=3, max_new_tokens=2)
    assert num_tokens > 1500
    # the widest tensor of a layer is the cache of three prompts
    assert largest.num_elements == 3 * 2 * 32 * (num_tokens + 2) < num_tokens**2


def test_a_prompt_is_cut_at_the_end_of_its_drawing(
    model: Gemma2ForCausalLM, encoder: PromptEncoder
) -> None:
    whole = encoder.encode_prompt(SVGS[2])
    cut = encoder.encode_prompt(SVGS[2], len(whole) - 9)
    assert cut == encoder.encode_prompt(SVGS[2][:-9])
    assert encoder.encode_prompt(SVGS[2], len(whole)) == whole
    captions = generate_captions(
        model,
        encoder,
        [SVGS[2]],
        batch_size=1,
        max_new_tokens=MAX_NEW_TOKENS,
        max_prompt_tokens=len(cut),
    )
    assert captions == [alone(model, encoder, SVGS[2][:-9])]


@given(
    lengths=st.lists(st.integers(1, 60), max_size=12),
    max_prompts=st.integers(1, 5),
    max_cache_tokens=st.integers(1, 200),
)
def test_batches_hold_every_prompt_once_within_both_limits(
    lengths: list[int], max_prompts: int, max_cache_tokens: int
) -> None:
    batches = plan_batches(
        lengths, max_prompts=max_prompts, max_new_tokens=7, max_cache_tokens=max_cache_tokens
    )
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        slots = len(batch) * (max(lengths[i] for i in batch) + 7)
        assert len(batch) <= max_prompts
        assert len(batch) == 1 or slots <= max_cache_tokens
    # no batch has room for the next prompt
    for batch in batches[:-1]:
        slots = (len(batch) + 1) * (lengths[batch[0]] + 7)
        assert len(batch) == max_prompts or slots > max_cache_tokens


def test_no_drawings_no_captions(model: Gemma2ForCausalLM, encoder: PromptEncoder) -> None:
    assert generate_captions(model, encoder, [], batch_size=4, max_new_tokens=MAX_NEW_TOKENS) == []


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT calls it
def test_an_adapter_on_a_4_bit_base_captions_alike_and_stays_as_it_was(
    model: Gemma2ForCausalLM, encoder: PromptEncoder, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    base = load_base_model(
        ModelConfig(name=str(tmp_path)),
        QuantizationConfig(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    tuned = add_lora(base, LoraConfig(dropout=0.5), seed=0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    tuned.train()
    weights = {name: value.clone() for name, value in tuned.state_dict().items()}
    with evaluation_mode(tuned):
        modes = [module.training for module in tuned.modules()]
        captions = generate_captions(
            tuned, encoder, SVGS, batch_size=3, max_new_tokens=MAX_NEW_TOKENS
        )
        assert captions == [alone(tuned, encoder, svg) for svg in SVGS]
        assert [module.training for module in tuned.modules()] == modes
    assert len(set(captions)) == len(SVGS)
    assert captions != generate_captions(
        model, encoder, SVGS, batch_size=3, max_new_tokens=MAX_NEW_TOKENS
    )
    after = tuned.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
