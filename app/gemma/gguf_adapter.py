"""Write and read an adapter in llama.cpp's format (GGUF), as its `convert_lora_to_gguf.py` does.

The format holds LoRA factors only, no trained embeddings.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import torch
from torch import Tensor

from app.gemma.merge import PREFIX


def write_gguf_adapter(
    file: Path, adapter: Mapping[str, Tensor], *, alpha: float, num_layers: int, name: str
) -> None:
    """Write the factors of `adapter` (PEFT's names) in fp32; llama.cpp scales by alpha / rank."""
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GEMMA2])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    names = _map_names(adapter, num_layers)
    for key, weight in adapter.items():
        writer.add_tensor(names[key], weight.float().contiguous().numpy())

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf_adapter(
    file: Path, keys: Iterable[str], num_layers: int
) -> tuple[float, dict[str, Tensor]]:
    """Return alpha and the weights of a file by PEFT's names; `keys` are those that it holds."""
    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = {
        key: torch.tensor(stored[name]) for key, name in _map_names(keys, num_layers).items()
    }
    field = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    assert field is not None
    return float(field.contents()), weights


def _map_names(keys: Iterable[str], num_layers: int) -> dict[str, str]:
    """Return llama.cpp's name of each weight, such as `blk.0.attn_q.weight.lora_a`."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA2, num_layers)
    names = {}
    for key in keys:
        module, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        names[key] = f"{table.get_name(module)}.weight.{factor.lower()}"
    return names
