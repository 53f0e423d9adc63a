"""Check the layout of the package against the limits below, and print what was measured.

Ruff checks the branches of a function, import-linter the directions and circles of imports (pyproject.toml).
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rsslcli"
MAX_CORE_MODULES = 16  # beside the rooms
MAX_MODULE_LINES = 415
MAX_FUNCTION_LINES = 80
MAX_PACKED = 20  # assignments such as `a, b = x, y`
MAX_README_WORDS = 1200
#: A command-line option. Lines of style sheets define properties by the same mark.
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+\b(?!\s*:)(?!\))")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Print a line per limit; return 1 if one is exceeded."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in trees}
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.name}": _code_lines(node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    packed = [place for path, tree in trees.items() for place in _packed(path, tree)]
    named = [place for path, tree in trees.items() if "core" in path.parts for place in _options(path, tree)]
    called = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "locals"
    ]
    core = [path for path in (PACKAGE / "core").glob("*.py") if path.name != "__init__.py"]
    longest_module, longest_function = max(lines, key=lines.__getitem__), max(functions, key=functions.get)
    words = len((PACKAGE.parent / "README.md").read_text(encoding="utf-8").split())
    measures = [
        ("modules in core/ beside its rooms", len(core), MAX_CORE_MODULES, ""),
        ("lines of the longest module", lines[longest_module], MAX_MODULE_LINES, longest_module),
        ("lines of the longest function", functions[longest_function], MAX_FUNCTION_LINES, longest_function),
        ("packed assignments", len(packed), MAX_PACKED - 1, ", ".join(packed[:5])),
        ("options named in core/", len(named), 0, ", ".join(named[:5])),
        ("calls of locals()", len(called), 0, ", ".join(called)),
        ("words in the README", words, MAX_README_WORDS, ""),
    ]
    print(f"{len(trees)} modules, {sum(lines.values())} lines")
    for name, value, limit, where in measures:
        mark = "ok  " if value <= limit else "FAIL"
        print(f"{mark} {name}: {value} (at most {limit}){f'  {where}' if where else ''}")
    return int(any(value > limit for _, value, limit, _ in measures))


def _code_lines(node: Function) -> int:
    """The lines of a function, its docstring aside."""
    first = node.body[0]
    has_docstring = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def _packed(path: Path, tree: ast.AST) -> list[str]:
    """Where several values are assigned to several names at once."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    ]


def _options(path: Path, tree: ast.AST) -> list[str]:
    """Where a text names an option of the command line."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and path.name != "page.py"  # whose style sheet has such names
        and OPTION.search(node.value)
    ]


if __name__ == "__main__":
    sys.exit(main())
