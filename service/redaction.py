"""Texts without credentials: what errors say goes into logs, records and MLflow, whoever raised them.

Taken out are users and passwords of addresses, authorization headers, values that are called password, token or the
like, paths of webhooks, and wherever it stands the value of every environment variable whose name says that it is a
secret, and the token in Ray's file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

MIN_LENGTH = 6
"""Of a variable's value; a shorter one would take syllables out of words."""
_SECRET_NAME = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY|ACCESS_KEY|CREDENTIALS?|WEBHOOK|_PWD$|_PASS$)"
)
_NO_SECRET = re.compile(r"(_PATH|_FILE|_DIR|_NAME|_ID|_COMMAND|TOKENIZERS_PARALLELISM)$")
"""Where a secret lies, and who has it, is none."""
MAX_TOKEN_FILE = 4096
"""Bytes of a file that holds a token."""
_NAMES = r"(?:signature|credential|token|password|passwd|passphrase|secret|secret_?access_?key|api_?key|[_;-]pwd)"
"""With which names of settings and headers end, whose values are secret; others say password in a sentence."""
_PATTERNS = (
    # A password may have a slash or an @ in it; a port has neither.
    (re.compile(r"(?<=://)(?:[^\s/@:'\"]*:(?!\d{1,5}[/?#])[^\s'\"]*|[^/@\s]+)@"), ""),
    (re.compile(r"(?i)(authorization\\?['\"]?\s*[:=]\s*b?(['\"]))(?:\\.|(?!\2).)+"), r"\1…"),
    (re.compile(r"(?i)(authorization\\?['\"]?\s*[:=](?!\s*b?['\"])[ \t]*)[^\r\n]+"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?=[\w+/.~-]*[\d=+/])[\w+/.~-]{12,}=*"), r"\1 …"),
    (re.compile(rf"(?i)({_NAMES}['\"]?\s*[:=]\s*b?(['\"]))(?:\\.|(?!\2).)+"), r"\1…"),
    (re.compile(rf"(?i)({_NAMES}=)[^&\s'\"]+"), r"\1…"),
    (re.compile(r"(?i)(\b(?:password|(?:aws_)?secret_access_key)['\"]?\s*[:=]\s*)[^\s'\",;}]+"), r"\1…"),
    # Who has the path of such an address may write there.
    (re.compile(r"(?i)(hooks\.slack\.com/|/services/(?=T\w+/B\w+/))[^\s'\")]+"), r"\1…"),
)


def without_credentials(text: str) -> str:
    """The text, with everything that looks like a credential, or is one of the environment's, left out."""
    for name, value in sorted(_secrets().items(), key=lambda one: -len(one[1])):
        text = text.replace(value, f"[{name}]")
    for pattern, rest in _PATTERNS:
        text = pattern.sub(rest, text)
    return text


def traceback_of(error: BaseException) -> str:
    """The error with its traceback, as Python prints it, without credentials."""
    return without_credentials("".join(traceback.format_exception(error)))


def print_error(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """What Python does with an error that nobody foresaw (`sys.excepthook`), without credentials."""
    sys.stderr.write(traceback_of(error))


def _secrets() -> dict[str, str]:
    found = {
        name: value
        for name, value in os.environ.items()
        if len(value) >= MIN_LENGTH and _SECRET_NAME.search(name.upper()) and not _NO_SECRET.search(name.upper())
    }
    token = _token_of_file()
    return {**found, "RAY_AUTH_TOKEN_PATH": token} if len(token) >= MIN_LENGTH else found


def _token_of_file() -> str:
    """Ray's token where the environment names a file that has it; empty where there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", ""))
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= MAX_TOKEN_FILE:
            return path.read_text(encoding="utf-8").strip()
    return ""
