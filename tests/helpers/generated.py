"""What is generated from the manifests' models: their JSON Schemas, and the tables of docs/bundle-format.md.

python tests/helpers/generated.py        # writes all of it anew; the tests compare
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mapolicy.bundle import dataset_level as published
from mapolicy.bundle import limits, manifest
from mapolicy.bundle.manifest_fields import MODEL_ARGS
from mapolicy.transforms import space

ROOT = Path(__file__).resolve().parents[2]
# Of a searched bundle's manifest, and of a dataset-level policy's.
SCHEMAS: dict[Path, Callable[[], dict[str, Any]]] = {
    ROOT / "mapolicy" / "bundle" / manifest.SCHEMA_FILE: manifest.json_schema,
    ROOT / "mapolicy" / "bundle" / published.SCHEMA_FILE: published.json_schema,
}
SEARCHED, DATASET_LEVEL = SCHEMAS
DOCUMENT = ROOT / "docs" / "bundle-format.md"
# Patterns in words.
PATTERNS = {
    r"^(?:[a-z][a-z0-9_]*)": "lower-case letters, digits and `_`, a letter first",
    r"^(?:white|black|": "`white`, `black`, or `#` and six lower-case hexadecimal digits",
    r"^(?:[0-9a-f]{64})": "64 lower-case hexadecimal digits",
    r"^(?:[a-z][a-z0-9_-]*)": "lower-case letters, digits, `_` and `-`, a letter first",
    r"^(?:folder:": "a name: letters, digits, `_`, `.`, `-`, up to three `/`; or `folder:` and a folder's name",
    r"^[^\u0000-\u001f": "printable",
    r"^[^\u0000-\u0009": "printable, and line breaks",
}


def schema_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def fields(schema: dict[str, Any], part: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field: its path, its type and range in words, its meaning."""
    for name, field in part["properties"].items():
        resolved = field | schema["$defs"][field["$ref"].split("/")[-1]] if "$ref" in field else field
        yield f"{above}{name}", in_words(resolved), field["description"]
        if "$ref" in field:
            yield from fields(schema, resolved, f"{above}{name}.")
        stars, inner = ".*", keyed(field) or field.get("items", {})
        while "items" in inner:
            stars, inner = f"{stars}.*", inner["items"]
        for branch in (inner, *inner.get("anyOf", [])):
            if "$ref" in branch:
                entry = schema["$defs"][branch["$ref"].split("/")[-1]]
                yield from fields(schema, entry, f"{above}{name}{stars}.")


def in_words(field: dict[str, Any]) -> str:
    """A type and its range, from a property of the schema."""
    if "$ref" in field:
        return "table"
    if "const" in field:
        value = field["const"]
        return (
            "the operations of the table above, in that order" if isinstance(value, list) else f"`{json.dumps(value)}`"
        )
    if field.get("enum") == list(space.OPERATION_NAMES):
        return "an operation of the table above"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "anyOf" in field and {"type": "null"} in field["anyOf"]:
        (known,) = (branch for branch in field["anyOf"] if branch != {"type": "null"})
        return f"{in_words(known)}, or null"
    low, high = (number(field[key]) if key in field else None for key in ("minimum", "maximum"))
    span = "" if low is None else f", {low} to {high}"
    match field["type"]:
        case "integer" | "number" as kind:
            whole = ", whole from 1 up" if "anyOf" in field else ""
            return f"{kind}{span}{whole}"
        case "boolean":
            return "true or false"
        case "string":
            (words,) = {words for start, words in PATTERNS.items() if field["pattern"].startswith(start)}
            least = field.get("minLength", 0)
            size = "" if "hexadecimal" in words else f" of {least} to {field['maxLength']} characters"
            return f"text{size}: {words}"
        case "array":
            once = ", each once" if field.get("uniqueItems") else ""
            return f"list of {field.get('minItems', 0)} to {field['maxItems']}: {in_words(field['items'])}{once}"
        case "object" if "patternProperties" not in field:
            return "table of arguments, see below" if "img_size" in field["properties"] else "table"
        case "object":
            values = keyed(field)
            what = "a range or null" if "$ref" in str(values) else setting(values)
            (pattern,) = field["patternProperties"]
            (keys,) = {words for start, words in PATTERNS.items() if pattern.startswith(start)}
            size = f"{field['propertyNames'].get('minLength', 0)} to {field['propertyNames']['maxLength']}"
            entries = f"{field.get('minProperties', 0)} to {field['maxProperties']}"
            return f"table of {entries}, keys of {size} characters ({keys}): {what}"
    raise ValueError(field)


def keyed(field: dict[str, Any]) -> dict[str, Any]:
    """What the values of a table with free keys are."""
    return next(iter(field.get("patternProperties", {}).values()), {})


def setting(values: dict[str, Any]) -> str:
    if "type" in values:
        return in_words(values)
    return "true, false, a finite number, a text of up to 200 characters, or a table of arguments"


def number(value: float) -> str:
    powers = {2**40: "2^40", 2**31: "2^31"}
    return powers.get(value) or f"{value:g}" if abs(value) < 1e4 or value in powers else f"{value:,.0f}"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def sections() -> dict[str, str]:
    """The generated parts of the document by name."""
    tables = {
        name: table(("field", "type and range", "meaning"), ((f"`{a}`", b, c) for a, b, c in fields(schema, schema)))
        for name, schema in (("fields", manifest.json_schema()), ("published", published.json_schema()))
    }
    spaces = []
    for name in space.OPERATION_NAMES:
        spreads = [each.ranges[name] for each in space.SPACES.values()]
        spaces.append(
            (name, *("-" if s is None else f"{s.at_zero:g} to {s.at_ten:g}{' ±' * s.signed}" for s in spreads))
        )
    kinds = {int: "integer", float: "number"}
    caps = limits.Limits()
    meanings = re.findall(r"^        (\w+): ((?:.|\n {12})+)", str(limits.Limits.__doc__), re.MULTILINE)
    return tables | {
        "values": table(
            ("operation", "least and greatest value"),
            ((name, "{:g} to {:g}".format(*published.value_range(name))) for name in space.OPERATION_NAMES),
        ),
        "spaces": table(("operation", *(f"`{name}`" for name in space.SPACES)), iter(spaces)),
        "arguments": table(
            ("argument", "type", "range"),
            ((f"`{name}`", kinds[kind], f"{a:g} to {b:g}") for name, (kind, a, b) in MODEL_ARGS.items()),
        ),
        "limits": table(
            ("limit", "default", "of what"),
            ((f"`{n}`", f"{getattr(caps, n):,}", " ".join(text.split())) for n, text in meanings if hasattr(caps, n)),
        ),
    }


def document(text: str) -> str:
    """The document with its generated parts as they are now."""
    for name, content in sections().items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        assert tail, f"the document has no place for {name}"
        text = f"{head}{begin}{content}\n{end}{tail}"
    return text


if __name__ == "__main__":
    for path, schema in SCHEMAS.items():
        path.write_text(schema_text(schema()), encoding="utf-8")
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
