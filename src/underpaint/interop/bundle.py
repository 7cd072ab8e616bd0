"""A module of ours as one file that needs nothing of ours: for software that imports a single file.

What the module uses of the package is put before it, definition by definition, each as it is
written where it stands; what nothing uses is left out. So there is one source of every network, and
what is exported computes what the package does.

    from underpaint.core import spaces        →   (the definitions that are used of it)
    spaces.build(…)                           →   build(…), or spaces_build(…) if two are called so
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "underpaint"


class Symbol(NamedTuple):
    """A definition at the top of a module."""

    module: str
    name: str


@dataclass
class Source:
    """A module's text, and what its names stand for."""

    text: bytes
    defined: dict[str, ast.stmt] = field(default_factory=dict)  # in their order
    ours: dict[str, Symbol] = field(default_factory=dict)  # imported of the package
    modules: dict[str, str] = field(default_factory=dict)  # modules of it, by their name here
    others: dict[str, str] = field(default_factory=dict)  # name: the line that imports it

    def symbol(self, node: ast.AST, module: str) -> Symbol | None:
        """What of the package a name or `module.name` in this text stands for."""
        match node:
            case ast.Name(id=name) if name in self.defined:
                return Symbol(module, name)
            case ast.Name(id=name) if name in self.ours:
                return self.ours[name]
            case ast.Attribute(value=ast.Name(id=base), attr=name) if base in self.modules:
                return Symbol(self.modules[base], name)
        return None


def bundle(
    module: str,
    *,
    also: Sequence[tuple[type, str]] = (),
    instead: Mapping[str, str] = {},
    dropped: Sequence[str] = (),
) -> str:
    """The text of `module`, after all that it uses of the package.

    `also`: classes, each with a name that the module is to find them by. `instead`: other texts
    for definitions, by `module.name`. `dropped`: decorators that are left out.
    """
    texts = {Symbol(*place.rpartition(".")[::2]): text for place, text in instead.items()}
    roots = [Symbol(cls.__module__, cls.__qualname__) for cls, _ in also]
    roots += [Symbol(module, name) for name in _read(module).defined]
    needed: dict[Symbol, None] = {}
    for root in roots:
        _collect(root, needed, texts, dropped)
    names = _names(needed)
    imports = {line for symbol in needed for line in _imports(symbol, texts, dropped)}
    parts = sorted(imports, key=lambda line: (line.startswith("from"), line))
    for name in _order([s.module for s in roots]):
        source = _read(name)
        defined = [Symbol(name, d) for d in source.defined if Symbol(name, d) in needed]
        once = {id(source.defined[s.name]): s for s in defined}  # of `a, b = 1, 2` two names
        if once:
            parts.append("\n\n" + f"# --- {name} ".ljust(99, "-"))
        if name == module:
            aliases = [(alias, names[Symbol(c.__module__, c.__qualname__)]) for c, alias in also]
            parts += [f"{alias} = {original}" for alias, original in aliases]
        for symbol in once.values():
            line = isinstance(source.defined[symbol.name], (ast.Assign, ast.AnnAssign))
            text = texts.get(symbol) or _written(symbol, names, dropped)
            parts.append(text if line else f"\n\n{text}")
    return "\n".join(parts) + "\n"


def _collect(
    symbol: Symbol, needed: dict[Symbol, None], texts: Mapping[Symbol, str], dropped: Sequence[str]
) -> None:
    """All that a definition uses, and it."""
    symbol = _where_defined(symbol)
    if symbol in needed:
        return
    needed[symbol] = None
    if symbol not in texts:
        for node in _nodes(symbol, dropped):
            used = _read(symbol.module).symbol(node, symbol.module)
            if used is not None:
                _collect(used, needed, texts, dropped)


def _where_defined(symbol: Symbol) -> Symbol:
    """Through the modules that hand a name on."""
    source = _read(symbol.module)
    while symbol.name not in source.defined:
        symbol = source.ours[symbol.name]
        source = _read(symbol.module)
    return symbol


def _nodes(symbol: Symbol, dropped: Sequence[str]) -> Iterator[ast.AST]:
    statement = _read(symbol.module).defined[symbol.name]
    left_out = {id(node) for d in _dropped(statement, dropped) for node in ast.walk(d)}
    return (node for node in ast.walk(statement) if id(node) not in left_out)


def _dropped(statement: ast.stmt, dropped: Sequence[str]) -> list[ast.expr]:
    decorators = getattr(statement, "decorator_list", [])
    return [d for d in decorators if isinstance(d, ast.Call) and ast.unparse(d.func) in dropped]


def _names(needed: Mapping[Symbol, None]) -> dict[Symbol, str]:
    """Each definition's name in the one file; those of equal names get their module's before it."""
    names = [symbol.name for symbol in needed]
    return {
        s: s.name if names.count(s.name) == 1 else f"{s.module.rpartition('.')[2]}_{s.name}"
        for s in needed
    }


def _imports(symbol: Symbol, texts: Mapping[Symbol, str], dropped: Sequence[str]) -> Iterator[str]:
    source = _read(symbol.module)
    nodes = ast.walk(ast.parse(texts[symbol])) if symbol in texts else _nodes(symbol, dropped)
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in source.others:
            yield source.others[node.id]


def _order(modules: Sequence[str]) -> list[str]:
    """Modules after those that they import."""
    found: list[str] = []
    begun: set[str] = set()

    def visit(module: str) -> None:
        if module in begun:
            return
        begun.add(module)
        source = _read(module)
        for imported in [*source.modules.values(), *(s.module for s in source.ours.values())]:
            visit(imported)
        found.append(module)

    for module in modules:
        visit(module)
    return found


def _written(symbol: Symbol, names: Mapping[Symbol, str], dropped: Sequence[str]) -> str:
    """A definition's text with the names of the one file."""
    source = _read(symbol.module)
    statement = source.defined[symbol.name]
    lines = source.text.splitlines(keepends=True)
    edits = []  # (first byte, last byte, new text), in the module's text
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def span(node: ast.stmt | ast.expr) -> tuple[int, int]:
        line, column = node.end_lineno or 0, node.end_col_offset or 0  # both are there: it was read
        return starts[node.lineno - 1] + node.col_offset, starts[line - 1] + column

    left_out = _dropped(statement, dropped)
    for node in _nodes(symbol, dropped):
        used = source.symbol(node, symbol.module)
        if used is not None and isinstance(node, (ast.Name, ast.Attribute)):
            new = names[_where_defined(used)]
            if new != ast.unparse(node):
                edits.append((*span(node), new))
    for decorator in left_out:
        first, last = span(decorator)
        edits.append((first - 1, last + 1, ""))  # from the @ to the end of its line
    first, last = span(statement)
    decorators = getattr(statement, "decorator_list", [])
    if decorators:
        first = span(decorators[0])[0] - 1
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and names[symbol] != symbol.name:
        word = b"def " if isinstance(statement, ast.FunctionDef) else b"class "
        at = source.text.index(word + symbol.name.encode(), span(statement)[0]) + len(word)
        edits.append((at, at + len(symbol.name), names[symbol]))
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):  # with the comment behind it
        last = starts[statement.end_lineno or 0] - 1
    text, place = [], first
    for start, end, new in sorted(edits):
        text += [source.text[place:start], new.encode()]
        place = end
    return b"".join([*text, source.text[place:last]]).decode()


@cache
def _read(module: str) -> Source:
    """A module's definitions and imports."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    source = Source(Path(str(spec.origin)).read_bytes())
    for statement in ast.parse(source.text).body:
        match statement:
            case ast.ImportFrom(module=str(origin), names=aliases):
                for alias in aliases:
                    name = alias.asname or alias.name
                    inside = f"{origin}.{alias.name}"
                    if origin.split(".")[0] != PACKAGE:
                        renamed = f" as {name}" if alias.asname else ""
                        source.others[name] = f"from {origin} import {alias.name}{renamed}"
                    elif importlib.util.find_spec(origin) and _is_module(inside):
                        source.modules[name] = inside
                    else:
                        source.ours[name] = Symbol(origin, alias.name)
            case ast.Import(names=aliases):
                for alias in aliases:
                    renamed = f" as {alias.asname}" if alias.asname else ""
                    name = alias.asname or alias.name.split(".")[0]
                    source.others[name] = f"import {alias.name}{renamed}"
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                source.defined[name] = statement
            case ast.Assign(targets=targets):
                for target in targets:
                    for node in ast.walk(target):
                        if isinstance(node, ast.Name):
                            source.defined[node.id] = statement
            case ast.AnnAssign(target=ast.Name(id=name)) if statement.value is not None:
                source.defined[name] = statement
    return source


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False
