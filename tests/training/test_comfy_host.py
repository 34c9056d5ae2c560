"""The server client against a small server that speaks ComfyUI's HTTP, so that it needs no ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpsattention.training.comfy_host import ComfyHost, ComfyHostError, PromptRejectedError

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

arguments = dict(zip(sys.argv[1::1], sys.argv[2::1]))
if "--fail" in sys.argv:
    sys.exit("a reason to end")
base, port = arguments["--base-directory"], int(arguments["--port"])
history = {}

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path.startswith("/history/"):
            key = self.path.split("/")[-1]
            self.answer(200, {key: history[key]} if key in history else {})
        elif self.path == "/system_stats":
            self.answer(200, {"packs": sorted(os.listdir(base + "/custom_nodes"))})
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self):
        graph = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        if "bad" in graph:
            self.answer(400, {"error": {"message": "refused"}, "node_errors": {
                "1": {"class_type": "Node", "errors": [{"message": "Bad value", "details": "x - it is bad."}]}}})
            return
        if "slow" not in graph:
            status = {"status_str": "success", "messages": []}
            if "fails" in graph:
                failure = {"node_type": "KSampler", "exception_message": "out of something\\n"}
                status = {"status_str": "error", "messages": [["execution_error", failure]]}
            files = {"images": [{"filename": "a.png", "subfolder": "s", "type": "temp"}], "text": ["x"]}
            history["7"] = {"status": status, "outputs": {"9": files}}
        self.answer(200, {"prompt_id": "7"})

print("listening")
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "main.py").write_text(SERVER)
    return folder


@pytest.fixture(scope="module")
def host(checkout, tmp_path_factory):
    pack = tmp_path_factory.mktemp("packs") / "my-pack"
    pack.mkdir()
    with ComfyHost(checkout, tmp_path_factory.mktemp("base"), pack, cpu=False) as running:
        yield running


def test_packs_and_folders_are_there(host):
    assert host.get("/system_stats") == {"packs": ["my-pack"]}
    for folder in ("models", "input", "output", "temp", "user"):
        assert (host.base / folder).is_dir()


def test_a_prompt_runs_and_names_its_files(host):
    entry = host.prompt({"1": {}})
    assert host.files(entry) == [host.base / "temp" / "s" / "a.png"]


def test_a_refused_prompt(host):
    with pytest.raises(PromptRejectedError, match=r"Node: Bad value \(x - it is bad\.\)") as refused:
        host.prompt({"bad": {}})
    assert refused.value.details["node_errors"]["1"]["class_type"] == "Node"


def test_a_failing_node(host):
    with pytest.raises(ComfyHostError, match=r"^KSampler: out of something$"):
        host.prompt({"fails": {}})


def test_a_page_that_does_not_exist(host):
    with pytest.raises(ComfyHostError, match="404"):
        host.get("/nothing")


def test_waiting_ends(checkout, tmp_path):
    waited = []
    failure = pytest.raises(ComfyHostError, match=r"did not finish within 0 s(.|\n)*listening")
    with ComfyHost(checkout, tmp_path, cpu=False) as slow, failure:
        slow.prompt({"slow": {}}, timeout=0.2, on_wait=waited.append)
    assert waited and waited[0] >= 0


def test_models_are_offered_by_name(host, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert host.add_model(tmp_path / "model.safetensors", name="other.safetensors") == "other.safetensors"
    assert (host.base / "models" / "diffusion_models" / "other.safetensors").read_bytes() == b"1"


def test_a_server_that_ends_says_why(checkout, tmp_path):
    with pytest.raises(ComfyHostError, match=r"exit code 1(.|\n)*a reason to end"):
        ComfyHost(checkout, tmp_path, cpu=False, arguments=["--fail"]).__enter__()


def test_a_server_that_is_gone(checkout, tmp_path):
    host = ComfyHost(checkout, tmp_path, cpu=False).__enter__()
    host.stop()
    host.stop()
    with pytest.raises(ComfyHostError, match="does not answer"):
        host.get("/system_stats")
