"""Plain YAML files: a mapping of data, within limits, without code. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rsslcli.core.errors import UserError, sanitize, short_repr

#: Size limit of a file. Larger files are not configurations, and slow to parse with PyYAML.
MAX_FILE_BYTES = 1 << 14
#: Size limit of each mapping in it, after `<<` has merged others into it.
MAX_MAPPING = 200
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"


def read_mapping(file: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one.

    Raises:
        UserError: the file cannot be read, is too large, or is not a mapping in plain YAML.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{file} is not a configuration: it is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        values = yaml.load(data, Loader=_Loader)
    except Exception as error:  # PyYAML may raise anything if a value does not fit its tag
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error or type(error).__name__
        raise UserError(f"{file}{where} is not plain YAML: {sanitize(problem)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected lines such as `epochs: 20`, got a {type(values).__name__}")
    return values


def dump_yaml(values: Mapping[str, Any], **options: Any) -> str:
    """Write a mapping as YAML, which `read_mapping` and other readers read back; `options` are PyYAML's."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, **options)
    return text


class _Loader(yaml.SafeLoader):
    """Plain YAML data, in which 1e-6 is a number and duplicate keys are errors.

    Numbers are decimal: in YAML 1.1, 010 is 8 and 1:30 is 90.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; reject duplicate keys, of which PyYAML silently drops all but the last."""
        self._check_size(node)
        keys = [str(key.value) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        duplicates = [key for i, key in enumerate(keys) if key in keys[:i]]
        if duplicates:
            raise yaml.constructor.ConstructorError(
                None, None, f"{short_repr(duplicates[0])} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the mappings that `<<` names; reject merges of merges that grow without bound."""
        super().flatten_mapping(node)
        self._check_size(node)

    def _check_size(self, node: yaml.MappingNode) -> None:
        if len(node.value) > MAX_MAPPING:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping has more than {MAX_MAPPING} entries", node.start_mark
            )


class _Dumper(yaml.SafeDumper):
    """Quotes text that a loader, ours or another, would take for a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_DIGITS = list("-+.0123456789")
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][\d_]*)$"), _DIGITS)
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^([-+]?(\d[\d_]*\.\d*|\.\d+)|[-+]?\.inf|\.nan)$", re.IGNORECASE), _DIGITS
)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), _DIGITS)
