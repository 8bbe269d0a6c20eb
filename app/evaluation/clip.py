"""CLIPScore: how well a caption fits the picture, without a reference (Hessel et al. 2021).

arXiv:2104.08718, §3. The user names the weights: no CLIP model is shipped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, CLIPModel, CLIPProcessor

from app.errors import UserError
from app.evaluation.bootstrap import Array
from app.evaluation.render import draw_all

PREFIX = "A photo depicts "
"""Words before each caption, as in the paper."""
BATCH = 32


def check_clip_model(name: str) -> None:
    """Raise UserError if `name` is not the folder or hub name of a CLIP model."""
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"evaluate.clip_model={name} cannot be read ({reason}): give the folder or the hub "
            "name of a CLIP model"
        ) from error
    if kind != "clip":
        raise UserError(
            f"evaluate.clip_model={name} is a {kind} model: give the folder or the hub name of a "
            "CLIP model"
        )


@torch.no_grad()
def compute_clip_cosines(
    name: str,
    svgs: Sequence[str],
    captions: Mapping[str, Sequence[str]],
    device: torch.device,
) -> dict[str, Array]:
    """Return max(cosine, 0) of each drawing and its caption, for each list of captions: [N] each.

    `name` is the folder or hub name of a CLIP model. The cosine of a drawing that cannot be drawn
    is NaN. A caption is cut to the length of CLIP's text model.
    """
    model: Any = CLIPModel.from_pretrained(name).eval()
    model.to(device)
    processor = CLIPProcessor.from_pretrained(name)
    pictures = list(draw_all(svgs, model.config.vision_config.image_size))
    drawn = [i for i, picture in enumerate(pictures) if picture is not None]

    cosines = {kind: np.full(len(svgs), np.nan) for kind in captions}
    for first in range(0, len(drawn), BATCH):
        part = drawn[first : first + BATCH]
        images = processor(images=[pictures[i] for i in part], return_tensors="pt")
        image_embeds = model.get_image_features(**images.to(device)).pooler_output

        for kind, texts in captions.items():
            words = processor(
                text=[PREFIX + texts[i] for i in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
            )
            text_embeds = model.get_text_features(**words.to(device)).pooler_output
            cosine = torch.nn.functional.cosine_similarity(image_embeds, text_embeds)
            cosines[kind][part] = cosine.clamp(min=0).double().cpu().numpy()
    return cosines
