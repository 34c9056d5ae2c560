"""The published set alone, copied as the registry delivers it, in a real host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fpsattention.training.comfy_host import ComfyHost

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The published files, in a folder with the pack's name in the registry."""
    listings = []
    for options in ([], ["--cached", "--ignored", "--exclude-from=.comfyignore"]):
        done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            pytest.skip("this is no git checkout")
        listings.append({name for name in done.stdout.split("\0") if name})
    target = tmp_path_factory.mktemp("published") / "fpsattention"
    for name in listings[0] - listings[1]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def test_it_loads_and_offers_everything(checkout, copy, tmp_path):
    with ComfyHost(checkout, tmp_path / "base", copy) as host:
        nodes = {name for name in host.get("/object_info") if name.startswith("FPSAttention")}
        assert nodes == {page.stem for page in (copy / "nodes" / "web" / "docs").glob("*.md")}
        assert len(host.get("/workflow_templates")["fpsattention"]) == len(list((copy / "workflows").glob("*.json")))
        assert "FPSAttentionApply" in host.get("/i18n")["zh"]["nodeDefs"]
        assert [entry for entry in host.get("/global_subgraphs").values() if "FPSAttention" in entry["name"]]
        assert host.prompt({"1": {"class_type": "FPSAttentionCheck", "inputs": {}}})["outputs"]["1"]["text"]
        log = host.log()
    ours = [line for line in log.splitlines() if "fpsattention" in line.lower()]
    assert "(IMPORT FAILED)" not in log
    assert not [line for line in ours if "warn" in line.lower() or "error" in line.lower() or "Traceback" in line], ours
