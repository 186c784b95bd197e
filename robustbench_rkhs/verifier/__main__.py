"""`python -m robustbench_rkhs.verifier OUT/NAME`, or `python verifier OUT/NAME` with this folder alone."""

import importlib
import importlib.util
import sys
from pathlib import Path

name = __package__ or "rkhs_verifier"
if not __package__:
    here = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(name, here / "__init__.py", submodule_search_locations=[str(here)])
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
sys.exit(importlib.import_module(f"{name}.command").main(sys.argv[1:]))
