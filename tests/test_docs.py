"""What the documents promise is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_exists() -> None:
    """In docs/reliability.md each row of a table ends in tests; `::name` is of the file named before."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| [A-Z]", line) and "`" in line]
    assert len(rows) > 30
    path = ""
    for row in rows:
        found = re.findall(r"`([\w/.]*)(?:::(\w+))?`", row.split(" | ", 1)[1])
        assert found, row
        for file, name in found:
            path = file or path
            source = (ROOT / "tests" / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{path}::{name}"


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"
