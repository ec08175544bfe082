"""Runs sweeps on Ray: Ray Tune over the trials, Ray Train inside of those that have several workers."""
