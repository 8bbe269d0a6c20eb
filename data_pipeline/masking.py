"""Hide credentials in texts that leave the process: output, errors, tracking records, reports."""

import re

# Greedy: a password may contain "/" and "@". It cannot contain the quote that ends a JSON string.
_USER_INFO = re.compile(r'://(?:[^\s/@"<>]*:[^\s"<>]*|[^\s/@"<>]+)@')
_QUERY = re.compile(
    r"([?&;][^\s=&;]*(?:secret|token|passw|pwd|key|sig|credential|auth|odbc_connect)[^\s=&;]*=)"
    r"[^\s&\"'<>]+",
    re.IGNORECASE,
)
_VARIABLE = re.compile(  # in a shell, and in a mapping such as a runtime environment of Ray
    r"\b([A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|_KEY)[A-Z0-9_]*(?:=[\"']?|[\"']:\s?[\"']))[^\s\"'<>]+"
)
# base64 has a digit, "=" or mixed case: "Basic illustration of a cat" is a caption.
_HEADER = re.compile(
    r"\b(Bearer |Basic (?=[\w+/=.~-]*?(?:[\d=]|[a-z][A-Z]|[A-Z]{2})))[\w+/=.~-]{8,}"
)
_TOKEN = re.compile(r"\bhf_\w{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def mask_secrets(text: str) -> str:
    """Replace credentials: `s3://key:secret@bucket?token=x` becomes `s3://***@bucket?token=***`.

    They are user and password of a URI, secrets in its query, in environment variables and in HTTP
    headers, and tokens of Hugging Face and AWS.
    """
    text = _USER_INFO.sub("://***@", text)
    for pattern in (_QUERY, _VARIABLE, _HEADER):
        text = pattern.sub(r"\1***", text)
    return _TOKEN.sub("***", text)
