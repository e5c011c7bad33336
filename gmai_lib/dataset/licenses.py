"""Licences: what a source allows, whether a build may use it, and which licence binds the whole.

    licenses.terms("CC-BY-NC-4.0").commercial            # False
    licenses.require(sources, "commercial")              # ValueError that names who forbids it
    python -m gmai_lib.dataset.licenses DATA --use commercial

Identifiers are those of the SPDX list, or "unstated". Whether a listed licence is permissive,
copyleft or restricted is what ScanCode LicenseDB says of it; both come with `license-expression`.
The conditions NC, ND and SA of Creative Commons stand in the identifier itself. Nothing is guessed:
a licence without version, or one of the owner's own, allows nothing until somebody has read it.
This is bookkeeping, not legal advice.

Paper: none; it names no licence of its sources.

References: https://spdx.org/licenses, https://scancode-licensedb.aboutcode.org,
https://huggingface.co/docs/hub/repositories-licenses.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gmai_lib.dataset import recipes

USES = ("research", "commercial")
UNSTATED = "unstated"
# ScanCode's categories under which anybody may use the work for any purpose.
_FREE = ("Permissive", "Public Domain", "Copyleft", "Copyleft Limited")
_COPYLEFT = ("Copyleft", "Copyleft Limited")
# Of the hub's identifiers, those of data; the rest are licences of programs and models.
_HUB = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0",
)  # fmt: skip
_HUB_FAMILIES = {"ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl", "PDDL-1.0": "pddl"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one licence allows; everything is False where the licence is unknown."""

    license: str
    is_known: bool  # on the SPDX list
    commercial: bool = False  # may be used commercially
    derivatives: bool = False  # adapted works, such as pairs made from slices, may be passed on
    share_alike: bool = False  # adapted works carry the same licence
    attribution: bool = False  # the owner is named

    def __str__(self) -> str:
        if self.license == UNSTATED:
            return "nothing is granted: ask the owner"
        if not self.is_known:
            return "unknown: no SPDX identifier, read the owner's text"
        said = ["any use" if self.commercial else "no commercial use"]
        said += [] if self.derivatives else ["adapted works stay private"]
        said += ["adapted works under the same licence"] if self.share_alike else []
        said += ["the owner is named"] if self.attribution else []
        return ", ".join(said)

    @property
    def strictness(self) -> tuple[bool, ...]:
        """Sorts the most permissive first."""
        free = (self.is_known, self.commercial, self.derivatives)
        return (*(not right for right in free), self.share_alike, self.attribution)


@cache
def _listed() -> dict[str, str]:
    """Identifier on the SPDX list -> ScanCode category; exceptions are no licences."""
    from license_expression import get_license_index

    return {
        row["spdx_license_key"]: row["category"]
        for row in get_license_index()
        if row["spdx_license_key"]
        and not row["is_exception"]
        and not row["spdx_license_key"].startswith("LicenseRef-")  # ScanCode's own names
    }


@cache
def terms(license: str) -> Terms:
    """Return what `license`, an SPDX identifier as the list spells it or "unstated", allows."""
    category = _listed().get(license)
    if category is None:
        return Terms(license=license, is_known=False)
    conditions = license.split("-")
    return Terms(
        license=license,
        is_known=True,
        # ScanCode files CC-BY-ND under "source-available", though it allows commercial use.
        commercial="NC" not in conditions and (category in _FREE or license.startswith("CC-BY-")),
        derivatives="ND" not in conditions,
        share_alike=category in _COPYLEFT or "SA" in conditions,
        attribution=category != "Public Domain",
    )


def refusal(license: str, access: str, use: str) -> str | None:
    """Return why a build for `use` may not contain what has this licence, None if it may.

    A build makes derivatives (slices, windows, text), so ND is refused like NC. What is not open
    comes with a data use agreement or terms of its host, whatever the licence says.
    """
    if use not in USES:
        raise ValueError(f"use {use!r} is not one of {USES}")
    if use == "research":
        return None
    if license == UNSTATED:
        return "license is unstated"
    conditions = re.split(r"[-_ ]", license.upper())  # also of an identifier that is not SPDX's
    allowed = terms(license)
    if "NC" in conditions:
        return f"license {license} is non-commercial"
    if "ND" in conditions:
        return f"license {license} forbids derivatives"
    if not allowed.is_known:
        return f"license {license} is not on the SPDX list"
    if not allowed.commercial:
        return f"license {license} restricts its use"
    return None if access == "open" else f"access is {access}"


def require(sources: Iterable[dict], use: str):
    """Raise one ValueError that names every source that a build for `use` may not contain.

    `sources` are rows {"source", "license", "access"}, several per source where its images differ.
    """
    reasons = {(row["source"], refusal(row["license"], row["access"], use)) for row in sources}
    refuse(sorted((source, reason) for source, reason in reasons if reason), use)


def refuse(found: Iterable[tuple[str, str]], use: str):
    """Raise ValueError if there are pairs (source, reason)."""
    named = ", ".join(f"{source} ({reason})" for source, reason in found)
    if named:
        raise ValueError(
            f"a {use} build may not contain {named}: leave these records out (notebook 02 with "
            f"commercial=True does), get their owners' permission and state it as the licence of "
            "the recipe, or build for research"
        )


def strictest(licenses: Iterable[str]) -> str:
    """Return the licence that binds the whole; one that is unknown or unstated wins.

    Of equals a Creative Commons licence wins: it asks for more than that a notice is kept. Raises
    ValueError if there is none.
    """
    names = sorted(set(licenses))
    if not names:
        raise ValueError("no licence is given; every source needs one, if only 'unstated'")
    return max(names, key=lambda name: (terms(name).strictness, name.startswith("CC-")))


def uncovered(licenses: Iterable[str]) -> list[str]:
    """Return the licences with a condition that the strictest one does not carry.

    CC-BY-SA beside CC-BY-NC: no single licence of the two satisfies both owners. Beside an unknown
    one, which allows nothing, the question is idle: the list is empty.
    """
    licenses = set(licenses)
    strict = terms(strictest(licenses))
    binding = strict.strictness
    if not strict.is_known:
        return []
    return sorted(
        name
        for name in licenses
        if any(mine and not his for mine, his in zip(terms(name).strictness, binding, strict=True))
    )


def hub_metadata(license: str) -> dict[str, str]:
    """Return the lines `license` (and `license_name`) of a card's metadata on the hub."""
    known = _HUB_FAMILIES.get(license, license.lower())
    if terms(license).is_known and known in (*_HUB, *_HUB_FAMILIES.values()):
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", license.lower())}


def table(sources: Iterable[dict]) -> list[dict]:
    """Return rows {"source", "license", "access", "allows", "commercial build"}, no row twice."""
    found = sorted({(row["source"], row["license"], row["access"]) for row in sources})
    return [
        {"source": source, "license": license, "access": access, "allows": str(terms(license))}
        | {"commercial build": refusal(license, access, "commercial") or "allowed"}
        for source, license, access in found
    ]


def main(arguments: list[str] | None = None):
    """Command line: the table of a folder of datasets; exits with 2 and a sentence if refused."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of datasets")
    parser.add_argument("--use", choices=USES, default="research")
    parsed = parser.parse_args(arguments)
    try:
        sources = [
            {"source": recipe.name, "license": recipe.license, "access": recipe.access}
            for recipe, _ in recipes.find(parsed.data)
        ]
        for row in table(sources):
            print(" | ".join(row.values()))
        require(sources, parsed.use)
    except ValueError as error:
        parser.error(str(error))
    print(f"a {parsed.use} build may contain all {len(sources)} sources")


if __name__ == "__main__":
    main()
