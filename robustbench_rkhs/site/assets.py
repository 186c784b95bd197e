"""The files that all pages share: DataTables, Vega, our own style and scripts. Nothing is loaded from elsewhere."""

import re
from importlib.resources import files
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.site.pages import HERE, write_changed

PACKAGES = {"itables": "itables", "vl_convert": "vl-convert-python", "altair": "altair", "markdown_it": "markdown-it-py"}
"""Modules of the extra `site`, with the packages that hold them."""


def check_installed() -> None:
    """Raises UserError with the install command where a package of the extra is missing."""
    for module in PACKAGES:
        require(module, "site", "rkhs-report --site")


def versions() -> list[str]:
    """The versions of the bundled libraries, on which the pages depend."""
    from importlib.metadata import version

    return [f"{package} {version(package)}" for package in PACKAGES.values()]


def write_assets(folder: Path) -> list[Path]:
    """FOLDER/datatables.js and .css, vega.js, and our own files. Raises Unwritable. Cost: 3 s, most of it Vega's bundle."""
    import vl_convert

    bundle = files("itables") / "html"
    vega = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its default sets vegaEmbed, vega and vegaLite
    shared = {
        "datatables.js": classic((bundle / "dt_bundle.js").read_text(encoding="utf-8")),
        "datatables.css": (bundle / "dt_bundle.css").read_text(encoding="utf-8"),
        "vega.js": f"(function(){{{vega}\n}})();\n",
    }
    own = {path.name: path.read_text(encoding="utf-8") for path in sorted((HERE / "static").iterdir())}
    return [write_changed(folder / name, text.encode()) for name, text in {**shared, **own}.items()]


def classic(module: str) -> str:
    """The DataTables bundle as a classic script that sets `DataTable`: a page from disk cannot import a module.

    Raises UserError for a bundle of another form.
    """
    found = re.search(r"export\s*\{([^{}]*)\};?\s*", module)
    name = re.search(r"([\w$]+) as default", found[1]) if found else None
    if found is None or name is None:
        raise UserError("itables has another DataTables bundle than expected: rkhs-report --site was tested with itables 2.9")
    rest = module[: found.start()] + f"window.DataTable={name[1]};" + module[found.end() :]
    return f"(function(){{{rest}\n}})();\n"
