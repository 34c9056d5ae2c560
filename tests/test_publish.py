"""What the registry would publish: complete, small, readable on every system, and told the same everywhere.

The published set is what git tracks without what ``.comfyignore`` names.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# The tiny base and its VAE are 12 MB of it.
MOST_MEGABYTES = 16
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def listed(*options: str) -> set[str]:
    done = subprocess.run(
        ["git", "-c", "core.quotePath=false", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("this is no git checkout")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def published() -> set[str]:
    return listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_what_users_need_is_in_and_nothing_else(published):
    folders = {PurePosixPath(name).parts[0] for name in published if "/" in name}
    assert folders == {"nodes", "kernels", "training", "workflows", "subgraphs", "locales"}
    files = {name for name in published if "/" not in name}
    needed = {"__init__.py", "fpsattention.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"}
    assert files == needed
    for name in (
        "nodes/web/docs/FPSAttentionApply.md",
        "nodes/web/docs/images/editor.png",
        "nodes/web/fps_schedule.js",
    ):
        assert name in published


def test_the_size_is_bounded(published, show_at_end):
    bytes_ = sum((ROOT / name).stat().st_size for name in published)
    large = sorted(((ROOT / name).stat().st_size, name) for name in published)[-3:]
    show_at_end(
        "published set",
        f"{len(published)} files, {bytes_ / 1e6:.1f} MB; largest: "
        + ", ".join(f"{name} {size / 1e6:.1f} MB" for size, name in reversed(large)),
    )
    assert bytes_ < MOST_MEGABYTES * 1e6


def test_names_that_every_system_takes():
    """No character, ending or word that Windows refuses, no two names that differ in case alone, no links."""
    names = listed()
    for name in names:
        assert not re.search(r'[<>:"\\|?*\x00-\x1f]', name), name
        assert name.isascii() and len(name) < 150, name
        for part in PurePosixPath(name).parts:
            assert not part.endswith((".", " ")) and part.split(".")[0].lower() not in RESERVED, name
        assert not (ROOT / name).is_symlink(), name
    assert len({name.lower() for name in names}) == len(names)


def test_text_files_are_utf8_and_read_as_such(published):
    """Windows' own encoding is another: every file that is opened as text names UTF-8."""
    for name in sorted(published):
        if not name.endswith(".py"):
            continue
        text = (ROOT / name).read_bytes().decode("utf-8")
        for call in re.findall(r"\.(?:read|write)_text\((?:[^()]|\([^()]*\))*\)", text):
            assert "encoding=" in call, f"{name}: {call}"


def test_one_version(published):
    version = PROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f'__version__ = "{version}"' in (ROOT / "__init__.py").read_text(encoding="utf-8")
    graphs = [ROOT / name for name in published if re.fullmatch(r"(workflows|subgraphs)/.*\.json", name)]
    assert graphs
    for path in graphs:
        said = re.findall(r'"cnr_id": "fpsattention",\s*"ver": "([^"]+)"', path.read_text(encoding="utf-8"))
        assert said and set(said) == {version}, path.name


def test_the_registry_gets_what_it_asks_for():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_-]{1,98}", project["name"]) and "comfyui" not in project["name"]
    assert project["license"] == {"file": "LICENSE"} and (ROOT / "LICENSE").is_file()
    assert project["urls"].keys() >= {"Repository", "Documentation", "Bug Tracker"}
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.11.0"
    assert "web" not in comfy, "the folder is named in __init__.py; named twice, its files would load twice"
    for key in ("Icon", "banner_url"):
        assert comfy[key].startswith("https://raw.githubusercontent.com/")
        picture = ROOT / comfy[key].split("/main/")[1]
        assert picture.read_text(encoding="utf-8").startswith("<svg ")
    said = " ".join(project["classifiers"])
    for word in ("Windows", "Linux", "GPU :: NVIDIA CUDA", "3.10", "3.13"):
        assert word in said


def test_requirements_agree():
    """What pip installs with the package, and what the host's manager installs; torch is the host's own."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert {entry for entry in PROJECT["project"]["dependencies"] if not entry.startswith("torch")} == wanted


def test_every_package_is_installed(published):
    """pip takes the packages that are listed, so the list is complete."""
    folders = {PurePosixPath(name).parent for name in published if name.endswith("/__init__.py")}
    there = {"fpsattention", *(".".join(("fpsattention", *folder.parts)) for folder in folders)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there


def test_unsafe_calls_are_checked():
    """The registry refuses eval, exec and semicolons; ruff looks for them in every run of the tests."""
    assert {"S102", "S307", "E702"} <= set(PROJECT["tool"]["ruff"]["lint"]["select"])
    ignored = PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"].values()
    assert not {"S102", "S307", "E702"} & {rule for rules in ignored for rule in rules}


def test_pictures_of_the_readme_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    pictures += re.findall(r"""<img\b[^>]*?\bsrc=["']?([^"'\s>]+)""", text)
    assert "docs/images/editor.png" in pictures
    tracked = listed()
    assert [target for target in pictures if not target.startswith("https://") and target not in tracked] == []


def test_json_is_json(published):
    for name in sorted(published):
        if name.endswith(".json"):
            json.loads((ROOT / name).read_text(encoding="utf-8"))


def test_nothing_names_a_machine(published):
    """No path of the machine that a file was written on, and no key."""
    private = re.compile(r"/(?:root|home/\w+|work)/|[A-Z]:\\\\Users|hf_[A-Za-z0-9]{20}|ghp_[A-Za-z0-9]{20}")
    for name in sorted(published):
        if name.endswith((".py", ".js", ".json", ".md", ".toml", ".txt")):
            found = private.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found.group()}"
