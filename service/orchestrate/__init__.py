"""Runs sweeps on Ray: Ray Tune over the trials, Ray Train inside of those that have several workers."""

import os

if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    # Ray looks at the mode once, when it is imported, and sends no token without it.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
