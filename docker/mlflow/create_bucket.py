"""Creates the bucket of MLflow's artifacts unless it is there; its name is the only argument."""

from __future__ import annotations

import os
import sys

import boto3


def create(name: str) -> None:
    """Asks the store at MLFLOW_S3_ENDPOINT_URL, with the credentials of the environment."""
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    if name not in [bucket["Name"] for bucket in store.list_buckets()["Buckets"]]:
        store.create_bucket(Bucket=name)


if __name__ == "__main__":
    create(sys.argv[1])
