"""The layers hold: nodes and training stand on kernels and never see each other; kernels sees neither.

Read from the source, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "nodes", "training")
MAY_IMPORT = {"kernels": {"kernels"}, "nodes": {"nodes", "kernels"}, "training": {"training", "kernels"}}
# What a layer may take from outside torch and the standard library; everything else stays optional or elsewhere.
FOREIGN = {
    "kernels": {"comfy", "comfy_api", "folder_paths", "diffusers", "transformers", "av", "pydantic"},
    "nodes": {"diffusers", "transformers", "av", "pydantic"},
    "training": {"comfy", "comfy_api", "folder_paths"},
}
# The benchmark times other people's code, a whole diffusers model among it; it is imported by nothing else.
BENCHMARKED = {"diffusers"}
MAX_LINES = 400


def sources(*layers: str) -> list[Path]:
    return sorted(path for layer in layers for path in (ROOT / layer).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def launchers() -> list[Path]:
    """Return the files that are run: those with a main guard."""
    found = []
    for path in sources(*LAYERS):
        for node in tree(path).body:
            if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
                found.append(path)
    return found


def imports(path: Path) -> list[tuple[int, str]]:
    """Return level and full name of every import of a file, relative ones resolved to names from the root."""
    package = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found += [(node.level, f"{module}.{alias.name}" if module else alias.name) for alias in node.names]
    return found


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_source = pytest.mark.parametrize("path", sources(*LAYERS), ids=named)


@every_source
def test_a_file_imports_only_from_the_layers_below(path):
    layer = path.relative_to(ROOT).parts[0]
    for level, name in imports(path):
        top = name.removeprefix("fpsattention.").split(".")[0]
        ours = level > 0 or name.startswith("fpsattention")
        if ours:
            assert top in MAY_IMPORT[layer] or name in ("__version__", "fpsattention.__version__"), name
            assert (level > 0) != (path in launchers()), f"{name}: launchers import by name, everything else relatively"
        else:
            assert top not in LAYERS, f"{name} is another identity of the pack"
            measured = BENCHMARKED if path.parts[len(ROOT.parts) :][:2] == ("kernels", "bench") else set()
            assert top not in FOREIGN[layer] - measured, name


@pytest.mark.parametrize("path", launchers(), ids=named)
def test_a_launcher_defines_nothing(path):
    body = tree(path).body
    assert isinstance(body[-1], ast.If)
    for node in body[:-1]:
        assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom), f"{named(path)} defines something"


def test_the_trainer_is_a_launcher():
    assert ROOT / "training" / "run.py" in launchers()


def test_the_roots_import_nothing_when_they_are_loaded():
    for name, allowed in (("__init__.py", {"__future__.annotations"}), ("fpsattention.py", {"pathlib.Path"})):
        top = [node for node in tree(ROOT / name).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert {f"{node.module}.{alias.name}" for node in top for alias in node.names} == allowed


@every_source
def test_libraries_log_and_raise(path):
    """Only a command line prints; users get sentences, not assertions or exits."""
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assertion is no message for users"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not path.name.endswith("cli.py"):
            assert node.func.id != "print", f"line {node.lineno} prints"


@every_source
def test_a_file_is_short_and_says_what_it_is(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", sources("kernels"), ids=named)
def test_public_functions_say_what_they_return_and_have_types(path):
    module = tree(path)
    kernels = {"jit", "autotune", "heuristics"}
    for node in [*module.body, *(m for c in module.body if isinstance(c, ast.ClassDef) for m in c.body)]:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        if any(kernel in ast.unparse(decorator) for decorator in node.decorator_list for kernel in kernels):
            continue
        assert ast.get_docstring(node), f"{node.name} has no docstring"
        assert node.returns is not None, f"{node.name} has no return type"
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            assert argument.annotation is not None or argument.arg in ("self", "cls"), f"{node.name}: {argument.arg}"


def test_ops_are_registered_in_few_places_and_one_way():
    """``custom_op`` takes tensors and scalars only; a Library would survive a second import unnoticed."""
    for path in sources("kernels", "nodes"):
        text = path.read_text(encoding="utf-8")
        assert "torch.library.Library" not in text and "torch.library.define" not in text, named(path)
        if "torch.library.custom_op" in text:
            assert named(path) in ("kernels/attention/op.py", "kernels/msfp/op.py")


def committed() -> list[Path]:
    """Return the text files under version control, or all of the layers' where there is none."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\n")[:-1] if done.returncode == 0 else [named(path) for path in sources(*LAYERS)]
    suffixes = {".py", ".toml", ".md", ".json", ".txt", ".mjs", ".js", ".yml", ".yaml", ""}
    return [ROOT / name for name in names if (ROOT / name).suffix in suffixes and (ROOT / name).is_file()]


def test_no_path_of_a_machine_is_committed():
    pattern = re.compile(r"(?<![\w.~*-])/(?:work|root|home/\w+|Users/\w+)/|[A-Z]:\\\\?Users", re.ASCII)
    for path in committed():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not pattern.search(line) or path == Path(__file__), f"{named(path)}:{number}: {line.strip()[:80]}"
