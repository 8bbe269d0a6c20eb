"""Tokenised examples on disk, so that a text is encoded once whatever runs over it. Knows no shards and no Ray.

A file is named after the content of all that its tokens depend on, and begins with a checksum over name and
tokens: one that was damaged, cut short or put there by something else is encoded anew.
"""

import hashlib
import uuid
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem
from data_pipeline.stream.encode import Example, PromptEncoder

_CHECKSUM_BYTES = 32


def encode_cached(
    encoder: PromptEncoder, pairs: Sequence[tuple[str, str]], folder: str
) -> list[Example]:
    """`encoder.encode_batch(pairs)`, read from the folder if it is there, else put there.

    Any number of processes may share the folder. Raises DataError when it cannot be read or written.
    """
    name = _name(encoder, pairs)
    fs, path = open_filesystem(folder)
    try:
        content = _read(fs, path, name)
        if content is None:
            examples = encoder.encode_batch(pairs)
            _write(fs, path, name, _to_bytes(examples))
            return examples
    except OSError as error:
        raise DataError(
            f"cannot use data.cache_dir={folder!r}: {error}; choose another folder, or null"
        ) from error
    return _from_bytes(content)


def _read(fs: pyarrow.fs.FileSystem, path: str, name: str) -> bytes | None:
    file = f"{path}/{name}.tokens"
    try:
        with fs.open_input_stream(file) as stream:
            found = bytes(stream.read())
    except FileNotFoundError:
        return None
    content = found[_CHECKSUM_BYTES:]
    if found[:_CHECKSUM_BYTES] != _checksum(name, content):
        warnings.warn(
            f"{file} does not hold what was written there: it is encoded anew", stacklevel=3
        )
        return None
    return content


def _write(fs: pyarrow.fs.FileSystem, path: str, name: str, content: bytes) -> None:
    partial = f"{path}/.{name}-{uuid.uuid4().hex}"  # its own, so that writers of the same file do not meet
    fs.create_dir(path, recursive=True)
    with fs.open_output_stream(partial) as stream:
        stream.write(_checksum(name, content) + content)
    fs.move(partial, f"{path}/{name}.tokens")


def _name(encoder: PromptEncoder, pairs: Sequence[tuple[str, str]]) -> str:
    digest = hashlib.blake2b(encoder.fingerprint, digest_size=20)
    for pair in pairs:
        for text in pair:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES, key=name.encode()).digest()


def _to_bytes(examples: Sequence[Example]) -> bytes:
    """int32, little-endian: number of examples, tokens of each, prompt tokens of each, all tokens."""
    sizes = [len(example.input_ids) for example in examples]
    prompts = [example.num_prompt_tokens for example in examples]
    head = np.array([len(examples), *sizes, *prompts], "<i4")
    return b"".join(
        [head.tobytes(), *(example.input_ids.astype("<i4").tobytes() for example in examples)]
    )


def _from_bytes(content: bytes) -> list[Example]:
    numbers: npt.NDArray[np.int32] = np.frombuffer(content, "<i4").astype(np.int32)
    count = int(numbers[0])
    sizes, prompts, tokens = (
        numbers[1 : 1 + count],
        numbers[1 + count : 1 + 2 * count],
        numbers[1 + 2 * count :],
    )
    parts = np.split(tokens, np.cumsum(sizes)[:-1])
    return [Example.from_ids(ids, int(prompt)) for ids, prompt in zip(parts, prompts, strict=True)]
