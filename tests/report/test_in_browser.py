"""The pages in a real browser: no stranger's text runs as a script, and nothing is fetched."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.images import jpeg

from clipdata_jax.formats import score_tables, tars, uids
from clipdata_jax.runs import records

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=500",
    "--dump-dom",
]
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture
def listener():
    """A server, and the paths that were asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def browse(tmp_path):
    """Opens pages (name -> HTML) in a browser, all at once; returns name -> what became of them."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs chromium, to see what a browser makes of the pages; apt-get install chromium")

    def open_page(name, html):
        (tmp_path / f"{name}.html").write_text(html, "utf-8")
        return subprocess.run(
            [chromium, *_FLAGS, f"--user-data-dir={tmp_path / name}", (tmp_path / f"{name}.html").as_uri()],
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout.decode("utf-8")

    def browse(pages):
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(pages, pool.map(open_page, pages, pages.values()), strict=True))

    return browse


def hostile(url: str) -> str:
    """Text that, were it taken for HTML, would change the page's title and fetch from a server."""
    return (
        f"\"'>]]></code></style></title></p><img src={url}/image onerror=document.title='owned'><script>"
        f"document.title='owned';fetch('{url}/fetch')</script><iframe src={url}/frame></iframe>"
        f"<link rel=stylesheet href={url}/style><style>body{{background:url({url}/background)}}</style>"
    )


def report_page(clipdata, tmp_path, evil: str) -> str:
    """The page of a pool all of whose names and texts are hostile."""
    short = "<img src=x onerror=document['title']='owned'>"  # file names end at a slash, keys at a dot
    names = [f"{row:032x}" for row in range(40)]
    members = []
    for row, name in enumerate(names):
        members += [(f"{row}{short}.jpg", jpeg(row)), (f"{row}{short}.txt", evil.encode())]
        members += [(f"{row}{short}.json", b'{"uid": "%s"}' % name.encode())]
    tars.write_tar(f"tars/{short}.tar", members)
    (tmp_path / "tars/broken.tar").write_bytes(b"no tar")
    uid = uids.from_hex(names)
    folder = tmp_path / f"scores {short}"
    folder.mkdir()
    scores = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    part = score_tables.part_bytes(uid, {"clip_score": scores[0], evil: scores[1]})
    (folder / "a.parquet").write_bytes(part)
    for name, rows in (("mine", slice(0, 40, 2)), ("other", slice(0, 20))):
        uids.write_subset(f"{name}.npy", uid[rows])
    told = {"rule": evil, "steps": [{"rule": evil, "seen": 1, "kept": 1}], "versions": {evil: evil}, evil: evil}
    (tmp_path / "mine.npy.manifest.json").write_bytes(records.to_json(told))
    (folder / "_manifest.json").write_bytes(records.to_json(told))
    done = clipdata(
        *("report", folder.name, "--subset", "mine.npy", "--compare", "<script>=other.npy", "--pool", "tars"),
        *("--title", evil, "--on-bad", "skip", "--out", "page.html"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "page.html.manifest.json").read_bytes())["counts"]
    assert told["found_in_pool"] == told["shown"] > 0  # the captions are on the page
    return (tmp_path / "page.html").read_text("utf-8")


def test_hostile_text_runs_no_script_and_fetches_nothing(clipdata, tmp_path, browse, listener):
    url, asked = listener
    evil = hostile(url)
    page = report_page(clipdata, tmp_path, evil)
    assert page.count("document.title") > 5
    policy = _POLICY.search(page)[0]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    # All text is escaped, so that the policy isn't needed; and it holds where text is not escaped.
    seen = browse({"without policy": page.replace(policy, ""), "unescaped": page.replace("<main>", f"<main>{evil}")})
    assert not asked
    for name, shown in seen.items():
        assert "<title>owned" not in shown, name
        assert "</main>" in shown, name
    both = page.replace(policy, "").replace("<main>", f"<main>{evil}")
    assert "<title>owned" in browse({"both": both})["both"]
    assert {"/image", "/fetch"} <= set(asked)
