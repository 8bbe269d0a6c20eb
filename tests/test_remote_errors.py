"""Errors of remote file systems: one sentence with the reason, and with the fix of its kind."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from app.__main__ import _HANDLERS
from app.config import load_config
from app.errors import UserError
from app.storage import write_text
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.fetch import list_files
from data_pipeline.remote_errors import explain_remote_error
from data_pipeline.shards import ShardWriter, open_shards
from data_pipeline.sources.read import read_source
from tests.command_line import refuse_command


class Refusal(BaseHTTPRequestHandler):
    """An S3 server that answers every request with one error."""

    code: ClassVar[str]
    status: ClassVar[int]

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        server.shutdown()


ANSWERS = {
    "AccessDenied": (403, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "InvalidAccessKeyId": (403, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "SignatureDoesNotMatch": (403, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": (400, r"name the region of the bucket .* or renew the credentials"),
    "PermanentRedirect": (301, r"name the region of the bucket in the URI"),
}


@pytest.mark.parametrize("code", ANSWERS)
def test_an_answer_of_s3_is_explained_wherever_a_uri_is_first_used(address: str, code: str) -> None:
    Refusal.code, (Refusal.status, fix) = code, ANSWERS[code]
    uri = f"s3://key:secret@bucket/x?{address}"
    config = PrepareConfig(out="unused")
    for use in (
        lambda: read_source(uri, config),
        lambda: open_shards(uri),
        lambda: list_files(uri),
        lambda: ShardWriter(uri, shard_records=9),
        lambda: load_config(uri),
    ):
        with pytest.raises((DataError, UserError), match=fix) as error:
            use()
        assert str(error.value).startswith(("cannot ", "s3://***@bucket"))
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_bucket_that_does_not_exist_is_named_with_its_fix(address: str) -> None:
    Refusal.code, Refusal.status = "NoSuchBucket", 404
    uri = f"s3://key:secret@bucket/x?{address}"
    for use in (lambda: list_files(uri), lambda: read_source(uri, PrepareConfig(out="unused"))):
        with pytest.raises(DataError, match=r"NO_SUCH_BUCKET.*; correct the name of the bucket"):
            use()


def test_a_command_whose_storage_fails_later_says_so_in_one_sentence(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials of a long job may expire."""
    Refusal.code, Refusal.status = "AccessDenied", 403
    uri = f"s3://key:secret@bucket/x?{address}"
    monkeypatch.setitem(_HANDLERS, "config docs", lambda _: write_text(uri, "x"))
    message = refuse_command("config", "docs")
    assert message.startswith("svgscribe: the remote storage failed: When initiating")
    assert "ACCESS_DENIED" in message
    assert "; set AWS_ACCESS_KEY_ID" in message


# texts of the libraries, as they were seen
TEXTS = [
    ("s3://b/x", "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not "
     "connect to server", "check the network, and the host of the server in the URI"),
    ("hf://datasets/a/b", "[Errno -2] Name or service not known", "check the network"),
    ("hf://datasets/a/b", "401 Client Error. Repository Not Found", "run `hf auth login`"),
    ("hf://datasets/a/b", "404 Client Error", "correct the name of the repository"),
    ("gs://b/x", "google::cloud::Status(UNAVAILABLE: Could not create a OAuth2 access token: CURL "
     "error [6]=Could not resolve hostname", "check the network, or run `gcloud auth"),
    ("gs://b/x", "google::cloud::Status(PERMISSION_DENIED: no", "run `gcloud auth application-"),
    ("s3://b/x?frob=1", "Unexpected query parameter in S3 URI: 'frob'", "remove it from the URI"),
    ("nosuch://a/b", "Unrecognized filesystem type in URI: nosuch://a/b", "a URI of s3://, gs://"),
    ("hf://datasets/a/b", "Install huggingface_hub to access HfFileSystem", "install the package"),
    ("", "AWS Error ACCESS_DENIED during PutObject", "set AWS_ACCESS_KEY_ID"),
    ("", "google::cloud::Status(UNAUTHENTICATED: no", "run `gcloud auth application-"),
    ("s3://b/x", "something else", "correct the URI"),
    ("folder/x", "[Errno 13] Permission denied", "correct the path or its rights"),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "text", "fix"), TEXTS)
def test_each_kind_of_error_has_its_fix(uri: str, text: str, fix: str) -> None:
    reason, _, advice = explain_remote_error(OSError(f"When\n {text}"), uri).rpartition("; ")
    assert reason == f"When {text}"
    assert fix in advice
