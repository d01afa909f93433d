"""What the documents say is there is there: commands, flags, recipes, modules, links."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import chexspark
import chexspark.ml
from chexspark.commands import COMMANDS
from chexspark.recipe_files import recipe_names
from chexspark.settings import flag

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
]
OTHERS = {"--help", "--recipe", "--gpu", "--master", "--executor-cores", "--conf", "--logdir",
          "--no-build-isolation", "--no-cache-dir", "--no-deps", "--no-binary", "--spark",
          "--py-files", "--no-prune", "--offline", "--properties-file", "--archives"}  # fmt: skip


def flags_of(name: str) -> set[str]:
    return {flag(field.name) for field in dataclasses.fields(COMMANDS[name].config)} | OTHERS


def test_every_command_is_shown_with_flags_that_it_has():
    joined = README.replace("\\\n", " ")
    shown = re.findall(
        r"^    (?:spark-submit .*)?chexspark (?:script\) )?(\w+) +(--.*)$", joined, re.M
    )
    assert {name for name, _ in shown} == COMMANDS.keys()
    for name, line in shown:
        assert set(re.findall(r"--[a-z][a-z-]*", line.split("#")[0])) <= flags_of(name), name


def test_every_flag_that_is_named_exists():
    known = set().union(*map(flags_of, COMMANDS))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_recipes_and_functions_that_are_named_exist():
    assert all(f"`{name}`" in README for name in recipe_names())
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    called = {getattr(node.func, "id", None) for node in ast.walk(ast.parse(code))
              if isinstance(node, ast.Call)} - {None}  # fmt: skip
    ours = {"ingest", "train", "evaluate", "report", "read_store"}
    spark_ml = {"ChestXrayClassifier", "ChestXrayEvaluator", "patientFolds"}
    assert called == ours | spark_ml | {"CrossValidator", "ParamGridBuilder"}
    assert ours <= set(chexspark.__all__) and spark_ml <= set(chexspark.ml.__all__)


def test_the_map_has_every_room_and_every_root_module():
    package = ROOT / "chexspark"
    rooms = {f"{path.name}/" for path in package.glob("[!_]*") if list(path.glob("[!_]*.*"))}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    (where,) = re.findall(r"## What is where\n(.*?)\n## ", README, re.S)
    assert {name for name in rooms | modules if not re.search(rf"(?<!\w){name}", where)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)]+)\)", document.read_text())
    for link in links:
        if not link.startswith("https://"):
            file, _, heading = link.partition("#")
            target = ROOT / file
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if heading else []
            assert not heading or heading in {h.lower().replace(" ", "-") for h in headings}, link
