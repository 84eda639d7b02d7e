"""Downloads from a server on this machine that behaves as badly as wanted; no network."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from teddy.core.errors import TeddyError
from teddy.data.downloads import Published, checksum, extract, fetch

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


class Server:
    """Serves ``content`` at every path and keeps the ``Range`` header of each request."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.cut_after = len(CONTENT)
        """Bytes after which a connection breaks."""
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                outer.requests.append(wanted)
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.end_headers()
                self.wfile.write(outer.content[start : start + outer.cut_after])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/set.bin"

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.close()


def published(*urls: str, content: bytes = CONTENT, algorithm: str = "md5") -> Published:
    return Published("set.bin", urls, f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_fresh_download(server: Server, tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "new" / "set.bin"
    fetch(published(server.url, algorithm=algorithm), path)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["set.bin"]
    assert server.requests == [""]


def test_half_a_file_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:3000])
    fetch(published(server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.requests == ["bytes=3000-"]


def test_server_that_cannot_continue_sends_all(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:3000])
    fetch(published(server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.requests == ["bytes=3000-"], "that one answer is enough"


def test_whole_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    fetch(published(server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [3000, 20_000])
def test_part_of_another_file_is_replaced(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * length)
    fetch(published(server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.requests == [f"bytes={length}-", ""]


def test_connections_that_break_are_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cut_after = 4000
    fetch(published(server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.requests == ["", "bytes=4000-", "bytes=8000-"]


def test_connection_that_brings_nothing_ends_the_attempt(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:3000])
    server.cut_after = 0
    with pytest.raises(TeddyError, match="the connection ended after 3000 of 10240 bytes"):
        fetch(published(server.url), tmp_path / "set.bin")
    assert names(tmp_path) == ["set.bin.part"], "kept for the next attempt"
    assert (tmp_path / "set.bin.part").stat().st_size == 3000


def test_damaged_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(TeddyError) as caught:
        fetch(published(server.url), tmp_path / "set.bin")
    got = "md5:" + hashlib.md5(server.content).hexdigest()
    assert f"expected {published().checksum}, got {got}" in str(caught.value)
    assert names(tmp_path) == []


def test_missing_network_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    server.close()
    path = tmp_path / "set.bin"
    with pytest.raises(TeddyError) as caught:
        fetch(published(server.url), path)
    line = str(caught.value)
    assert "refused" in line and "\n" not in line
    assert line.endswith(f"fetch {server.url} by other means and put it at {path}")


def test_next_mirror_is_tried(server: Server, tmp_path: Path) -> None:
    gone = Server()
    gone.close()
    fetch(published(gone.url, server.url), tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_answers_of_the_server_are_named(server: Server, tmp_path: Path) -> None:
    server.content = b""
    with pytest.raises(TeddyError, match=f"{re.escape(server.url)}: HTTP 416"):
        fetch(published(server.url), tmp_path / "set.bin")


def test_full_disk_is_no_network_failure(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").symlink_to("/dev/full")
    with pytest.raises(TeddyError, match=r"set\.bin\.part: cannot write here: No space left"):
        fetch(published(server.url), tmp_path / "set.bin")


def test_folder_in_the_place_of_a_file_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin").mkdir()
    with pytest.raises(TeddyError, match=r"set\.bin\.part: cannot write here: Is a directory"):
        fetch(published(server.url), tmp_path / "set.bin")


def test_checksum_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match="gone: cannot read: No such file"):
        checksum(tmp_path / "gone", "md5")


# ------------------------------------------------------------------------------------ unpacking


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_archive_is_unpacked(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / name, {"set/a.txt": b"a", "set/b/c.txt": b"c"})
    extract(archive, tmp_path / "set")
    assert (tmp_path / "set/a.txt").read_bytes() == b"a"
    assert (tmp_path / "set/b/c.txt").read_bytes() == b"c"
    assert names(tmp_path) == sorted(["set", name]), "nothing else is left behind"


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_damaged_archive_leaves_nothing(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / name, {"set/a.txt": CONTENT})
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(TeddyError, match=f"{re.escape(name)}: cannot be unpacked"):
        extract(archive, tmp_path / "set")
    assert names(tmp_path) == [name]


def test_encrypted_archive_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "set.zip", {"set/a.txt": b"a"})
    content = archive.read_bytes()
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(header) + flags
        content = content[:at] + b"\x01" + content[at + 1 :]
    archive.write_bytes(content)
    with pytest.raises(TeddyError, match=r"set\.zip: cannot be unpacked .*is encrypted"):
        extract(archive, tmp_path / "set")
    assert names(tmp_path) == ["set.zip"]


def test_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "set.zip", {"other/a.txt": b"a"})
    with pytest.raises(TeddyError, match="expected the folder set in it, found other"):
        extract(archive, tmp_path / "set")
    assert names(tmp_path) == ["set.zip"]


@pytest.mark.parametrize("python", ["new", "before 3.11.4"])
def test_member_that_leaves_the_folder_is_refused(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python != "new":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "inside").mkdir()
    members = {"set/a.txt": b"a", "../../escaped.txt": b"x"}
    archive = write_archive(tmp_path / "inside" / "set.tar.gz", members)
    with pytest.raises(TeddyError, match=r"cannot be unpacked .*outside the destination"):
        extract(archive, tmp_path / "inside" / "set")
    assert names(tmp_path) == ["inside"]
    assert names(tmp_path / "inside") == ["set.tar.gz"]


def test_links_are_refused_where_python_cannot_tell_safe_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    link = tarfile.TarInfo("set/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with tarfile.open(tmp_path / "set.tar", "w") as opened:
        opened.addfile(link)
    with pytest.raises(TeddyError, match="'set/link' is neither a file nor a folder"):
        extract(tmp_path / "set.tar", tmp_path / "set")
    assert names(tmp_path) == ["set.tar"]
