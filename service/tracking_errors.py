"""What MLflow's errors mean, in a few words: its client tells of requests, and of exceptions within exceptions."""

from __future__ import annotations

import re

STATUS = re.compile(r"too many (\d{3}) error responses|error code (\d{3}) != 200|(\d{3}) (?:Client|Server) Error")
"""By urllib3, by MLflow's client, by requests."""
REFUSED_STATUS = {401: "are its credentials still valid?", 403: "may this user write there?"}
PATIENCE = re.compile(r"(?:read|connect) timeout=([\d.]+)")
CAUSES = {
    "Connection refused": "cannot be reached (Connection refused)",
    "Name or service not known": "cannot be found (Name or service not known)",
    "Connection aborted": "breaks connections off",
    "Connection reset": "breaks connections off",
}
ARTIFACTS = "/mlflow-artifacts/"


def meaning(error: BaseException) -> str:
    """What a server does that the error tells of, behind its address; empty for an error that says so itself."""
    text = str(error)
    status, patience = STATUS.search(text), PATIENCE.search(text)
    if status:
        number = next(int(group) for group in status.groups() if group)
        said = f"answers with status {number}" + (f": {REFUSED_STATUS[number]}" if number in REFUSED_STATUS else "")
    elif patience or "timed out" in text:
        said = f"does not answer within {patience.group(1)} s" if patience else "does not answer in time"
    else:
        said = next((meant for cause, meant in CAUSES.items() if cause in text), "")
    return f"{said} (storing artifacts)" if said and ARTIFACTS in text else said
