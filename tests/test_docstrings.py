"""What a docstring must tell."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "chexspark"
ERRORS = ("UserError", "RunFailedError", "StoppedError", "BadImageError", "DamagedStoreError")


def public(path: Path):
    """Each public class, function and method of a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


def raises(node) -> set[str]:
    """The errors that end a command, as far as a function raises them itself."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
            found.add(getattr(part.exc.func, "id", ""))
    return found & set(ERRORS)


def arrays(node) -> bool:
    """Whether a function takes or returns arrays by its annotations."""
    if not isinstance(node, ast.FunctionDef):
        return False
    every = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(a is not None and "np.ndarray" in ast.unparse(a) for a in every)


def test_every_public_function_has_a_docstring():
    bare = [f"{path.name}: {name}" for path in sorted(PACKAGE.rglob("*.py"))
            for name, node in public(path) if not ast.get_docstring(node)]  # fmt: skip
    assert not bare, bare


def test_errors_are_told():
    silent = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, node in public(path):
            text = ast.get_docstring(node) or ""
            if isinstance(node, ast.FunctionDef) and raises(node) and "aise" not in text:
                silent.append(f"{path.name}: {name}")
    assert not silent, silent


def test_shapes_are_told():
    """Of arrays that a function takes or returns: ``(rows, findings)``, or where they are told."""
    silent = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, node in public(path):
            text = ast.get_docstring(node) or ""
            if arrays(node) and not ("(" in text or "`" in text):
                silent.append(f"{path.name}: {name}")
    assert not silent, silent
