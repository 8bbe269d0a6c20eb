"""Cached tokens equal encoded tokens; damaged files are encoded again."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from data_pipeline.stream.cache import encode_cached
from data_pipeline.stream.encode import Example, PromptEncoder
from data_pipeline.stream.token_stream import Stream
from tests.corpus import save_tokenizer, svg_of, write_shards

PAIRS = [(svg_of(20), "a box"), (svg_of(11), ""), ("", "nothing"), (svg_of(90), "a longer box: 箱")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def encoder(tokenizer: Path) -> PromptEncoder:
    return PromptEncoder(str(tokenizer), "Look:")


def assert_same(found: list[Example], wanted: list[Example]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for left, right in zip(one, other, strict=True):
            assert left.dtype == right.dtype == np.int32
            np.testing.assert_array_equal(left, right)


def test_cached_tokens_equal_encoded_tokens(encoder: PromptEncoder, tmp_path: Path) -> None:
    folder = str(tmp_path / "new" / "cache")
    for _ in range(2):
        assert_same(encode_cached(encoder, PAIRS, folder), encoder.encode_batch(PAIRS))
    assert len(list(Path(folder).iterdir())) == 1


class Forbidden(PromptEncoder):
    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        raise AssertionError("encoded although it is in the cache")


def test_the_second_time_nothing_is_encoded(
    encoder: PromptEncoder, tokenizer: Path, tmp_path: Path
) -> None:
    encode_cached(encoder, PAIRS, str(tmp_path))
    assert_same(
        encode_cached(Forbidden(str(tokenizer), "Look:"), PAIRS, str(tmp_path)),
        encoder.encode_batch(PAIRS),
    )


def cut(content: bytes) -> bytes:
    return content[:-4]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda _: b"", lambda _: b"PAR1", lambda content: content + b"\0" * 4]
)
def test_a_damaged_file_is_noticed_and_replaced(
    encoder: PromptEncoder, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    encode_cached(encoder, PAIRS, str(tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="is damaged: its texts are encoded again"):
        assert_same(encode_cached(encoder, PAIRS, str(tmp_path)), encoder.encode_batch(PAIRS))
    assert file.read_bytes() == whole


def test_the_file_of_another_text_under_this_name_is_not_trusted(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    for name, pairs in (("ours", PAIRS), ("foreign", PAIRS[::-1])):
        encode_cached(encoder, pairs, str(tmp_path / name))
    (ours,), (foreign,) = ((tmp_path / name).iterdir() for name in ("ours", "foreign"))
    shutil.copy(foreign, ours)
    with pytest.warns(UserWarning, match="encoded again"):
        assert_same(
            encode_cached(encoder, PAIRS, str(tmp_path / "ours")), encoder.encode_batch(PAIRS)
        )


def test_files_are_found_by_the_content_of_texts_tokenizer_and_template(
    encoder: PromptEncoder, tokenizer: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def num_files(encoder: PromptEncoder, pairs: list[tuple[str, str]]) -> int:
        assert_same(encode_cached(encoder, pairs, str(cache)), encoder.encode_batch(pairs))
        return len(list(cache.iterdir()))

    assert num_files(encoder, PAIRS) == 1
    shutil.copytree(tokenizer, tmp_path / "moved")
    assert num_files(PromptEncoder(str(tmp_path / "moved"), "Look:"), PAIRS) == 1
    assert num_files(PromptEncoder(str(tokenizer), "Look!"), PAIRS) == 2
    assert num_files(encoder, [(caption, svg) for svg, caption in PAIRS]) == 3
    assert num_files(encoder, [("ab", "c")]) == 4
    assert num_files(encoder, [("a", "bc")]) == 5
    other = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    other.add_special_tokens(["<unused0>"])
    other.save(str(tmp_path / "moved" / "tokenizer.json"))
    # the content's tokenizer has no control tokens, so it is the same
    assert num_files(PromptEncoder(str(tmp_path / "moved"), "Look:"), PAIRS) == 5
    other.add_tokens(["<table>"])
    other.save(str(tmp_path / "moved" / "tokenizer.json"))
    assert num_files(PromptEncoder(str(tmp_path / "moved"), "Look:"), PAIRS) == 6


def test_many_writers_at_once_leave_one_whole_file(encoder: PromptEncoder, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(
            threads.map(lambda _: encode_cached(encoder, PAIRS, str(tmp_path)), range(64))
        )
    for result in results:
        assert_same(result, encoder.encode_batch(PAIRS))
    assert len(list(tmp_path.iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_cached(encoder, PAIRS, str(tmp_path))


def test_a_cache_that_cannot_be_written_is_named(encoder: PromptEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"cannot use data\.cache_dir='.*file': .* choose another folder, or null"
    ):
        encode_cached(encoder, PAIRS, str(tmp_path / "file"))


def test_other_epochs_seeds_and_sequence_lengths_read_the_tokens_of_the_first(
    tokenizer: Path, tmp_path: Path
) -> None:
    write_shards(tmp_path / "shards", train=range(11, 111), validation=[30, 40])
    plain = DataConfig(
        shards=str(tmp_path / "shards"),
        system_prompt="Look:",
        sequence_tokens=300,
        shuffle_block_examples=40,
    )
    stored = None
    for changes in (
        {},
        {"seed": 4},
        {"sequence_tokens": 200, "too_long": "truncate"},
        {"ledger": True},
    ):
        config = plain.model_copy(update=changes)
        cached = Stream(
            open_shards(config.shards),
            config.model_copy(update={"cache_dir": str(tmp_path / "cache")}),
            str(tokenizer),
            num_epochs=2,
        )
        fresh = Stream(open_shards(config.shards), config, str(tokenizer), num_epochs=2)
        for number in range(fresh.num_shuffle_blocks):
            found, wanted = cached.pack_shuffle_block(number), fresh.pack_shuffle_block(number)
            assert found.keys() == wanted.keys()
            for name, column in wanted.items():
                np.testing.assert_array_equal(found[name], column)
        files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
        stored = stored or files
        assert files == stored
    assert len(stored or {}) == 3
