"""solo-learn 1.0.2's loss modules: the package itself does not import without packages that are long gone."""

import importlib
import importlib.util
import sys
from types import ModuleType


def loss_module(name: str) -> ModuleType:
    """Return ``solo.losses.<name>`` alone, without running the package's ``__init__``.

    Raises:
        ImportError: solo-learn is not installed.
    """
    found = sys.modules.get(f"solo.losses.{name}")
    if found is not None:
        return found
    spec = importlib.util.find_spec("solo")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("No module named 'solo'")
    path = f"{spec.submodule_search_locations[0]}/losses/{name}.py"
    file = importlib.util.spec_from_file_location(f"solo_losses_{name}", path)
    if file is None or file.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module
