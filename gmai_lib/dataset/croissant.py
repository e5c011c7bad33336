"""Croissant metadata of the pairs: what is in the Parquet shards, for tools that know only that.

`write(pairs)` puts `croissant.json` beside the shards, as `python -m gmai_lib.dataset.export` does;
`mlcroissant.Dataset("pairs/croissant.json").records("pairs")` checks it and iterates the samples.

Columns come from `schema.sample_features`, everything else from `manifest.json` and the recipes.
What nobody here knows (who publishes it, where and when, biases, social impact) stays out unless it
is passed: a missing property is better than a guessed one.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html with its PROV-O terms, and
https://docs.mlcommons.org/croissant/docs/croissant-rai-spec.html.
Departs: the record set reads a local file set, as nothing is hosted; mlcroissant loads all shards
into memory, so use `datasets` for large ones.
"""

from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from gmai_lib.dataset import recipes
from gmai_lib.outputs import read_json, write_json
from gmai_lib.schema import NOT_CLINICAL, SPLITS, sample_features

NAME = "croissant.json"
LIMITS = (
    "Phantoms are procedural pictures. They teach and test the machinery, not medicine.",
    "Template text is less varied than human text, and says nothing the annotation does not say.",
    "Annotation errors of a source are repeated.",
    "Sides and places are those of the image frame, not of the patient.",
)
# Required by the specification, unknown until somebody publishes the dataset.
REQUIRED = ("url", "creator", "datePublished")

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
} | {
    term: f"cr:{term}"
    for term in (
        "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field",
        "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset",
        "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
        "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
_TYPES = {"string": "sc:Text", "int64": "cr:Int64", "float64": "cr:Float64"}
_SPLIT_TYPES = {"train": "Training", "validation": "Validation", "test": "Test"}
_ABOUT = {
    "id": "Stable between builds: dimension#task#modality#source#path, subset and language.",
    "images": "PNG or JPEG, 8-bit grey or RGB; empty for text samples.",
    "conversations": "Turns; <image> in the first one marks where the image goes.",
    "subset": "caption, percept, instruct, text_single or text_multi.",
    "language": "en or zh.",
    "source": "Dataset of origin.",
    "license": "SPDX identifier of the source's licence, or unstated.",
    "access": "open, registration or credentialed.",
    "granularity": "What the text is about: image or box.",
    "labels": "Findings of the whole image, as the source annotates them.",
    "boxes": "Annotated regions: corners and mask area as fractions of the image, origin top left.",
    "facts": "What the annotation says; the text says nothing else.",
    "patient": "Salted hash that groups the samples of one person; empty where unknown.",
    "volume": "Groups slices of one volume or frames of one video.",
    "writer": "Version of the templates, or model and prompt hash.",
    "sha256": "Of the stored image.",
    "phash": "64-bit perceptual hash of the image.",
}


def write(pairs: Path, *, url: str = "", creator: str = "", date_published: str = "") -> dict:
    """Write `croissant.json` for the shards that the manifest in `pairs` lists; return it.

    `creator` is the name of an organisation, `date_published` an ISO date. The same manifest and
    arguments give the same bytes. Raises FileNotFoundError without a manifest or one of its shards.
    """
    pairs = Path(pairs)
    if not (pairs / "manifest.json").is_file():
        raise FileNotFoundError(f"{pairs} has no manifest.json; run notebook 03 first")
    manifest = read_json(pairs / "manifest.json")
    for shard in manifest["shards"]:
        if not (pairs / shard["name"]).is_file():
            raise FileNotFoundError(f"{pairs / shard['name']} is missing; write the pairs again")
    stated = {"url": url, "datePublished": date_published}
    stated |= {"creator": {"@type": "sc:Organization", "name": creator} if creator else ""}
    metadata = {
        "@context": _CONTEXT | {"@base": "cr_base_iri/"},
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": "gmai-vl-workbook-pairs",
        "description": (
            f"{manifest['num_samples']} image-text and text samples from {manifest['num_records']} "
            f"annotated medical records, written from their annotation. {NOT_CLINICAL}"
        ),
        "license": [license_url(name) for name in sorted(manifest["composition"]["license"])],
        "inLanguage": sorted({row["language"] for row in manifest["counts"]}),
        "keywords": ["medical", *sorted(manifest["composition"]["modality"])],
        **{name: value for name, value in stated.items() if value},
        **_provenance(manifest),
        **_responsible_ai(manifest),
        "distribution": [*_files(manifest), _FILE_SET],
        "recordSet": [_splits(), _records()],
    }
    write_json(pairs / NAME, metadata)
    return metadata


def license_url(name: str) -> str:
    """Return the SPDX page of a licence; a name that SPDX does not know stays as it is."""
    try:
        return f"https://spdx.org/licenses/{canonicalize_license_expression(name)}.html"
    except InvalidLicenseExpression:
        return name


_FILE_SET = {
    "@type": "cr:FileSet",
    "@id": "shards",
    "description": "All shards.",
    "encodingFormat": "application/x-parquet",
    "includes": "*-of-*.parquet",
}


def _files(manifest: dict) -> list[dict]:
    """One FileObject per shard, for its checksum."""
    return [
        {
            "@type": "cr:FileObject",
            "@id": shard["name"],
            "name": shard["name"],
            "contentUrl": shard["name"],
            "contentSize": f"{shard['bytes']} B",
            "encodingFormat": "application/x-parquet",
            "sha256": shard["sha256"],
        }
        for shard in manifest["shards"]
    ]


def _splits() -> dict:
    """The record set that says which split is for what."""
    names = {"@type": "cr:Field", "@id": "splits/name", "dataType": "sc:Text"}
    urls = {"@type": "cr:Field", "@id": "splits/url", "dataType": "sc:URL"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [names, urls],
        "data": [
            {"splits/name": split, "splits/url": f"cr:{_SPLIT_TYPES[split]}Split"}
            for split in SPLITS
        ],
    }


def _records() -> dict:
    """The record set of the samples: one field per column, lists of structs as sub-fields."""
    fields = []
    for column, feature in sample_features().items():
        field = {"@type": "cr:Field", "@id": f"pairs/{column}"}
        field |= {"description": _ABOUT[column]} if column in _ABOUT else {}
        inner = getattr(feature, "feature", None)  # of a list
        if column == "images":
            field |= _LIST | {"dataType": "sc:ImageObject"} | _source(column, "bytes")
        elif isinstance(inner, dict):
            field |= _LIST | {
                "subField": [
                    {"@type": "cr:Field", "@id": f"pairs/{column}/{name}"}
                    | {"dataType": _TYPES[part.dtype]}
                    | _source(column, name)
                    for name, part in inner.items()
                ]
            }
        else:
            field |= {"dataType": _TYPES[(inner or feature).dtype]} | _source(column)
            field |= _LIST if inner else {}
            field |= {"references": {"field": {"@id": "splits/name"}}} if column == "split" else {}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "description": "One record per conversation.",
        "key": {"@id": "pairs/id"},
        "field": fields,
    }


# Version 1.1 says isArray; mlcroissant 1.1.1 casts the values of a list only where it is told
# `repeated`, the word of version 1.0.
_LIST = {"isArray": True, "arrayShape": "-1", "repeated": True}


def _source(column: str, part: str = "") -> dict:
    source = {"fileSet": {"@id": _FILE_SET["@id"]}, "extract": {"column": column}}
    return {"source": source | ({"transform": {"jsonPath": part}} if part else {})}


def _provenance(manifest: dict) -> dict:
    """PROV-O: the sources, with what their recipes say about them, and the run that wrote."""
    known = {recipe.name: recipe for recipe in recipes.RECIPES}
    sources = []
    for name in dict.fromkeys(row["source"] for row in manifest["records"]):
        recipe = known.get(name)
        source = {"@type": "prov:Entity", "prov:label": name}
        if recipe:
            source |= {"citation": recipe.citation} if recipe.citation else {}
            source |= {"@id": recipe.homepage} if recipe.homepage else {}
        sources.append(source)
    chinese = f"{100 * manifest['chinese_fraction']:.0f} % of the image records also in Chinese"
    run = f"writer {manifest['writer']}, seed {manifest['seed']}, {chinese}"
    return {
        "prov:wasDerivedFrom": sources,
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": f"gmai_lib.dataset.build: {run}",
        },
    }


def _responsible_ai(manifest: dict) -> dict:
    """The RAI properties that the build knows; see the module docstring for the others."""
    gate = manifest["fidelity"]
    lost = [row for row in manifest["ledger"] if row["outcome"] != "kept"]
    missing = "; ".join(f"{row['source']}: {row['outcome']} ({row['count']})" for row in lost)
    return {
        "rai:dataCollection": (
            "No data were collected for this dataset. Images, annotation and questions are those "
            "of the sources named in prov:wasDerivedFrom and in the column source."
        ),
        "rai:dataCollectionMissingData": missing or "Every record that was written gave a sample.",
        "rai:dataPreprocessingProtocol": [
            "Slices of volumes are windowed and turned to radiological display; what is no 8-bit "
            "grey or RGB PNG or JPEG is encoded again as PNG.",
            "Splits are by patient, volume or image group; identical images share a split.",
        ],
        "rai:dataAnnotationProtocol": [
            "Labels, boxes and questions are the sources' own; none was added.",
            f"The text was written from that annotation by {manifest['writer']}; {gate['checked']} "
            f"samples were checked against it and {len(gate['refused'])} refused.",
        ],
        "rai:machineAnnotationTools": [manifest["writer"]],
        "rai:personalSensitiveInformation": [
            "The column patient is a salted hash. DICOM files that say or may be expected to have "
            "text in their pixels are dropped; pixels of other files were not searched for it."
        ],
        "rai:dataUseCases": [NOT_CLINICAL],
        "rai:dataLimitations": list(LIMITS),
    }
