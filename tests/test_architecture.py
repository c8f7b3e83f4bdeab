"""Imports point down only: the house as docs/how-it-works.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

ROOT = Path(settings.BASE_DIR)
APPS = ("compute", "images")

# Who may import whom inside an app, by module; a module may always use those below it in its own line.
MAY: dict[str, set[str]] = {
    "reasons": set(),
    "refusals": {"reasons"},
    "log": set(),
    "states": {"refusals", "engines", "log"},
    "models": {"states", "refusals", "reasons", "engines"},
    "regions": {"engines"},
    "quotas": {"models", "refusals"},
    "rules": {"models", "states", "refusals", "reasons", "regions", "quotas", "space"},
    "wakeup": set(),
    "operations": {"models", "states", "refusals", "reasons", "regions", "engines", "wakeup", "log"},
    "inventory": {"models", "states", "refusals", "reasons", "regions", "engines"},
    "space": {"models", "states", "refusals"},
    "actions": {"rules", "operations", "quotas", "models", "states", "refusals", "log"},
    "jobs": {"operations", "inventory", "models", "states", "engines", "actions", "space"},
    "writelock": {"engines"},
    "keeper": {"operations", "inventory", "writelock", "models", "states", "regions", "engines"},
    "doctor": {
        "keeper",
        "jobs",
        "operations",
        "inventory",
        "models",
        "states",
        "reasons",
        "regions",
        "engines",
        "wakeup",
    },
    "watch": {"models", "states"},
    "progress": {"models", "states", "regions", "engines"},
    "timeline": {"models", "states", "progress", "templatetags"},
    "engines": set(),
    "forms": {"actions", "rules", "models", "states", "refusals", "quotas", "regions"},
}
# The outermost modules may use all of their app but nobody may use them.
OUTER = {"views", "urls", "admin", "apps", "templatetags", "management", "migrations"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(app: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / app).rglob("*.py")):
        parts = path.relative_to(ROOT / app).with_suffix("").parts
        if parts[0] not in ("__init__", "migrations"):
            yield parts[0], path


def own(app: str, name: str) -> str | None:
    """The module of ``app`` (or of compute, its foundation) that an import names, by its first part."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] in APPS and (ROOT / parts[0]).is_dir() else None


@pytest.mark.parametrize(
    ("app", "module", "path"),
    [
        pytest.param(app, module, path, id=str(path.relative_to(ROOT)))
        for app in APPS
        for module, path in modules(app)
        if module not in OUTER
    ],
)
def test_imports_point_down(app: str, module: str, path: Path) -> None:
    known = {name for name, _ in (*modules("compute"), *modules("images"))}
    used = {part for name in imports(path) if (part := own(app, name)) in known}
    allowed = MAY.get(module)
    assert allowed is not None, f"{module} is new: say in MAY what it may import"
    assert used <= allowed | {module}, f"{path} imports {sorted(used - allowed - {module})}"


def test_compute_knows_nothing_of_images() -> None:
    guilty = [
        str(path) for _, path in modules("compute") if any(name.split(".")[0] == "images" for name in imports(path))
    ]
    assert guilty == []


def test_nothing_imports_the_console() -> None:
    guilty = [
        str(path)
        for app in APPS
        for _, path in modules(app)
        if any(name.split(".")[0] in ("console", "tests") for name in imports(path))
    ]
    assert guilty == []


@pytest.mark.parametrize("path", sorted((ROOT / "compute" / "engines").rglob("*.py")), ids=lambda path: path.name)
def test_engines_stand_on_their_own_libraries(path: Path) -> None:
    """An engine knows no Django and no row: it could be used by any program."""
    allowed = ("compute.engines", "oslo_utils", "libvirt", "libvirt_qemu")
    stdlib = __import__("sys").stdlib_module_names
    names = {name for name in imports(path) if name.split(".")[0] not in stdlib}
    assert all(name == "compute" or name.startswith(allowed) for name in names), names


@pytest.mark.parametrize(
    "path", sorted((ROOT / "compute").glob("views.py")) + sorted((ROOT / "images").glob("views.py"))
)
def test_a_page_never_touches_an_engine(path: Path) -> None:
    """R23: pages read the database; of engines they know only the vocabulary."""
    names = set(imports(path))
    assert not any(name.startswith("compute.engines") and name != "compute.engines.base" for name in names)
    assert not names & {"compute.regions.engine_for", "compute.inventory", "compute.keeper"}
