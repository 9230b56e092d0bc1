import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from dataset.sevir import download
from dataset.sevir.download import RemoteFile, fetch, is_inside, look_up, main
from utils import files
from utils.errors import InputError

H5 = "data/vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5"
OTHER_H5 = "data/vil/2019/SEVIR_VIL_STORMEVENTS_2019_0701_1231.h5"
CONTENT = np.random.default_rng(0).bytes(50_000)


class Bucket(BaseHTTPRequestHandler):
    """A server of files, with faults to order; `requests` says which contents were asked for."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        content = self.server.files.get(unquote(self.path[1:]))
        if self.server.location or content is None:
            self.refuse()
        else:
            self.answer(200, b"", {"Content-Length": len(content), "ETag": self.server.etag} | self.server.told)

    def do_GET(self):
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.requests.append((path, self.headers.get("Range")))
        if server.failures:
            self.send_error(server.failures.pop(0))
        elif server.location or path[1:] not in server.files:
            self.refuse()
        else:
            self.send_file(server.files[path[1:]])

    def refuse(self):
        if self.server.location:
            self.answer(302, b"", {"Location": self.server.location + self.path})
        else:
            self.send_error(404)

    def send_file(self, content):
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.server.ranges and self.headers.get("If-Range") == self.server.etag:
            start, status = int(wanted[1]), 206
        where = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if status == 206 else {}
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.answer(status, content[start:], where | {"ETag": self.server.etag}, cut)

    def answer(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:cut])


def catalogue(*names) -> bytes:
    """A catalogue with a row for each file."""
    rows = [f"S{i},{name},{i},{name.partition('/')[0]},2019-01-01 00:00:00,0" for i, name in enumerate(names)]
    return "\n".join(["id,file_name,file_index,img_type,time_utc,pct_missing", *rows, ""]).encode()


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Bucket)
        self.files = {
            H5: CONTENT,
            OTHER_H5: CONTENT[:99],
            "data/vil/2018/SEVIR.h5": b"2018",
            "data/vis/2019/V.h5": b"vis",
        }
        self.files["CATALOG.csv"] = catalogue(*(name.removeprefix("data/") for name in [OTHER_H5, *self.files]))
        self.etag, self.ranges = '"abc-7"', True
        self.failures, self.cuts, self.requests = [], [], []  # HTTP statuses; bytes after which a body ends
        self.told, self.location = {}, ""  # headers about a file; where requests are sent on to

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 1e-4)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def remote(server) -> RemoteFile:
    return RemoteFile(H5, len(CONTENT), server.etag)


def command(server, out, *more):
    main(["sevir", "--years", "2019", "--out", str(out), "--url", server.url, *more])


def below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_catalogue_and_files_of_the_year_arrive_and_a_second_run_asks_for_none(server, tmp_path):
    command(server, tmp_path)
    assert below(tmp_path) == {"CATALOG.csv", H5, OTHER_H5}
    assert (tmp_path / H5).read_bytes() == CONTENT
    asked = [path for path, _ in server.requests]
    assert asked == ["/CATALOG.csv", f"/{H5}", f"/{OTHER_H5}"]
    server.requests.clear()
    command(server, tmp_path)
    assert server.requests == []


def test_a_dry_run_lists_sizes_and_writes_nothing(server, tmp_path, caplog):
    caplog.set_level("INFO")
    command(server, tmp_path / "out", "--dry_run")
    assert f"50.0kB  {H5}" in caplog.text
    assert "3 files, 50.5kB" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_year_that_is_named_twice_counts_once(server, tmp_path, caplog):
    caplog.set_level("INFO")
    command(server, tmp_path, "--dry_run", "--years", "2019", "2019")
    assert "3 files, 50.5kB" in caplog.text


def test_a_broken_connection_continues_with_the_missing_bytes(server, remote, tmp_path):
    server.cuts = [10_000, 20_000]
    told = []
    assert fetch(server.url, remote, tmp_path, told.append).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=10000-", "bytes=30000-"]
    assert sum(told) == len(CONTENT)
    assert below(tmp_path) == {H5}


def test_a_later_run_continues_and_a_new_version_does_not(server, remote, tmp_path):
    server.cuts, server.failures = [10_000], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(InputError, match="ends after 10000 of 50000 bytes; the same command continues"):
            fetch(server.url, remote, tmp_path)
    assert not (tmp_path / H5).exists()
    server.etag, server.requests = '"def"', []
    fetch(server.url, remote._replace(etag='"def"'), tmp_path / "new")
    fetch(server.url, remote._replace(etag='"def"'), tmp_path)
    assert [asked for _, asked in server.requests] == [None, None]
    assert (tmp_path / H5).read_bytes() == CONTENT


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": '"changed"'}])
def test_a_server_that_sends_the_whole_file_again_is_understood(server, remote, tmp_path, change):
    server.cuts = [10_000]
    vars(server).update(change)
    told = []
    assert fetch(server.url, remote, tmp_path, told.append).read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)


def test_a_server_that_begins_again_and_again_is_given_up(server, remote, tmp_path):
    server.ranges, server.cuts = False, [10_000, 20_000, 10_000] + 5 * [15_000, 10_000]
    with pytest.raises(InputError, match="of 50000 bytes; the same command continues"):
        fetch(server.url, remote, tmp_path)
    assert len(server.requests) == 1 + download.ATTEMPTS


def test_passing_failures_are_outlasted_and_lasting_ones_told(server, remote, tmp_path):
    server.failures = [500, 503, 429]
    assert fetch(server.url, remote, tmp_path / "a").read_bytes() == CONTENT
    server.failures = [500] * download.ATTEMPTS
    with pytest.raises(InputError, match=r"answers 500 .*; the same command continues from here"):
        fetch(server.url, remote, tmp_path / "b")
    with pytest.raises(InputError, match="answers 404"):
        fetch(server.url, remote._replace(key="data/none.h5"), tmp_path)
    assert server.requests[-1] == ("/data/none.h5", None)


def test_a_file_larger_than_announced_is_refused(server, remote, tmp_path):
    with pytest.raises(InputError, match="larger than the 40000 bytes"):
        fetch(server.url, remote._replace(size=40_000), tmp_path)
    assert not (tmp_path / H5).exists()


def test_a_server_that_is_not_there_is_one_sentence(tmp_path, server):
    server.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        command(server, tmp_path)


@pytest.mark.parametrize("name", ["vil/2019/../../../x", "vil/2019/\\..\\x", "vil/2019/a\tb.h5"])
def test_a_name_that_leaves_the_folder_is_refused(server, tmp_path, name):
    server.files["CATALOG.csv"] = catalogue(name)
    with pytest.raises(InputError, match="not safe to write"):
        command(server, tmp_path)
    assert below(tmp_path) == {"CATALOG.csv"}


@pytest.mark.parametrize("content", [b"", b"<html>Sign in</html>", b"\xff\xfe\0"])
def test_an_answer_that_is_no_catalogue_is_refused_and_not_kept(server, tmp_path, content):
    server.files["CATALOG.csv"] = content
    with pytest.raises(InputError, match=r"answers with no catalogue; check --url: .*CATALOG\.csv"):
        command(server, tmp_path)
    assert below(tmp_path) == set()


def test_a_year_that_the_catalogue_lacks_and_a_size_that_is_not_told_are_one_sentence(server, tmp_path):
    with pytest.raises(InputError, match=r"names no file vil/2017/\*"):
        command(server, tmp_path, "--years", "2017")
    server.told = {"Content-Length": "many"}
    with pytest.raises(InputError, match=r"does not give the size of CATALOG\.csv"):
        command(server, tmp_path)


def test_a_disk_that_is_too_small_is_known_before_the_download(server, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"has 1.00kB free, 50\.1kB are needed"):
        command(server, tmp_path)
    assert below(tmp_path) == {"CATALOG.csv"}


def test_a_disk_that_fills_up_is_one_sentence(server, remote):
    full = "/dev/full"
    with (
        pytest.raises(InputError, match="cannot write /dev/full"),
        download._writing(full),
        open(full, "ab", 0) as target,
    ):
        download._receive(server.url, remote, target, lambda _: None)


def test_two_downloads_to_one_folder_do_not_mix(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.1)
    with files.locked(tmp_path, ""), pytest.raises(InputError, match="another run is at work in"):
        command(server, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc", "http://", "http://[::1", "sevir"])
def test_an_address_that_is_no_web_address_is_refused(tmp_path, url):
    with pytest.raises(InputError, match=f"{re.escape(url)} is not an http or https"):
        main(["sevir", "--out", str(tmp_path), "--url", url])


@pytest.mark.parametrize("url", ["http://a b", "http://127.0.0.1:port", "http://127.0.0.1/r\xe4dar"])
def test_an_address_that_cannot_be_opened_is_not_tried_again(tmp_path, monkeypatch, url):
    monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("it is tried again"))
    with pytest.raises(InputError, match="leads to no address that can be opened"):
        main(["sevir", "--out", str(tmp_path), "--url", url])


def test_a_redirection_is_followed_with_the_range_and_one_in_a_circle_is_one_sentence(server, remote, tmp_path):
    with Server() as front:
        threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
        front.location, server.cuts = server.url, [10_000]
        assert fetch(front.url, remote, tmp_path).read_bytes() == CONTENT
        assert [asked for _, asked in server.requests] == [None, "bytes=10000-"]
        assert look_up(front.url, H5) == remote
        front.location = front.url
        with pytest.raises(InputError, match=rf"{front.url}.* answers 302 .*; check --url\.") as caught:
            look_up(front.url, H5)
        front.location = "http://[::1"
        with pytest.raises(InputError, match="leads to no address"):
            look_up(front.url, H5)
        front.shutdown()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "vil/../../x", "\\\\host\\x", "C:\\x", "C:x", "vil\\..\\..\\x"]
)
def test_no_file_name_leads_out_of_the_folder(name):
    assert not is_inside(name)
