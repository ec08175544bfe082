"""Messages to people: to the webhook whose address the environment tells, as Slack's JSON, which others understand too.

Whoever knows the address can write there. So it is never printed, and neither is what libraries say of it.
"""

from __future__ import annotations

import email.utils
import http.client
import itertools
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

VARIABLE = "BITFRONT_WEBHOOK_URL"
TIMEOUT_S, TRIES, PAUSE_S, MAX_PAUSE_S = 10.0, 3, 1.0, 30.0
MAX_TEXT, MAX_FIELD, FIELDS, MAX_BLOCKS = 3000, 2000, 10, 50
"""What Slack takes: characters of a section and of a field, fields of a section, blocks of a message."""
_SIGNS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
log = logging.getLogger("bitfront.notify")


def notify(text: str, *, facts: Mapping[str, str], link: str = "", sleep: Callable[[float], None] = time.sleep) -> bool:
    """Sends a message to the webhook of `BITFRONT_WEBHOOK_URL`; whether it was delivered. Raises nothing.

    Args:
        text: what has happened, a sentence.
        facts: what belongs to it, by name.
        link: an http(s) address where more of it is.
        sleep: between two tries.
    """
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        return False
    try:
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError
        body = json.dumps(message(text, facts, link)).encode()
        request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"})
    except ValueError:
        log.warning("%s is no http or https address; nobody is notified.", VARIABLE)
        return False
    for number in range(TRIES):
        problem, pause = _post(request)
        if not problem:
            return True
        if pause is None or number == TRIES - 1:
            break
        sleep(pause or PAUSE_S * 2**number)
    log.warning("The webhook of %s was not reached: %s.", VARIABLE, problem)
    return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its message."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer is an error."""


def _post(request: urllib.request.Request) -> tuple[str, float | None]:
    """What went wrong, empty for nothing; and the seconds to wait before another try, None where that is of no use."""
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
            return "", None
    except urllib.error.HTTPError as error:
        with error:
            again = error.code == 429 or error.code >= 500
            return f"it answered {error.code}", _pause(error.headers.get("Retry-After", "")) if again else None
    except (http.client.InvalidURL, UnicodeError):
        return "the address is none", None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Their texts may have the address; their kinds have not.
        reason = getattr(error, "reason", error)
        return type(reason if isinstance(reason, Exception) else error).__name__, 0.0


def _pause(retry_after: str) -> float:
    """Seconds that a server asks for, as a number or a date; 0 where it asks for none."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_PAUSE_S) if seconds == seconds else 0.0


def message(text: str, facts: Mapping[str, str], link: str) -> dict[str, Any]:
    """A message in Slack's form, within its limits: the text, the facts in fields, a link."""
    head = escaped(text, MAX_TEXT)
    blocks: list[dict[str, Any]] = [_section(head)]
    fields = [
        {"type": "mrkdwn", "text": f"*{escaped(name, 200)}*\n{escaped(value, MAX_FIELD - 210)}"}
        for name, value in facts.items()
    ]
    for first in itertools.count(0, FIELDS):
        if first >= len(fields) or len(blocks) == MAX_BLOCKS - 1:
            break
        blocks.append({"type": "section", "fields": fields[first : first + FIELDS]})
    if urlsplit(link).scheme in ("http", "https") and len(link) < MAX_FIELD:
        blocks.append(_section(f"<{escaped(link.replace('|', '%7C'), MAX_TEXT - 20)}|More of it>"))
    return {"text": head, "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def escaped(text: str, limit: int) -> str:
    """The text with the signs that Slack reads as its own, at most so long; a sign is never cut in two."""
    # No sign has less than one character.
    signs = [_SIGNS.get(sign, sign) for sign in str(text)[: limit + 1].encode("utf-8", "replace").decode()]
    if sum(map(len, signs)) <= limit:
        return "".join(signs)
    lengths = itertools.accumulate(map(len, signs))
    return "".join(sign for sign, length in zip(signs, lengths, strict=True) if length < limit) + "…"
