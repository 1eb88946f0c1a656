"""The rules of CONTRIBUTING.md, read off the source: short functions, flat blocks, imports one way."""

import ast
import textwrap
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_NESTED = 60, 4
LAYERS = [["common", "sam"], ["models", "datasets", "plots"], ["engine", "interpret", "compare"], ["page"],
          ["scripts"], ["benchmarks"]]  # each imports from itself and from those before it
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCK = (*FUNCTION, ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar)


@cache
def house():
    """{path from the root: syntax tree} of all modules, those of tests aside."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    paths = [*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in sorted(paths)}


def long_functions(trees):
    """A line for each function that is too long, get_args_parser aside."""
    return [f"{path}:{node.lineno}: {node.name} has {lines} lines, more than {MOST_LINES}"
            for path, tree in trees.items() for node in ast.walk(tree)
            if isinstance(node, FUNCTION) and node.name != "get_args_parser"
            and (lines := node.end_lineno - node.lineno + 1) > MOST_LINES]


def deep_blocks(trees):
    """A line for each block that lies too deep; an elif lies as deep as its if."""
    return [f"{path}:{line}: nested {depth} deep, more than {MOST_NESTED}"
            for path, tree in trees.items() for line, depth in _blocks(tree, 0) if depth > MOST_NESTED]


def _blocks(node, depth):
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        inside = depth + (isinstance(child, BLOCK) and not is_elif)
        if inside > depth:
            yield child.lineno, inside
        yield from _blocks(child, inside)


def imports(trees):
    """(path, line, importing module, imported module) for each import of one of the modules."""
    modules = {_module(path) for path in trees}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in _imported(node, path):
                while name and name not in modules:
                    name = name.rpartition(".")[0]  # a name in a module, or none of ours
                if name:
                    yield path, node.lineno, _module(path), name


def _module(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(node, path):
    """The dotted names that an import asks for; of any other node, none."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = path.split("/")[:-node.level] if node.level else []
        return [".".join([*parents, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return []


def _folder(module):
    """The package of a module, "scripts", or "sam"."""
    top, _, rest = module.partition(".")
    return top if rest or top in RANK else "scripts"


def imports_against_the_layers(trees):
    """A line for each import of a script or of a higher layer, and for each folder without a layer."""
    folders = {_folder(_module(path)): path for path in trees if "/" in path}
    lines = [f"{path}:1: its folder is in no layer" for name, path in folders.items() if name not in RANK]
    for path, line, importing, imported in imports(trees):
        if _folder(imported) == "scripts" and _folder(importing) != "benchmarks":
            lines.append(f"{path}:{line}: imports the script {imported}")
        elif RANK.get(_folder(importing), 0) < RANK.get(_folder(imported), 0):
            lines.append(f"{path}:{line}: imports {imported}, from a layer above")
    return lines


def cyclic_imports(trees):
    """A line for each import that is part of a cycle, of modules or of folders."""
    lines, modules = [], list(imports(trees))
    for name in (str, _folder):
        edges = [(path, line, name(one), name(other)) for path, line, one, other in modules]
        graph = {}
        for *_, importing, imported in edges:
            graph.setdefault(importing, set()).add(imported)
        lines += [f"{path}:{line}: {imported} imports {importing} in turn"
                  for path, line, importing, imported in edges
                  if importing != imported and importing in _reached(graph, imported)]
    return sorted(set(lines))


def _reached(graph, start):
    """All that `start` imports, and what that imports."""
    reached, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph.get(node, ())
    return reached


RULES = [long_functions, deep_blocks, imports_against_the_layers, cyclic_imports]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    lines = rule(house())
    assert not lines, "\n" + "\n".join(lines)


def test_all_of_the_house_is_read():
    paths = set(house())
    assert {"sam.py", "p1_train.py", "common/cli.py", "datasets/pets.py", "benchmarks/__main__.py"} <= paths
    assert not [path for path in paths if path.startswith("tests/")]
    assert len(list(imports(house()))) > 200


# Each rule on small sources that break it


def parse(sources):
    return {path: ast.parse(textwrap.dedent(source)) for path, source in sources.items()}


def test_a_function_of_61_lines_is_too_long():
    def function(name, lines):
        return f"def {name}():\n" + "    pass\n" * (lines - 1)

    method = textwrap.indent("async " + function("wrong", 61), "    ")
    source = "x = 1\n" + function("right", 60) + function("get_args_parser", 90) + "class A:\n" + method
    assert long_functions(parse({"a.py": source})) == ["a.py:153: wrong has 61 lines, more than 60"]


@pytest.mark.parametrize("block", ["if x:", "for x in y:", "while x:", "with x:", "def f():"])
def test_a_fifth_block_is_too_deep(block):
    def nested(depth):
        rows = ["class A:", *depth * [block], "pass"]
        return "".join(f"{4 * i * ' '}{row}\n" for i, row in enumerate(rows))

    assert deep_blocks(parse({"a.py": nested(4)})) == []
    assert deep_blocks(parse({"a.py": nested(5)})) == ["a.py:6: nested 5 deep, more than 4"]
    assert deep_blocks(parse({"a.py": nested(6)})) == [
        "a.py:6: nested 5 deep, more than 4", "a.py:7: nested 6 deep, more than 4"]


def test_all_parts_of_a_block_count_and_elif_counts_once():
    source = """
        def f():
            for x in y:
                if x == 1:
                    pass
                elif x == 2:
                    pass
                elif x == 3:
                    while x:
                        pass
                else:
                    try:
                        pass
                    except E:
                        if wrong:
                            pass
                    finally:
                        with wrong:
                            pass
            else:
                if x:
                    if x:
                        if wrong:
                            pass
        """
    lines = enumerate(textwrap.dedent(source).splitlines(), 1)
    assert deep_blocks(parse({"a.py": source})) == [
        f"a.py:{number}: nested 5 deep, more than 4" for number, line in lines if "wrong" in line]


IMPORTED = {"common/__init__.py": "", "common/cli.py": "", "datasets/__init__.py": "", "datasets/pets.py": "",
            "models/vit.py": "", "plots/__init__.py": "", "engine/loop.py": "", "compare/runs.py": "",
            "page/render.py": "", "sam.py": "", "p1_train.py": "", "benchmarks/rows.py": ""}


@pytest.mark.parametrize(("path", "source", "problem"), [
    ("common/new.py", "import torch, datasets.pets", "1: imports datasets.pets, from a layer above"),
    ("common/new.py", "x = 1\nfrom models.vit import create", "2: imports models.vit, from a layer above"),
    ("common/new.py", "from models import vit as network", "1: imports models.vit, from a layer above"),
    ("common/new.py", "def f():\n    import sam\n    import plots", "3: imports plots, from a layer above"),
    ("models/new.py", "from ..engine import loop", "1: imports engine.loop, from a layer above"),
    ("interpret/new.py", "from page.render import x", "1: imports page.render, from a layer above"),
    ("page/new.py", "import benchmarks.rows", "1: imports benchmarks.rows, from a layer above"),
    ("page/new.py", "from p1_train import main", "1: imports the script p1_train"),
    ("p1_new.py", "import p1_train", "1: imports the script p1_train"),
    ("sam.py", "import models.vit", "1: imports models.vit, from a layer above"),
    ("extra/new.py", "", "1: its folder is in no layer"),
])
def test_an_import_against_the_layers_is_named(path, source, problem):
    assert imports_against_the_layers(parse({**IMPORTED, path: source})) == [f"{path}:{problem}"]


def test_imports_along_the_layers_are_fine():
    trees = parse({
        **IMPORTED, "models/new.py": "from common import cli\nimport sam, numpy\nfrom . import vit",
        "engine/new.py": "from sam import SAM\nfrom compare.runs import x",
        "page/new.py": "import engine.loop", "p1_new.py": "from page import render\nimport engine, sam",
        "benchmarks/new.py": "import p1_train",
        "datasets/new.py": "import plots_of_others, datasets.pets\nfrom huggingface import engine"})
    assert imports_against_the_layers(trees) == cyclic_imports(trees) == []


@pytest.mark.parametrize(("sources", "problems"), [
    ({"engine/a.py": "import engine.b", "engine/b.py": "def f():\n    from engine import c",
      "engine/c.py": "from .a import x"},
     ["engine/a.py:1: engine.b imports engine.a in turn", "engine/b.py:2: engine.c imports engine.b in turn",
      "engine/c.py:1: engine.a imports engine.c in turn"]),
    ({"engine/a.py": "import compare.b", "compare/b.py": "", "compare/c.py": "import engine.d",
      "engine/d.py": ""},
     ["compare/c.py:1: engine imports compare in turn", "engine/a.py:1: compare imports engine in turn"]),
    ({"engine/a.py": "import engine.b", "engine/b.py": "import engine.c", "engine/c.py": ""}, []),
])
def test_a_cycle_of_modules_or_of_folders_is_named(sources, problems):
    assert cyclic_imports(parse(sources)) == problems


def test_matplotlib_is_imported_by_plots_alone():
    """Which sees to it that neither a notebook's backend nor a user's matplotlibrc matters."""
    importing = {path.split("/")[0] for path, tree in house().items() for node in ast.walk(tree)
                 if any(name.split(".")[0] == "matplotlib" for name in _imported(node, path))}
    assert importing - {"benchmarks"} == {"plots"}


def test_only_the_scripts_of_an_extra_need_its_packages():
    extras = {"tokenizers": "captions", "sacrebleu": "captions", "jinja2": "report"}
    graph = {}
    for *_, importing, imported in imports(house()):
        graph.setdefault(importing, set()).add(imported)
    needed = {}
    for path, tree in house().items():
        packages = {name.split(".")[0] for node in ast.walk(tree) for name in _imported(node, path)}
        readers = [file.stem for file in ROOT.glob("*.py") if _module(path) in _reached(graph, file.stem)]
        for script in readers:
            needed.setdefault(script, set()).update(extras[name] for name in packages & extras.keys())
    assert {script: extra for script, extra in needed.items() if extra} == {
        "p2_train": {"captions"}, "p2_eval": {"captions"}, "p2_caption_viz": {"captions"},
        "report_page": {"report"}}
