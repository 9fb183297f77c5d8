"""Write the JSON schemas of the custom resources in deploy/kubernetes, for the tests.

`make schemas` installs packages with the definitions in a separate environment: the cloudcoil models for KEDA and the
Prometheus operator, and KServe's SDK. The schemas are closed: a field that the definition does not have is an error. In
KServe's schemas, the types of Kubernetes itself may have any field.
"""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "tests/deploy/schemas"
MODELS = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}
KSERVE = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PROSE = {"title", "description", "default", "examples"}
SCALARS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def closed(node: Any) -> Any:
    """Return a schema without descriptions and nulls, in which objects have only the named properties."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {
        key: {name: closed(each) for name, each in value.items()} if key in ("properties", "$defs") else closed(value)
        for key, value in node.items()
        if key not in PROSE
    }
    if choices := [each for each in kept.pop("anyOf", []) if each != {"type": "null"}]:
        kept |= choices[0] if len(choices) == 1 else {"anyOf": choices}
    if "pattern" in kept:
        # Go allows flags behind an anchor.
        kept["pattern"] = kept["pattern"].replace("^(?i)", "(?i)^")
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    kept.get("properties", {}).pop("status", None)
    return used(kept) if "$defs" in kept else kept


def used(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with only the definitions that it refers to, directly or indirectly."""
    definitions, names = schema.pop("$defs"), set[str]()
    new = set(references(schema))
    while new:
        names |= new
        new = {name for each in new for name in references(definitions[each])} - names
    return schema | {"$defs": {name: definitions[name] for name in sorted(names)}}


def references(node: Any) -> Iterator[str]:
    return iter(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(node)))


def kserve_definitions() -> dict[str, Any]:
    """Return the schema of each class of KServe's SDK.

    Its files are parsed, because an import needs all packages that the SDK depends on.
    """
    found = importlib.util.find_spec("kserve")
    assert found is not None and found.submodule_search_locations, "run `make schemas`"
    classes: dict[str, tuple[dict[str, str], dict[str, str], list[str]]] = {}
    for file in Path(found.submodule_search_locations[0]).glob("models/v1*.py"):
        text = file.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                values = {
                    target.id: ast.literal_eval(each.value)
                    for each in node.body
                    if isinstance(each, ast.Assign) and isinstance(target := each.targets[0], ast.Name)
                }
                needed = re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)
                classes[node.name] = values["openapi_types"], values["attribute_map"], needed

    def schema(name: str) -> dict[str, Any]:
        if name in SCALARS:
            return {"type": SCALARS[name]}
        if found := re.fullmatch(r"list\[(.*)\]", name):
            return {"type": "array", "items": schema(found[1])}
        if found := re.fullmatch(r"dict\(str, (.*)\)", name):
            return {"type": "object", "additionalProperties": schema(found[1])}
        return {"$ref": f"#/$defs/{name}"} if name in classes else {}

    return {
        name: {
            "type": "object",
            "properties": {names[field]: schema(each) for field, each in types.items()},
            "required": sorted(names[field] for field in needed),
        }
        for name, (types, names, needed) in classes.items()
    }


def schemas() -> Iterator[tuple[str, Any]]:
    """Yield the name and schema of each kind."""
    for kind, module in MODELS.items():
        yield kind, getattr(importlib.import_module(module), kind).model_json_schema()
    definitions = kserve_definitions()
    for kind, name in KSERVE.items():
        yield kind, definitions[name] | {"$defs": definitions}


if __name__ == "__main__":
    for kind, schema in schemas():
        (FOLDER / f"{kind}.json").write_text(json.dumps(closed(schema), indent=1, sort_keys=True) + "\n")
