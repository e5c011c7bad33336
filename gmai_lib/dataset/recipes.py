"""Which dataset lies in a folder: recipes, and how they recognise theirs.

A recipe declares a dataset in a few lines; the code that reads it belongs to its *format*
(`gmai_lib/dataset/readers.py`, which explains the options). A new dataset in a known format
needs one more entry in recipes_public.py, no code.

    for recipe, root in find(Path("../shared/data")):
        for record in readers.read(recipe, root, ledger): ...

Paper: section 3.1, step 1 (219 public sources); what is public about them is in the catalogue.
"""

from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from gmai_lib.dataset.recipes_layouts import LAYOUTS
from gmai_lib.dataset.recipes_phantom import PHANTOMS
from gmai_lib.dataset.recipes_public import MEDMNIST, PUBLIC
from gmai_lib.dataset.recipes_questions import QUESTIONS
from gmai_lib.dataset.recipes_volumes import VOLUMES
from gmai_lib.schema import Recipe

RECIPES = PHANTOMS + PUBLIC + MEDMNIST + LAYOUTS + VOLUMES + QUESTIONS


def find(folder: Path) -> list[tuple[Recipe, Path]]:
    """Return every recipe whose marks match `folder` itself or a folder directly inside it.

    Raises ValueError, with what was looked for, if the folder is missing, empty or holds
    nothing that a recipe recognises. `unrecognised` lists the rest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; pass the folder that holds your datasets")
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty; put datasets into it, one folder each")
    found = [
        (recipe, root)
        for root in [folder, *_folders(folder)]
        for recipe in RECIPES
        if matches(recipe, root)
    ]
    if not found:
        known = ", ".join(recipe.name for recipe in RECIPES)
        raise ValueError(
            f"{folder} holds no dataset that a recipe recognises, neither itself nor in "
            f"{[p.name for p in islice(sorted(folder.iterdir()), 8)]}; unpack one in its own "
            "layout, or let `python -m gmai_lib.dataset.new` draft a recipe for yours; the recipes "
            f"in gmai_lib/dataset/recipes_public.py know {known}"
        )
    return found


def unrecognised(folder: Path) -> list[Path]:
    """Return the folders directly inside `folder` that no recipe matches, for the report."""
    folder = Path(folder)
    if any(matches(recipe, folder) for recipe in RECIPES):
        return []
    return [p for p in _folders(folder) if not any(matches(recipe, p) for recipe in RECIPES)]


def pydicom_samples_root() -> Path:
    """Return the folder of sample files inside the installed pydicom package."""
    import pydicom.data

    return Path(pydicom.data.__file__).parent / "test_files"


def get(name: str) -> Recipe:
    """Return the recipe called `name`; ValueError lists the known names."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise ValueError(f"no recipe {name!r}; known: {[r.name for r in RECIPES]}")


def _folders(folder: Path) -> list[Path]:
    """Folders directly inside; a hidden one is unfinished or none of our business."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def matches(recipe: Recipe, root: Path) -> bool:
    """Whether all marks of `recipe` are found in the folder `root`."""
    name = root.resolve().name
    for mark in recipe.marks:
        first, _, rest = mark.partition("/")
        if not fnmatchcase(name, first) or not any(root.glob(rest)):
            return False
    return True
