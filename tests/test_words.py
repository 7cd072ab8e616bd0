"""Names in the package are the words of the field, none of the private dialect that stood here."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "underpaint"
PRIVATE = {
    *("own", "told", "tell", "is_told", "wish", "wished", "carry", "carried", "twins", "halves"),
    *("heed", "prior", "judges", "sides_of", "pace_of", "way", "covered_by"),
}


ROOT = SOURCE.parent.parent
TEXTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *SOURCE.rglob("*.py")]
TEXTS += [*SOURCE.rglob("*.yaml"), *SOURCE.rglob("*.jinja"), *SOURCE.rglob("*.html")]


def names(tree: ast.AST) -> set[str]:
    """All names that a file gives or uses."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="tell") | ast.FunctionDef(name="tell"):  # a file's position
                pass
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                found.add(name)
            case ast.keyword(arg=str(name)):
                found.add(name)
    return found


def private(text: str) -> set[str]:
    return {name for name in names(ast.parse(text)) if name.strip("_").lower() in PRIVATE}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_names_are_the_fields_words(path: Path) -> None:
    assert private(path.read_text(encoding="utf-8")) == set()


def test_a_private_word_is_found_wherever_it_is_a_name() -> None:
    for line in ("own = 1", "def f(told): ...", "x.twins", "f(wish=1)", "class Tell: ..."):
        assert private(line), line
    assert not private("'own' + known")


def texts(path: Path) -> str:
    """What a reader meets: of Python the strings, of templates what stands between their marks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        constants = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
        return "\n".join(s for s in constants if isinstance(s, str) and " " in s)
    if path.suffix == ".md":
        return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return re.sub(r"\{\{.*?\}\}|\{%.*?%\}|<[^>]*>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", sorted(TEXTS), ids=lambda p: p.name)
def test_an_image_is_called_one(path: Path) -> None:
    """What is trained on and what is drawn are images, in all that a user reads."""
    assert re.findall(r".*\b[Pp]ictures?\b(?!\.).*", texts(path)) == []


def test_texts_are_what_a_reader_meets(tmp_path: Path) -> None:
    for name, text in (
        ("a.py", 'pictures = f"{pictures} a picture"'),
        ("a.md", "`pictures` a picture"),
        ("a.jinja", "{{ pictures }} <i class='picture'>a picture</i>"),
    ):
        (tmp_path / name).write_text(text)
        assert re.findall(r"[Pp]ictures?", texts(tmp_path / name)) == ["picture"], name
