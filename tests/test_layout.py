"""Import structure: aid does not depend on aid_tools, packages form no cycles."""

import ast
import os
from graphlib import TopologicalSorter

import pytest

MODELING = "aid.modeling"
# Packages of aid.modeling; every other module is a separate unit.
SUBPACKAGES = ("detectors", "families", "losses", "weighting")
TRAINING = ("distiller", "meta_arch", "teacher")
FORBIDDEN = {
    "families": ("losses", "weighting", *TRAINING),
    "weighting": ("losses",),
    "losses": ("distiller", "meta_arch"),
}


def imports_of(source: str, package: str) -> set[str]:
    """Absolute dotted names of the imports in a module of ``package``, also those in functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.fixture(scope="module")
def imports(repository) -> dict[str, set[str]]:
    """{module: absolute names that it imports} of aid and aid_tools."""
    root = os.path.join(repository, "projects", "AID")
    result = {}
    for top in ("aid", "aid_tools"):
        for folder, _, files in os.walk(os.path.join(root, top)):
            package = os.path.relpath(folder, root).replace(os.sep, ".")
            for file in (x for x in files if x.endswith(".py")):
                with open(os.path.join(folder, file)) as f:
                    names = imports_of(f.read(), package)
                name = package if file == "__init__.py" else f"{package}.{file[:-3]}"
                result[name] = names
    return result


def unit(name: str) -> str:
    """Unit of the import graph that a module, or a name imported from it, belongs to."""
    depth = 3 if name.startswith(f"{MODELING}.") else 2
    return ".".join(name.split(".")[:depth])


def graph(imports: dict[str, set[str]], top: str) -> dict[str, set[str]]:
    """{unit: other units of ``top`` that it imports}, without the package ``top`` itself."""
    units = {unit(module) for module in imports}
    edges = {}
    for module, names in imports.items():
        if module.split(".")[0] != top or module == top:
            continue
        # A name such as aid.modeling.AIDFCOS, which is no module, belongs to aid.modeling.
        targets = (unit(x) if unit(x) in units else x.rsplit(".", 1)[0] for x in names)
        targets = {x for x in targets if x in units and x.split(".")[0] == top and x != top}
        edges.setdefault(unit(module), set()).update(targets - {unit(module)})
    return edges


def test_aid_does_not_import_aid_tools(imports):
    assert len(imports) > 100
    for module, names in imports.items():
        if module.split(".")[0] == "aid":
            assert not {x for x in names if x.split(".")[0] == "aid_tools"}, module


@pytest.mark.parametrize("top", ["aid", "aid_tools"])
def test_packages_form_no_cycles(imports, top):
    edges = graph(imports, top)
    assert len(edges) >= 7
    TopologicalSorter(edges).prepare()  # raises CycleError


@pytest.mark.parametrize("package", FORBIDDEN)
def test_stages_of_a_training_step_import_earlier_stages_only(imports, package):
    forbidden = {f"{MODELING}.{name}" for name in FORBIDDEN[package]}
    edges = graph(imports, "aid")
    assert {f"{MODELING}.{name}" for name in SUBPACKAGES} <= edges.keys()
    assert not edges[f"{MODELING}.{package}"] & forbidden
