"""The documentation is true: names, paths, commands and examples exist and work."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import rpn_jax
from rpn_jax.cli import parse
from rpn_jax.config import config_names, load_config, save_config
from rpn_jax.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PAGES += sorted((ROOT / "examples").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


PYTHON = [
    pytest.param(code, id=f"{name_of(page)}-{number}")
    for page, text in TEXT.items()
    for number, (language, code) in enumerate(FENCE.findall(text))
    if language == "python"
]


def command_lines(text: str) -> list[str]:
    """Return the commands in a page's code blocks and tables, without their comments."""
    blocks = [code for language, code in FENCE.findall(text) if not language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:rpn-jax|python) [^`]*)`", FENCE.sub("", text))
    found = (re.search(r"(?:rpn-jax|python (?:train|-m)).*", line.split(" #")[0]) for line in lines)
    return [match.group() for match in found if match]


COMMANDS = sorted({line for text in TEXT.values() for line in command_lines(text)})


def test_readme_lists_exactly_the_public_names() -> None:
    section = TEXT[ROOT / "README.md"].split("### Public names")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(rpn_jax.__all__)
    listed_ops = re.findall(r"`ops\.(\w+)`", section)
    assert sorted(listed_ops) == sorted(rpn_jax.ops.__all__)


def test_the_readme_is_short() -> None:
    assert TEXT[ROOT / "README.md"].count("\n") < 150


def test_public_names_exist() -> None:
    for name in rpn_jax.__all__:
        assert getattr(rpn_jax, name) is not None
    for name in rpn_jax.ops.__all__:
        assert callable(getattr(rpn_jax.ops, name))
    assert set(rpn_jax.__all__) <= set(dir(rpn_jax))


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_use_names_that_exist(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rpn_jax":
            assert hasattr(rpn_jax, node.attr)


def test_the_page_of_configs_shows_the_example() -> None:
    blocks = FENCE.findall(TEXT[ROOT / "docs" / "configs.md"])
    (shown,) = (code for _, code in blocks if "CONFIG = " in code)
    assert (ROOT / "examples" / "own_config.py").read_text(encoding="utf-8").endswith(shown)


def modules_with_examples() -> list[str]:
    files = sorted((ROOT / "rpn_jax").rglob("*.py"))
    paths = [path for path in files if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def test_public_ops_have_examples() -> None:
    assert "rpn_jax.ops.boxes" in modules_with_examples()


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_print_what_they_show(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a config, as weights have it."""
    folder = tmp_path_factory.mktemp("weights")
    save_config(load_config("faster-rcnn_r50_fpn_1x_coco"), folder / "config.json")
    return str(folder)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Commands without CONFIG read it from their weights, which do not exist here.
    monkeypatch.setattr("rpn_jax.cli._model_folder", lambda source, words: weights)
    words = shlex.split(line)
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words[2]
        return
    if words[:2] == ["python", "train.py"]:
        words[:2] = ["rpn-jax", "train"]
    # Placeholders and optional parts cannot be parsed.
    if re.search(r"\.\.\.|\[|CONFIG|NAME|path/to/", line) or len(words) < 3:
        assert words[1] in VERBS
        return
    if words[2] in config_names() and "--workdir" not in words and words[1] == "train":
        words += ["--workdir", "w"]
    with pytest.raises(SystemExit) if "--help" in words else contextlib.nullcontext():
        parse(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_paths_exist(page: Path) -> None:
    text = TEXT[page]
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:rpn_jax|tools|tests|configs|docs|examples)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_headings_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", TEXT[page]):
        linked = TEXT[(page.parent / target).resolve()] if target else TEXT[page]
        headings = re.findall(r"^#+ (.*)$", linked, re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        assert anchor in slugs, anchor


def test_constraints_cover_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["dev"]]
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in wanted}
    content = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = content.lower().replace("_", "-").splitlines()
    assert names - {"rpn-jax"} <= {line.split("==")[0] for line in pinned}
