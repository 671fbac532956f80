"""`package:` strings: files that an installed Python package carries."""

from importlib.util import find_spec
from pathlib import Path

from lit_nlp.errors import UserError, did_you_mean

PREFIX = "package:"


def locate(string: str, error: type[UserError]) -> Path:
    """Return the file or folder that `package:name/path/inside` names.

    The package is looked up, not imported. `error` is the kind of error to raise.

    Raises:
        UserError: The package isn't installed, or holds nothing at that path.
    """
    name, _, inside = string.removeprefix(PREFIX).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise error(
            f"no installed package is called {name!r}",
            where=string,
            mend=f"install it (pip install {name.replace('_', '-')}) or name a file",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / inside
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise error(
            f"the package {name!r} holds no {inside!r}",
            where=string,
            mend=did_you_mean(path.name, siblings) or f"look into {path.parent}",
        )
    return path
