"""The table of docs/reliability.md names tests that exist: each of its commands selects at least one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\|.*\| (`[^|]*`) \|$", re.MULTILINE)


def commands() -> list[str]:
    """What stands in the last column, one command each."""
    cells = ROW.findall((ROOT / "docs" / "reliability.md").read_text())
    return [command for cell in cells for command in re.findall(r"`([^`]*test[^`]*)`", cell)]


@lru_cache
def names(file: Path) -> list[str]:
    """What ``-k`` looks into for each test of a file: its name, and the values that its id may be made of."""
    tree = ast.parse(file.read_text())
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found = []
    for test in tree.body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            values = [value for mark in test.decorator_list for value in words_in(mark, assigned)]
            found.append(" ".join((file.name, test.name, *values)))
    return found


def words_in(node: ast.AST, assigned: dict[str, ast.expr]) -> Iterator[str]:
    """Texts and names in an expression, and in what the names of the module in it stand for."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name):
            yield part.id
            if part.id in assigned:
                yield from words_in(assigned[part.id], {})


@pytest.mark.parametrize("command", commands())
def test_row_of_the_fault_table_selects_a_test(command: str) -> None:
    path, _, words = command.partition(" -k ")
    place = ROOT / (path if path.startswith("tests/") else f"tests/faults/{path}")
    files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
    assert files
    expression = Expression.compile(words.strip('"')) if words else None
    selected = [
        name
        for file in files
        for name in names(file)
        if expression is None
        or expression.evaluate(lambda word, /, name=name, **_: word.lower() in name.lower())
    ]
    assert selected
    for word in words.strip('"').split(" or ") if words else ():  # each is there for a reason
        assert any(word in name for file in files for name in names(file)), word
