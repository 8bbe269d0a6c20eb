"""Pictures of drawings, the nearest training drawing, and CLIPScore."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from app.errors import UserError
from app.evaluation import render
from app.evaluation.clip import PREFIX, check_clip_model, compute_clip_cosines
from app.evaluation.nearest import copy_nearest_captions, draw_thumbnails, find_nearest
from app.evaluation.render import Renderer, draw_all
from app.gemma.base_model import TINY
from data_pipeline.sources.scenes import generate_scenes

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 128">'
RED = f'{HEAD}<rect width="256" height="128" fill="red"/></svg>'
BROKEN = f"{HEAD}<rect"
SVGS = [str(scene.svg) for scene in generate_scenes(6, seed=2)]


def test_a_drawing_keeps_its_proportions_in_the_middle_of_a_white_square() -> None:
    (picture,) = draw_all([RED], 32)
    assert picture is not None
    assert picture.shape == (32, 32, 3)
    assert (picture[8:24] == [255, 0, 0]).all()
    assert (picture[:8] == 255).all()
    assert (picture[24:] == 255).all()


@pytest.fixture
def renderer():
    made = Renderer(16)
    yield made
    made.close()


def test_a_drawing_that_cannot_be_drawn_gives_none(renderer: Renderer) -> None:
    assert renderer.draw(BROKEN) is None
    assert renderer.draw(RED) is not None


def test_a_process_that_dies_or_hangs_is_replaced(renderer, monkeypatch) -> None:
    before = renderer.draw(RED)
    first = renderer._process.pid

    # it dies between two drawings
    renderer._process.kill()
    renderer._process.wait()
    assert (renderer.draw(RED) == before).all()
    second = renderer._process.pid

    # it hangs
    os.kill(second, signal.SIGSTOP)
    monkeypatch.setattr(render, "SECONDS", 0.2)
    assert renderer.draw(RED) is None
    monkeypatch.undo()
    assert (renderer.draw(RED) == before).all()
    assert len({first, second, renderer._process.pid}) == 3


def test_a_drawing_that_needs_too_much_memory_gives_none(renderer, monkeypatch) -> None:
    huge = f"{HEAD}{' ' * 60_000_000}</svg>"
    monkeypatch.setattr(render, "MEMORY_BYTES", 250_000_000)
    assert renderer.draw(RED) is not None
    first = renderer._process.pid
    assert renderer.draw(huge) is None
    assert renderer.draw(RED) is not None
    assert renderer._process.pid != first


def test_the_nearest_drawing_is_that_of_the_least_distance() -> None:
    random = np.random.default_rng(0)
    candidates, thumbnails = (random.random((n, 1024), np.float32) for n in (40, 600))
    distances = ((thumbnails[:, None] - candidates) ** 2).sum(axis=2)
    assert find_nearest(thumbnails, candidates) == distances.argmin(axis=1).tolist()


def test_a_drawing_gets_the_caption_of_the_training_drawing_that_looks_like_it() -> None:
    train = [(svg, f"caption {i}") for i, svg in enumerate(SVGS)]
    nearly = SVGS[3].replace("</svg>", '<circle cx="9" cy="9" r="4"/></svg>')
    copied = copy_nearest_captions([SVGS[5], nearly, SVGS[0]], train)
    assert copied == ["caption 5", "caption 3", "caption 0"]


def test_a_drawing_that_cannot_be_drawn_is_an_empty_page() -> None:
    assert draw_thumbnails([BROKEN]).min() == 1
    assert draw_thumbnails([]).shape == (0, 1024)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with random weights, and a tokenizer of bytes."""
    folder: Path = tmp_path_factory.mktemp("clip")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=40)

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 40, "bos_token_id": 512}
    text |= {"eos_token_id": 513, "pad_token_id": 513}
    vision = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=small | text, vision_config=small | vision, projection_dim=16)
    ).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def test_clip_cosines_are_those_of_transformers(clip: str) -> None:
    captions = ["a red circle", "two blue squares " * 9, "a star", "", "a ring", "x"]
    found = compute_clip_cosines(
        clip, SVGS, {"given": captions, "reversed": captions[::-1]}, torch.device("cpu")
    )

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    inputs = processor(
        text=[PREFIX + caption for caption in captions],
        images=[*draw_all(SVGS, 32)],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=40,
    )
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
    expected = cosines.clamp(min=0).numpy()
    np.testing.assert_allclose(found["given"], expected.diagonal(), atol=1e-6)
    np.testing.assert_allclose(found["reversed"], expected[:, ::-1].diagonal(), atol=1e-6)
    assert (expected > 0).any()


def test_a_drawing_that_cannot_be_drawn_has_no_clip_cosine(clip: str) -> None:
    drawings = [SVGS[0], BROKEN, SVGS[1]]
    found = compute_clip_cosines(clip, drawings, {"given": ["a"] * 3}, torch.device("cpu"))
    assert np.isnan(found["given"]).tolist() == [False, True, False]


def test_a_model_that_is_not_clip_is_refused_in_one_sentence(clip: str, tmp_path: Path) -> None:
    check_clip_model(clip)
    with pytest.raises(UserError, match="is a gemma2 model: give") as error:
        check_clip_model(str(TINY))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"clip_model=\S* cannot be read") as error:
        check_clip_model(str(tmp_path))
    assert "\n" not in str(error.value)
