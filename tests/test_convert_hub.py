"""Hub ids: what is fetched, from where, and what is said when it cannot be had."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from checkpoints import write
from support import TINY

from jaxprobe.convert import hub
from jaxprobe.errors import ProbeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing", "no such directory, and not a hub id: './missing'"),
        ("/missing", "no such directory"),
        ("~/missing-model", "no such directory"),
        ("a/b/c", "no such directory"),
        ("two words", "no such directory"),
        ("", "no such directory"),
    ],
)
def test_names_that_are_no_hub_id(name, message):
    with pytest.raises(ProbeError, match=message):
        hub.resolve(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ProbeError, match="must be a directory or a hub id, got the file"):
        hub.resolve(tmp_path / "model.safetensors")


def test_directories_come_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("gpt2") == hub.Location(Path("gpt2"), None)


LOAD = """
import sys
from jaxprobe import convert
from jaxprobe.convert import hub
from jaxprobe.errors import ProbeError
hub._TIMEOUT_S = 1.0
try:
    certificate = convert.load(sys.argv[1]).certificate
    print(certificate.source, certificate.revision)
except ProbeError as error:
    print("ProbeError:", error)
"""


def load(model: str, **environment: str) -> str:
    """What a fresh process says: the hub client reads its environment once, when imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-c", LOAD, model]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def cached(tmp_path):
    """A hub cache that holds acme/tiny; returns HF_HOME."""
    repo = tmp_path / "home" / "hub" / "models--acme--tiny"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    write(repo / "snapshots" / COMMIT, TINY["gpt2"])
    return tmp_path / "home"


def test_offline_uses_the_cache(cached):
    environment = {"HF_HOME": str(cached), "HF_HUB_OFFLINE": "1"}
    assert load("acme/tiny", **environment) == f"acme/tiny {COMMIT}"
    assert load("acme/other", **environment) == (
        "ProbeError: 'acme/other' is no local directory, and HF_HUB_OFFLINE is set and the local cache does "
        "not hold it"
    )


def test_no_network_uses_the_cache(cached):
    environment = {"HF_HOME": str(cached), "HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
    assert load("acme/tiny", **environment) == f"acme/tiny {COMMIT}"
    assert "'acme/other' is no local directory, and the hub cannot be reached" in load(
        "acme/other", **environment
    )


def test_an_incomplete_snapshot_names_what_is_missing(cached):
    (cached / "hub" / "models--acme--tiny" / "snapshots" / COMMIT / "model.safetensors").unlink()
    said = load("acme/tiny", HF_HOME=str(cached), HF_HUB_OFFLINE="1")
    assert said.startswith("ProbeError: ") and said.endswith("has no weights: expected model.safetensors or "
                                                             "model.safetensors.index.json")  # fmt: skip


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a download needs, for the one model in `folder`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self):
        self._serve(body=False)

    def do_GET(self):
        self._serve(body=True)

    def log_message(self, format, *args):
        pass

    def _serve(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(self.folder.iterdir())
        if path.startswith("/api/models/acme/tiny/tree/"):
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _hash(f)} for f in files
            ]
            self._answer(200, json.dumps(entries).encode(), body)
        elif path.startswith("/api/models/acme/tiny"):
            siblings = [{"rfilename": file.name} for file in files]
            model = {"id": "acme/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._answer(200, json.dumps(model).encode(), body)
        elif path.startswith(f"/acme/tiny/resolve/{COMMIT}/"):
            file = self.folder / path.rpartition("/")[2]
            self.asked.append(file.name)
            self._answer(200, file.read_bytes(), body, ETag=f'"{_hash(file)}"', **{"X-Repo-Commit": COMMIT})
        else:
            self._answer(404, b"{}", body, **{"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path):
    Hub.folder, Hub.asked = write(tmp_path / "served", TINY["mamba"]), []
    for name in ("pytorch_model.bin", "README.md", "flax_model.msgpack", "onnx.safetensors"):
        (Hub.folder / name).write_text("not needed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_only_needed_files_are_fetched_and_then_kept(server, tmp_path):
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server, "HF_HUB_DISABLE_XET": "1"}
    assert load("acme/tiny", **environment) == f"acme/tiny {COMMIT}"
    assert set(Hub.asked) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    Hub.asked.clear()
    assert load("acme/tiny", **environment, HF_HUB_OFFLINE="1") == f"acme/tiny {COMMIT}"
    assert Hub.asked == []
    assert load("acme/other", **environment) == (
        "ProbeError: 'acme/other' is no local directory, and the hub has no such model (or it is private)"
    )


def test_a_silent_network_ends_in_time(tmp_path):
    """Something that accepts the connection and never answers: the client alone would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = load("acme/tiny", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert "the hub cannot be reached" in said
