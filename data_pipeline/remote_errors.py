"""Errors of remote file systems (S3, Google Cloud Storage, Hugging Face's hub), with their fixes.

The libraries of the file systems raise errors of many types, whose texts name the cause.
"""

import re

_MAX_REASON = 400  # characters: Google's library repeats its advice
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to credentials that "
    "may use the bucket",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS, for "
    "an account that may use the bucket",
    "hf": "run `hf auth login`, or set HF_TOKEN, for an account that may read the repository",
}
_NETWORK = {
    "s3": "check the network, and the host of the server in the URI (endpoint_override, region)",
    "gs": f"check the network, or {_CREDENTIALS['gs']}",
}
_MISSING = {
    "s3": "correct the name of the bucket, or create it",
    "gs": "correct the name of the bucket, or create it",
    "hf": "correct the name of the repository, or run `hf auth login` if it is private",
}
_REGION = {"s3": "name the region of the bucket in the URI (?region=…), or renew the credentials"}

# The first pattern that is found in the reason decides. A scheme that is absent has the last text.
_FIXES: tuple[tuple[str, dict[str, str], str], ...] = (
    (r"Unexpected query parameter", {}, "remove it from the URI"),
    (r"Unrecognized filesystem", {}, "give a local path, or a URI of s3://, gs:// or hf://"),
    (r"No module named|\b[Ii]nstall\b", {}, "install the package that is named"),
    (
        r"NETWORK_CONNECTION|resolve host|Name or service|Temporary failure|onnection refused"
        r"|[Tt]imed? ?out|Could not connect|Cannot connect|LocalEntryNotFound|offline",
        _NETWORK,
        "check the network, and the host in the URI",
    ),
    (r"NO_SUCH_BUCKET|NoSuchBucket|NOT_FOUND|\b404\b", _MISSING, "correct the URI"),
    (r"HTTP status (?:301|400)|PermanentRedirect|HeaderMalformed", _REGION, "correct the URI"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|AUTHENTICATION|PERMISSION_DENIED"
        r"|UNAUTHENTICATED|\b40[13]\b|access token|[Cc]redentials|[Uu]nauthorized|[Ff]orbidden",
        _CREDENTIALS,
        "correct the credentials",
    ),
)


def explain_remote_error(error: BaseException, uri: str = "") -> str:
    """Return the reason of an error at a path or URI, and the fix: `REASON; FIX`.

    Without a URI, the text of the error names the file system.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    scheme = {"gcs": "gs"}.get(uri.partition("://")[0], uri.partition("://")[0])
    if not uri:
        scheme = "gs" if "google::cloud" in reason else "s3"

    fix = "correct the URI" if "://" in uri or not uri else "correct the path or its rights"
    for pattern, by_scheme, other in _FIXES:
        if re.search(pattern, reason):
            fix = by_scheme.get(scheme, other)
            break
    return f"{reason[:_MAX_REASON]}; {fix}"


def is_remote_error(error: BaseException) -> bool:
    """Return whether pyarrow's file system of S3 or of Google raised the error."""
    return isinstance(error, OSError) and bool(
        re.search(r"\bAWS Error\b|google::cloud::", str(error))
    )
