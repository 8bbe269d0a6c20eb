"""Hide credentials in texts that leave the process: output, errors, tracking records, reports."""

import re

# Greedy: a password may contain "/" and "@". It cannot contain the quote that ends a JSON string.
# Digits and a slash behind the colon are a port: `http://host:5000/a@b` has no password.
_USER_INFO = re.compile(
    r'://(?:[^\s/?#@"<>\[]*:(?!\d{1,5}[/?#])[^\s"<>]*|[^\s/?#@"<>]+)@',
)
# Names of secrets are whole words: `api_key`, `X-Amz-Signature`, `accessKey`, but not `monkey`.
_WORDS = (
    r"secret(?:key)?|token|password|passwd|passphrase|pwd|(?:api|access|account)?key|"
    r"sig(?:nature)?|credentials?|auth(?:orization)?|odbc_connect"
)
_QUERY = re.compile(
    rf"([?&;](?:[^\s=&;]*[^\sA-Za-z=&;])?(?i:{_WORDS})(?:[^\sa-z=&;][^\s=&;]*)?="
    r"|[?&;][^\s=&;]*[a-z](?:Secret|Token|Password|Key|Signature|Credential)(?![a-z])[^\s=&;]*=)"
    r"[^\s&\"'<>]+"
)
_VARIABLE = re.compile(  # in a shell, and in a mapping such as a runtime environment of Ray
    r"\b((?:[A-Z0-9_]*_)?(?:SECRET|TOKEN|PASSWORD|(?<=_)KEY)(?:_[A-Z0-9_]*)?"
    r"(?:=[\"']?|[\"']:\s?[\"']))[^\s\"'<>]+"
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
