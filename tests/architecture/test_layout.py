"""The house rules of docs/adr/0001-layout.md, checked on the files git knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nurie.config.loader import load_config

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "platform/nurie",
    "platform/nurie_cli",
    "pipelines/nurie_pipelines",
    "serve/nurie_serve",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PATH_CHARACTERS = 120


def files_of_the_project() -> list[Path]:
    """Everything in git, and what is new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listing.splitlines() if (ROOT / line).is_file()]


FILES = files_of_the_project()
SOURCES = [file for file in FILES if file.suffix == ".py"]
PACKAGE_SOURCES = [file for file in SOURCES if str(file).startswith(PACKAGES)]
CONFIGS = [str(file) for file in FILES if file.parts[0] == "configs" and file.suffix == ".yaml"]


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_lists_are_not_empty():
    assert len(PACKAGE_SOURCES) > 20
    assert len(CONFIGS) > 5


@pytest.mark.parametrize("root", ["platform", "pipelines", "serve", "configs", "infra", "tests"])
def test_a_source_root_is_no_package(root):
    # platform/__init__.py would shadow Python's own `platform`, and no Ray worker could start.
    assert not (ROOT / root / "__init__.py").exists()


def test_no_test_folder_is_named_platform():
    assert not (ROOT / "tests" / "platform").exists()


def test_every_package_folder_has_an_init_file():
    folders = {file.parent for file in PACKAGE_SOURCES}
    assert [
        folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()
    ] == []


def test_nothing_imports_torchvision():
    banned = "torch" + "vision"
    users = [
        file for file in SOURCES if any(m.split(".")[0] == banned for m in imported_modules(file))
    ]
    assert users == []


def test_files_are_short():
    long = {}
    for file in PACKAGE_SOURCES:
        lines = len((ROOT / file).read_text().splitlines())
        if lines > MAX_FILE_LINES:
            long[str(file)] = lines
    assert long == {}


def test_functions_are_short():
    long = {}
    for file in PACKAGE_SOURCES:
        for function in functions(file):
            lines = (function.end_lineno or 0) - function.lineno + 1
            # A long docstring is a virtue; only the code counts.
            lines -= len((ast.get_docstring(function) or "").splitlines())
            if lines > MAX_FUNCTION_LINES:
                long[f"{file}:{function.name}"] = lines
    assert long == {}


def test_paths_are_short():
    assert [file for file in FILES if len(str(file)) > MAX_PATH_CHARACTERS] == []


def test_modules_are_named_after_an_idea():
    assert [file for file in SOURCES if file.stem in {"utils", "util", "helpers", "misc"}] == []


def test_nothing_is_left_to_do():
    marker = re.compile("TO" + "DO|FIX" + "ME|NotImplemented" + "Error")
    assert [file for file in SOURCES if marker.search((ROOT / file).read_text())] == []


def test_no_path_of_a_developers_machine():
    home = re.compile(r"/(home|Users|work)/[a-z]")
    text = [file for file in FILES if file.suffix in {".py", ".yaml", ".toml", ".md", ".json"}]
    assert [file for file in text if home.search((ROOT / file).read_text())] == []


@pytest.mark.parametrize("file", CONFIGS)
def test_every_config_is_valid(file):
    config = load_config(ROOT / file)
    # What a run writes down as resolved.yaml is the same configuration.
    assert type(config).model_validate(config.model_dump(mode="json")) == config


def test_an_ablation_differs_from_its_base_in_one_setting():
    base = load_config(ROOT / "configs/train/nano.yaml").model_dump(mode="json")
    for name, change in (("nano-no-gram", "gram"), ("nano-no-tagger", "use_tagger")):
        run = load_config(ROOT / f"configs/train/{name}.yaml").model_dump(mode="json")
        own = [key for key in run if run[key] != base[key]]
        expected = "stages" if change == "gram" else "model"
        assert set(own) == {"name", "output", "tracking", expected}
        assert run["tracking"] | {"registered_model": "nurie"} == base["tracking"]
        run["stages"][0]["gram"]["weight"] = base["stages"][0]["gram"]["weight"]
        run["model"]["reference"]["use_tagger"] = True
        assert (run["stages"], run["model"]) == (base["stages"], base["model"])


def test_links_between_documents_lead_somewhere():
    broken = []
    for file in (file for file in FILES if file.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", (ROOT / file).read_text()):
            if target not in ("http", "https") and not (ROOT / file.parent / target).exists():
                broken.append(f"{file}: {target}")
    assert broken == []


def test_every_decision_and_guide_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = [file for file in FILES if file.parent in (Path("docs/adr"), Path("docs/guides"))]
    assert [file for file in pages if f"({file.parent.name}/{file.name})" not in index] == []


def test_import_directions():
    # The same contracts as `make imports`: pyproject.toml, [tool.importlinter].
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
