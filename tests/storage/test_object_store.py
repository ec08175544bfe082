"""Objects of a real S3-compatible server: written under conditions, asked for again when nobody answers."""

import threading
from pathlib import Path

import pytest

from service.object_store import ConditionError, ObjectStore, StoreAwayError, file_system, parse_url, patience
from service.settings import StorageConfig
from trainables.errors import ConfigError, StorageError, StorageUnavailableError

from .conftest import Proxy


def test_an_object_is_written_only_while_it_is_as_expected(store: ObjectStore) -> None:
    first = store.put("a/b", b"1", replaces="")
    with pytest.raises(ConditionError, match="somebody else"):
        store.put("a/b", b"2", replaces="")
    second = store.put("a/b", b"2", replaces=first)
    with pytest.raises(ConditionError, match="somebody else"):
        store.put("a/b", b"3", replaces=first)
    with pytest.raises(ConditionError, match="gone"):
        store.put("nothing", b"3", replaces=first)
    found = store.get("a/b")
    assert found is not None
    assert (found.content, found.etag) == (b"2", second)
    assert 0 <= found.age_s < 60


def test_a_conditional_write_whose_answer_was_lost_succeeds_when_it_is_repeated(store: ObjectStore) -> None:
    first = store.put("a", b"1", replaces="")
    assert store.put("a", b"1", replaces="") == first
    second = store.put("a", b"2", replaces=first)
    assert store.put("a", b"2", replaces=first) == second


def test_listings_tell_keys_below_the_address_alone(store: ObjectStore) -> None:
    for key in ("x", "s/a", "s/t/b", "ss/c"):
        store.put(key, b"1")
    assert set(store.entries("s/")) == {"s/a", "s/t/b"}
    assert set(store.entries("")) == {"x", "s/a", "s/t/b", "ss/c"}
    files, folders = store.children("")
    assert (set(files), set(folders)) == ({"x"}, {"s", "ss"})
    store.delete(["s/a", "never"])
    assert set(store.entries("s/")) == {"s/t/b"}
    assert store.get("s/a") is None
    assert store.etag("s/a") == ""


def test_files_larger_than_a_part_go_there_and_back(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.object_store.SINGLE_PUT", 1000)
    (tmp_path / "there").write_bytes(bytes(range(256)) * 24000)
    etag = store.put_file("large", tmp_path / "there")
    assert etag == store.etag("large") != ""
    assert store.get_files([("large", tmp_path / "back")])
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()
    assert not store.get_files([("large", tmp_path / "1"), ("gone", tmp_path / "2")])


def test_a_store_that_is_away_is_waited_for(store: ObjectStore, proxy: Proxy) -> None:
    store.put("a", b"1")
    proxy.down()
    with pytest.raises(StoreAwayError, match=r"does not answer .* AWS_ENDPOINT_URL"), patience(0.3):
        store.get("a")
    assert issubclass(StoreAwayError, StorageUnavailableError)
    threading.Timer(0.5, proxy.up).start()
    with patience(20):
        found = store.get("a")
    assert found is not None
    assert found.content == b"1"


def test_refusals_say_the_fix_and_no_credentials(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="the bucket 'no-such-bucket' does not exist there; make it"):
        ObjectStore("s3://no-such-bucket/x").entries("")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    file_system.cache_clear()
    try:
        with pytest.raises(StorageError, match=r"no credentials for s3://.* give AWS_ACCESS_KEY_ID"):
            ObjectStore(url).get("a")
    finally:
        file_system.cache_clear()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("gs://bucket/x", r"begin with gs:// are not known here; give s3://BUCKET/FOLDER"),
        ("s3://KEY:SECRET@bucket/x", "has credentials or parameters in it; .* AWS_ACCESS_KEY_ID"),
        ("s3://bucket/x?endpoint_override=host", "has credentials or parameters in it"),
        ("s3://B/x", "no valid bucket"),
        ("s3://bucket/../x", "folders are named by letters"),
    ],
)
def test_addresses_that_cannot_be_are_refused(path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        StorageConfig(path=path)
    assert "SECRET" not in str(refused.value).replace("AWS_SECRET_ACCESS_KEY", "")
    assert "endpoint_override" not in str(refused.value)


def test_an_address_is_bucket_and_prefix() -> None:
    assert parse_url("s3://bucket/a/b/") == ("bucket", "a/b")
    assert parse_url("s3://bucket") == ("bucket", "")
