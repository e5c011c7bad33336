"""Look at a folder no recipe knows, say what is recognised, and draft a recipe for it.

    python -m gmai_lib.dataset.new path/to/folder --modality X-ray

The draft is Python to paste into recipes_public.py; what a format looks like is in looks.py.
What files cannot tell (licence, department, citation) is left as "unstated" or a question, never
guessed; the draft is then tried: the reader runs over the folder and its books of kept and dropped
items are printed.

Paper: none; section 3.1 normalises 219 sources by hand.
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from gmai_lib.dataset import readers
from gmai_lib.dataset.annotations import files
from gmai_lib.dataset.looks import ASK, LOOKS
from gmai_lib.dataset.recipes import RECIPES, Recipe, matches
from gmai_lib.schema import DEPARTMENTS, MODALITIES, NO_FINDING, TASKS, Ledger


@dataclass(frozen=True)
class Draft:
    """One way to read a folder, and why."""

    recipe: Recipe
    because: str

    def source(self) -> str:
        """The recipe as Python, as it would stand in recipes_public.py."""
        recipe, lines = self.recipe, []
        shown = ("name", "reader", "marks", "modality", "department", "task", "license")
        for name in (*shown, "citation", "homepage", "options"):
            lines.append(f"    {name}={getattr(recipe, name)!r},")
        return "\n".join(("Recipe(", *lines, ")"))


def draft(folder: Path, modality: str = ASK) -> list[Draft]:
    """Return a draft for every format that `folder` is recognised as, the surest first.

    Its marks hold the folder's name: files of a common format lie in many folders. Raises
    ValueError if `folder` is missing or nothing is recognised, with what lies in it.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ValueError(f"{folder} is not a folder; pass the folder of one dataset")
    paths = files(root, "**/*")
    found = []
    for look in LOOKS:
        for reader, options, mark, because in look(root, paths):
            recipe = Recipe(
                name=re.sub(r"\W+", "_", root.name.lower()),
                reader=reader,
                marks=(f"{escape(root.name)}/{mark}",),
                modality=modality,
                department="unstated",
                task=ASK,
                license="unstated",
                citation=ASK,
                homepage=ASK,
                options=options,
            )
            found.append(Draft(recipe, because))
    if not found:
        kinds = Counter(Path(path).suffix or "no suffix" for path in paths).most_common(6)
        held = ", ".join(f"{number} {kind}" for kind, number in kinds) or "none"
        raise ValueError(
            f"{folder} is in no format that a reader knows ({', '.join(readers.READERS)}); "
            f"it holds {len(paths)} files: {held}"
        )
    return found


def attempt(recipe: Recipe, root: Path, most: int = 200) -> tuple[list, Ledger]:
    """Read up to `most` records of `root` with a draft; return them and the books."""
    ledger, records = Ledger(), []
    modality = "X-ray" if recipe.modality == ASK else recipe.modality  # any will do for the trial
    tried = replace(recipe, modality=modality, task=TASKS[0])
    for record in readers.read(tried, Path(root).resolve(), ledger):
        records.append(record)
        if len(records) == most:
            break
    return records, ledger


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of one dataset")
    parser.add_argument("--modality", default=ASK, help="of its images, if all have the same")
    parsed = parser.parse_args(arguments)
    if parsed.modality not in (*MODALITIES, ASK):
        parser.error(f"unknown modality {parsed.modality!r}; known: {', '.join(MODALITIES)}")
    try:
        known = [r.name for r in RECIPES if matches(r, parsed.folder.resolve())]
        if known:
            print(f"{parsed.folder} is recognised already: {', '.join(known)}")
            return
        drafts = draft(parsed.folder, parsed.modality)
        for number, each in enumerate(drafts):
            print(f"{'surest' if not number else 'also possible'}: {each.because}\n")
            print(each.source(), "\n", sep="\n")
        records, ledger = attempt(drafts[0].recipe, parsed.folder)
    except ValueError as error:
        parser.error(str(error))
    labels = Counter(label for record in records for label in record.labels)
    boxes = sum(len(record.boxes) for record in records)
    print(f"tried on the first {len(records)} records: {boxes} boxes, labels {dict(labels)}")
    for row in ledger.rows():
        print(f"  {row['level']}: {row['outcome']} {row['count']}  {row['example']}".rstrip())
    silent = sum(r.image is not None and not (r.labels or r.qa or r.report) for r in records)
    if silent:
        print(
            f"{silent} of these images have neither label nor question and give no pair; if it "
            f"means that nothing is to be found, the option 'no_annotation': {NO_FINDING!r} says so"
        )
    print(f'Fill in what stands as "{ASK}"; it belongs into gmai_lib/dataset/recipes_public.py.')
    for name, known in (("modality", MODALITIES), ("task", TASKS), ("department", DEPARTMENTS)):
        print(f"{name}: one of {', '.join(known)}")
    print('license: an SPDX identifier, or "unstated"')


if __name__ == "__main__":
    main()
