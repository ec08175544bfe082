"""Objects in an S3-compatible store: whole or not at all, written under conditions; a store that is away is waited for.

Credentials are AWS's own: AWS_ACCESS_KEY_ID and its like, profiles, roles; AWS_ENDPOINT_URL for stores other than
Amazon's. They appear in no address, no error and no record.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from trainables.errors import ConfigError, StorageError, StorageUnavailableError
from trainables.patience import paused

R = TypeVar("R")
IMPATIENT_S = 20.0
"""How long a store that does not answer is asked again by a command that only reads."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
CONNECT_S, READ_S = 5, 60
SINGLE_PUT = 8 * 2**20
"""Bytes; larger files are sent in parts, and appear as one all the same."""
_patience_s: ContextVar[float] = ContextVar("patience_s", default=IMPATIENT_S)


class ConditionError(StorageError):
    """The object is not as it was expected: somebody else has written it."""


class StoreAwayError(StorageUnavailableError):
    """The store does not answer."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within, and in this thread, a store that does not answer is asked again for so long."""
    before = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(before)


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a listing tells it."""

    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """An object with its content."""

    content: bytes
    etag: str
    age_s: float
    """Since it was written; both times are by the store's own clock."""


def is_url(path: str) -> bool:
    """Whether a storage's path is an address and no folder."""
    return "://" in path


def parse_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`. Raises ConfigError that repeats no credentials."""
    scheme, _, rest = url.partition("://")
    hint = "give s3://BUCKET/FOLDER, or the path of a folder"
    if scheme != "s3":
        raise ConfigError(f"storage.path: addresses that begin with {scheme}:// are not known here; {hint}.")
    if "@" in rest or "?" in rest:
        raise ConfigError(
            "storage.path: the address has credentials or parameters in it; write s3://BUCKET/FOLDER alone, and give "
            "credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, in the environment of every "
            "machine, with AWS_ENDPOINT_URL where the server is not Amazon's."
        )
    bucket, _, prefix = rest.strip("/").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ConfigError(f"storage.path: {url!r} has no valid bucket: 3 to 63 of a-z, 0-9, '.' and '-'; {hint}.")
    parts = prefix.split("/") if prefix else []
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*", part) for part in parts):
        raise ConfigError(
            f"storage.path: {url!r}: folders are named by letters, digits, '_', '-', '=' and '.'; {hint}."
        )
    return bucket, prefix


class ObjectStore:
    """The objects below one address; keys are relative to it."""

    def __init__(self, url: str) -> None:
        self.bucket, self.prefix = parse_url(url)
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def get(self, key: str) -> Found | None:
        """The object; None where there is none."""
        import fsspec.asyn

        found = self._asked(lambda: fsspec.asyn.sync(self.files.loop, self._get, self._key(key)))
        if found is None:
            return None
        answer, content = found
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = date - answer["LastModified"].astimezone(datetime.UTC)
        return Found(content, answer["ETag"], age.total_seconds())

    async def _get(self, key: str) -> tuple[dict[str, Any], bytes]:
        answer = await self.files._call_s3("get_object", Bucket=self.bucket, Key=key)
        async with answer["Body"] as body:
            return answer, await body.read()

    def etag(self, key: str) -> str:
        """Of the object as it is now; empty where there is none."""
        answer = self._call("head_object", Key=self._key(key))
        return str(answer["ETag"]) if answer else ""

    def put(self, key: str, content: bytes, *, replaces: str | None = None) -> str:
        """Writes the object; its new etag.

        `replaces`: only where the object's etag is this one, or, empty, where there is no object; else ConditionError.
        An object that has this content already will do: an answer that was lost is asked for again.
        """
        conditions = {} if replaces is None else {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
        try:
            answer = self._call("put_object", Key=self._key(key), Body=content, **conditions)
        except ConditionError:
            found = self.get(key)
            if not content or found is None or found.content != content:
                raise
            return found.etag
        if answer is None:
            raise ConditionError(f"{self.url}/{key} is gone.")
        return str(answer["ETag"])

    def put_file(self, key: str, path: Path) -> str:
        """Writes a file of any size, whole or not at all; its etag."""
        if path.stat().st_size <= SINGLE_PUT:
            return self.put(key, path.read_bytes())
        self._asked(lambda: self.files.put_file(str(path), f"{self.bucket}/{self._key(key)}"))
        return self.etag(key)

    def get_files(self, pairs: Sequence[tuple[str, Path]]) -> bool:
        """Reads objects into files, several at once; False where one of them has gone meanwhile."""
        keys = [f"{self.bucket}/{self._key(key)}" for key, _ in pairs]
        paths = [str(path) for _, path in pairs]
        # None is the answer of an object that is not there.
        return not pairs or self._asked(lambda: (self.files.get(keys, paths), True)[1]) is not None

    def entries(self, prefix: str) -> dict[str, Entry]:
        """All objects whose keys begin so, by key."""
        return {key: entry for page in self._pages(prefix, "") for key, entry in self._entries(page)}

    def children(self, prefix: str) -> tuple[dict[str, Entry], list[str]]:
        """The objects directly below a prefix that ends with '/', or is empty, and the names of the folders there."""
        found: dict[str, Entry] = {}
        folders: list[str] = []
        for page in self._pages(prefix, "/"):
            found.update(self._entries(page))
            folders += [one["Prefix"].rstrip("/").rpartition("/")[2] for one in page.get("CommonPrefixes", [])]
        return found, folders

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there will do."""
        doomed = [{"Key": self._key(key)} for key in keys]
        for first in range(0, len(doomed), 1000):
            some = {"Objects": doomed[first : first + 1000], "Quiet": True}
            self._call("delete_objects", Delete=some)

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            asked = {"Prefix": self._key(prefix), "Delimiter": delimiter, **token}
            page = self._call("list_objects_v2", **asked)
            yield page or {}
            if not page or not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _entries(self, page: dict[str, Any]) -> Iterator[tuple[str, Entry]]:
        skipped = len(self._key(""))
        for one in page.get("Contents", []):
            if not one["Key"].endswith("/"):
                yield one["Key"][skipped:], Entry(one["ETag"], one["Size"])

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @property
    def files(self) -> Any:
        """The file system, as fsspec has it."""
        return file_system()

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        return self._asked(lambda: self.files.call_s3(operation, Bucket=self.bucket, **parameters))

    def _asked(self, action: Callable[[], R]) -> R | None:
        """What the store answers, None where it has no such object; asks again where it does not answer."""
        pause_s, last = FIRST_PAUSE_S, time.monotonic() + _patience_s.get()
        while True:
            try:
                return action()
            except Exception as error:
                if _is_missing(error):
                    return None
                if not _passes(error):
                    raise self._told(error) from None
                if time.monotonic() + pause_s > last:
                    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                    raise StoreAwayError(
                        f"{self.url} does not answer ({line}). Check the network and AWS_ENDPOINT_URL, and try again."
                    ) from None
            if paused(pause_s):
                last = -math.inf
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _told(self, error: Exception) -> Exception:
        """What the user is told."""
        status, code = _answer(error)
        if status == 412:
            return ConditionError(f"{self.url}: somebody else has written meanwhile.")
        if code == "NoSuchBucket":
            return StorageError(
                f"storage.path: the bucket {self.bucket!r} does not exist there; make it, or check AWS_ENDPOINT_URL."
            )
        if status in (301, 307, 400, 401, 403):
            return StorageError(
                f"storage.path: {self.url} refuses ({status} {code}). Check AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (or profile, or role), AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, and that they may "
                "read, list, write and delete there."
            )
        if "Credentials" in type(error).__name__ or "Profile" in type(error).__name__:
            return StorageError(
                f"storage.path: there are no credentials for {self.url} ({type(error).__name__}); give "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment."
            )
        if status:
            return StorageError(f"storage.path: {self.url} answers {status} {code}; is it an S3-compatible store?")
        import botocore.exceptions

        if isinstance(error, botocore.exceptions.BotoCoreError):
            return StorageError(f"storage.path: {self.url} cannot be asked ({type(error).__name__}).")
        return error


@functools.cache
def file_system() -> Any:
    """As fsspec has it: one for all storages of a process, with what the environment says when it is first asked."""
    try:
        import s3fs
    except ImportError:
        raise ConfigError(
            "storage.path: addresses need the package s3fs; install it with: pip install 'bitfront[s3]'"
        ) from None
    made = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": CONNECT_S, "read_timeout": READ_S},
    )
    # One who asks again is enough.
    made.retries = 1
    return made


def _answer(error: BaseException) -> tuple[int, str]:
    """Status and code of what the store has answered; 0 where it was somebody else, or nobody."""
    chain: BaseException | None = error
    while chain is not None:
        answer = getattr(chain, "response", None)
        if isinstance(answer, dict):
            return int(answer["ResponseMetadata"].get("HTTPStatusCode", 0)), str(
                answer.get("Error", {}).get("Code", "")
            )
        chain = chain.__cause__
    return 0, ""


def _is_missing(error: Exception) -> bool:
    status, code = _answer(error)
    return status == 404 and code != "NoSuchBucket"


def _passes(error: Exception) -> bool:
    """Whether another try may succeed: nobody answered, or a server is not well, or two wrote in the same moment."""
    status, _ = _answer(error)
    if status:
        return status in (408, 409, 429) or status >= 500
    import botocore.exceptions
    import botocore.parsers

    kinds: list[type[BaseException]] = [ConnectionError, TimeoutError]
    kinds += [botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError]
    kinds += [botocore.parsers.ResponseParserError]
    # Of whoever gives out credentials for an hour; the next try may get them.
    passing = ("CredentialRetrievalError", "MetadataRetrievalError", "TokenRetrievalError")
    kinds += [getattr(botocore.exceptions, name) for name in passing if hasattr(botocore.exceptions, name)]
    with contextlib.suppress(ImportError):
        import aiohttp

        kinds.append(aiohttp.ClientError)
    return isinstance(error, tuple(kinds)) or isinstance(error.__cause__, tuple(kinds))
