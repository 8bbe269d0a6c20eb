"""Cache of tokenised examples on disk: each text is encoded once.

The name of a file is a hash of everything that its tokens depend on. The file begins with a
checksum of its name and its tokens. The texts are encoded again if the file is damaged, cut short
or written by another program.
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
    """Return `encoder.encode_batch(pairs)` from the folder; encode and store the pairs if missing.

    Any number of processes may share the folder. Raises DataError if the folder cannot be read or
    written.
    """
    name = _hash_inputs(encoder, pairs)
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
    """Return the tokens in a file as bytes; None if there is no such file, or a damaged one."""
    file = f"{path}/{name}.tokens"
    try:
        with fs.open_input_stream(file) as stream:
            found = bytes(stream.read())
    except FileNotFoundError:
        return None

    checksum, content = found[:_CHECKSUM_BYTES], found[_CHECKSUM_BYTES:]
    if checksum != _compute_checksum(name, content):
        warnings.warn(f"{file} is damaged: its texts are encoded again", stacklevel=3)
        return None
    return content


def _write(fs: pyarrow.fs.FileSystem, path: str, name: str, content: bytes) -> None:
    # a unique name for each writer: two processes may write the same file at the same time
    partial = f"{path}/.{name}-{uuid.uuid4().hex}"
    fs.create_dir(path, recursive=True)
    with fs.open_output_stream(partial) as stream:
        stream.write(_compute_checksum(name, content) + content)
    fs.move(partial, f"{path}/{name}.tokens")


def _hash_inputs(encoder: PromptEncoder, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a hash of everything that the tokens of the pairs depend on."""
    digest = hashlib.blake2b(encoder.fingerprint, digest_size=20)
    for pair in pairs:
        for text in pair:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()


def _compute_checksum(name: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES, key=name.encode()).digest()


def _to_bytes(examples: Sequence[Example]) -> bytes:
    """Return the examples as little-endian int32 numbers.

    The order is: number of examples, length of each, number of prompt tokens of each, all tokens.
    """
    lengths = [len(example.input_ids) for example in examples]
    prompt_lengths = [example.num_prompt_tokens for example in examples]
    header = np.array([len(examples), *lengths, *prompt_lengths], "<i4")
    tokens = [example.input_ids.astype("<i4").tobytes() for example in examples]
    return b"".join([header.tobytes(), *tokens])


def _from_bytes(content: bytes) -> list[Example]:
    numbers: npt.NDArray[np.int32] = np.frombuffer(content, "<i4").astype(np.int32)
    num_examples = int(numbers[0])
    lengths = numbers[1 : 1 + num_examples]
    prompt_lengths = numbers[1 + num_examples : 1 + 2 * num_examples]
    tokens = numbers[1 + 2 * num_examples :]

    ids_of_each = np.split(tokens, np.cumsum(lengths)[:-1])
    return [
        Example.from_ids(ids, int(prompt_length))
        for ids, prompt_length in zip(ids_of_each, prompt_lengths, strict=True)
    ]
