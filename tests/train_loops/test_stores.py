"""One contract, two stores: files below a folder, and S3 against a server on loopback."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from configs.errors import ConfigInvalid, StorageFailed
from configs.settings import Settings
from train_loops.stores.base import ObjectStore
from train_loops.stores.file import FileStore
from train_loops.stores.open import arrow_filesystem, open_store
from train_loops.stores.s3 import S3Store, split

KEY_ID, SECRET = "AKIAVERYRECOGNISABLE", "very-recognisable-secret"


class Place(NamedTuple):
    """A store and a folder URI in it, which each test has for itself."""

    store: ObjectStore
    uri: str
    settings: Settings


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of an S3 user; its endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3_endpoint


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        settings = Settings(_env_file=None, file_root=tmp_path / "root")
        uri = f"file://{tmp_path}/root/folder/"
    else:
        request.getfixturevalue("s3")
        bucket = f"bucket-{abs(hash(request.node.name)) % 10**9}"
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
        settings, uri = Settings(_env_file=None, file_root=None), f"s3://{bucket}/folder/"
    return Place(open_store(uri, settings), uri, settings)


def test_what_is_put_is_got(place: Place, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"\x00content\xff")
    place.store.put(tmp_path / "here", place.uri + "a/b.bin")
    place.store.get(place.uri + "a/b.bin", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"\x00content\xff"


def test_what_is_put_as_bytes_is_got_as_bytes(place: Place) -> None:
    place.store.put_bytes(b"", place.uri + "empty")
    place.store.put_bytes(b"content", place.uri + "full")
    assert place.store.get_bytes(place.uri + "empty") == b""
    assert place.store.get_bytes(place.uri + "full") == b"content"


def test_a_second_put_replaces_the_first(place: Place) -> None:
    place.store.put_bytes(b"a long first one", place.uri + "a")
    place.store.put_bytes(b"second", place.uri + "a")
    assert place.store.get_bytes(place.uri + "a") == b"second"


def test_a_list_has_every_object_below_a_prefix_with_its_size(place: Place) -> None:
    for name in ("logs/a", "logs/deep/b", "logs-old/c", "other"):
        place.store.put_bytes(name.encode(), place.uri + name)
    found = {
        item.uri.removeprefix(place.uri): item.size_bytes
        for item in place.store.list(place.uri + "logs/")
    }
    assert found == {"logs/a": 6, "logs/deep/b": 11}


def test_a_prefix_need_not_end_at_a_folder(place: Place) -> None:
    for name in ("logs/a", "logs-old/c", "other"):
        place.store.put_bytes(b"x", place.uri + name)
    found = [item.uri.removeprefix(place.uri) for item in place.store.list(place.uri + "logs")]
    assert sorted(found) == ["logs-old/c", "logs/a"]


def test_a_list_of_nothing_is_empty(place: Place) -> None:
    assert list(place.store.list(place.uri + "nothing/here/")) == []


def test_a_listed_uri_can_be_read(place: Place) -> None:
    place.store.put_bytes(b"x", place.uri + "with-ü+and=signs")
    (item,) = place.store.list(place.uri)
    assert place.store.get_bytes(item.uri) == b"x"


@pytest.mark.usefixtures("s3")
def test_a_list_goes_over_all_pages_of_s3() -> None:
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="many-pages")
    store, names = S3Store(), {f"many/{number}" for number in range(7)}
    store._client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 3}
    )
    for name in names:
        store.put_bytes(b"", f"s3://many-pages/{name}")
    found = {item.uri.removeprefix("s3://many-pages/") for item in store.list("s3://many-pages/")}
    assert found == names


def test_a_missing_object_is_a_missing_file(place: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        place.store.get_bytes(place.uri + "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        place.store.get(place.uri + "nowhere", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_folder_is_no_object(place: Place) -> None:
    place.store.put_bytes(b"x", place.uri + "folder/a")
    with pytest.raises(FileNotFoundError):
        place.store.get_bytes(place.uri + "folder")


def test_ray_train_sees_the_same_place(place: Place) -> None:
    filesystem, path = arrow_filesystem(place.uri + "checkpoints", place.settings)
    with filesystem.open_output_stream(f"{path}/a") as file:
        file.write(b"by arrow")
    assert place.store.get_bytes(place.uri + "checkpoints/a") == b"by arrow"


class FullDisk:
    """Takes half of a file, then has no room."""

    def __call__(self, source: Path, target: Path) -> None:
        target.write_bytes(b"half of")
        raise OSError(28, "No space left on device")


def test_a_put_that_fails_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uri = FileStore(tmp_path), f"file://{tmp_path}/folder/a"
    store.put_bytes(b"old", uri)
    monkeypatch.setattr("train_loops.stores.file.shutil.copyfile", FullDisk())
    with pytest.raises(StorageFailed, match="No space left"):
        store.put(Path(__file__), uri)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]
    assert store.get_bytes(uri) == b"old"


def test_a_put_on_its_way_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uri = FileStore(tmp_path), f"file://{tmp_path}/folder/"
    seen: list[Any] = []

    def looking(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        seen.extend(store.list(uri))

    monkeypatch.setattr("train_loops.stores.file.shutil.copyfile", looking)
    store.put(Path(__file__), uri + "a")
    assert seen == []
    assert [item.uri for item in store.list(uri)] == [uri + "a"]


@pytest.mark.parametrize("path", ["/etc/passwd", "{root}-beside/a", "{root}/../a", "{root}/link/a"])
def test_a_uri_that_leads_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "a").write_text("not yours")
    store, uri = FileStore(root), "file://" + path.format(root=root)
    with pytest.raises(StorageFailed, match="file root"):
        store.get_bytes(uri)
    with pytest.raises(StorageFailed, match="file root"):
        store.put_bytes(b"mine", uri)
    with pytest.raises(StorageFailed, match="file root"):
        list(store.list(uri))
    assert (tmp_path / "a").read_text() == "not yours"


def test_files_are_off_without_a_root() -> None:
    with pytest.raises(ConfigInvalid, match="TRAINER_FILE_ROOT"):
        open_store("file:///data/a", Settings(_env_file=None, file_root=None))


@pytest.fixture
def no_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint at which nothing listens, and no waiting between tries."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


@pytest.mark.usefixtures("no_server")
def test_a_server_that_does_not_answer_is_a_storage_failure(tmp_path: Path) -> None:
    store, uri = S3Store(), "s3://bucket/key"
    (tmp_path / "a").write_text("x")
    for use in (
        lambda: store.get_bytes(uri),
        lambda: store.get(uri, tmp_path / "b"),
        lambda: store.put(tmp_path / "a", uri),
        lambda: store.put_bytes(b"x", uri),
        lambda: list(store.list(uri)),
    ):
        with pytest.raises(StorageFailed, match="s3://bucket/key") as caught:
            use()
        assert caught.value.retryable
        said = f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
        assert KEY_ID not in said
        assert SECRET not in said


@pytest.mark.usefixtures("s3")
def test_a_write_into_a_bucket_that_is_not_there_is_a_storage_failure(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(StorageFailed, match="NoSuchBucket"):
        S3Store().put_bytes(b"x", "s3://no-such-bucket/a")
    with pytest.raises(StorageFailed, match="NoSuchBucket"):
        S3Store().put(tmp_path / "a", "s3://no-such-bucket/a")


@pytest.mark.usefixtures("s3")
def test_a_read_from_a_bucket_that_is_not_there_is_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        S3Store().get_bytes("s3://no-such-bucket/a")


def test_an_s3_uri_splits_at_the_first_slash() -> None:
    assert split("s3://bucket/a/b") == ("bucket", "a/b")


@pytest.mark.parametrize("name", ["Grüße 1.txt", "step=1,loss=2.txt", "100%25.txt", "~a+b@c.txt"])
def test_a_listed_uri_is_the_one_that_was_put(place: Place, name: str) -> None:
    place.store.put_bytes(b"x", place.uri + name)
    (listed,) = place.store.list(place.uri)
    assert listed.uri == place.uri + name
    assert place.store.get_bytes(listed.uri) == b"x"


def test_a_root_behind_a_symbolic_link_lists_what_was_put(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    store, uri = FileStore(tmp_path / "data"), f"file://{tmp_path}/data/a/file"
    store.put_bytes(b"x", uri)
    assert [item.uri for item in store.list(f"file://{tmp_path}/data/a/")] == [uri]


def test_a_result_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    FileStore(tmp_path).put_bytes(b"x", f"file://{tmp_path}/a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
@pytest.mark.usefixtures("s3")
def test_the_region_comes_by_either_of_its_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv(name, "eu-west-3")
    assert S3Store()._client.meta.region_name == "eu-west-3"
