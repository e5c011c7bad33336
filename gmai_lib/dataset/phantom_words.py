"""Words that go with phantoms: reports, VQA-RAD style questions, teaching questions.

Reports and questions state the ground truth of their picture and nothing else. The teaching
texts are general and short; they are examples for a format, not medical advice.
"""

import numpy as np

from gmai_lib.dataset.phantoms import FINDINGS, Phantom
from gmai_lib.schema import NO_FINDING, PLACES

VIEWS = {
    ("X-ray", "lung"): "PA",
    ("X-ray", "hand"): "AP",
    ("CT", "lung"): "Axial",
    ("CT", "liver"): "Axial",
    ("MR", "brain"): "Axial",
    ("MR", "knee"): "Sagittal",
}
_TECHNIQUE = {
    ("X-ray", "lung"): ("Frontal chest radiograph", "Chest X-ray, frontal view"),
    ("X-ray", "hand"): ("Radiograph of the hand", "X-ray of one hand"),
    ("CT", "lung"): ("Axial chest CT, lung window", "CT of the chest, one axial slice"),
    ("CT", "liver"): ("Axial abdominal CT with contrast", "CT of the liver, one axial slice"),
    ("MR", "brain"): ("Axial MR image of the brain", "Contrast-enhanced MRI of the head, axial"),
    ("MR", "knee"): ("Sagittal MR image of the knee", "MRI of the knee, sagittal slice"),
}
_MODALITY_ANSWERS = {"X-ray": "X-ray", "CT": "CT", "MR": "MRI"}
_NUMBERS = {2: "two", 3: "three"}


def places(picture: Phantom) -> list[str]:
    """Return the place (one of `schema.PLACES`) of each box, by its centre."""
    height, width = picture.mask.shape
    found = []
    for x1, y1, x2, y2 in picture.boxes:
        column, row = int((x1 + x2) / 2 / width * 3), int((y1 + y2) / 2 / height * 3)
        found.append(PLACES[3 * min(row, 2) + min(column, 2)])
    return found


def plural(name: str) -> str:
    """Return the plural of a finding's name."""
    if name.endswith("focus"):
        return name.removesuffix("us") + "i"
    if name.endswith("y"):
        return name.removesuffix("y") + "ies"
    return name if name in ("drusen", "globules") else name + ("es" if name.endswith("s") else "s")


def report(picture: Phantom, rng: np.random.Generator) -> str:
    """Return 2 to 4 sentences in the style of a radiology report."""
    organ, name = picture.organ, picture.finding
    others = [n for n in FINDINGS[picture.modality][organ].values() if n != name]
    absent = f"No {_listed(others, 'or')} is seen." if others else ""
    sentences = [f"{_pick(rng, _TECHNIQUE[picture.modality, organ])}."]
    if name == NO_FINDING:
        sentences.append(_pick(rng, ("There is no focal abnormality.", f"The {organ} is normal.")))
    else:
        where = places(picture)
        if len(where) == 1:
            thing = f"{_article(name)} {name}"
            forms = (f"There is {thing} in the {where[0]} of the image.",)
            forms += (f"{thing.capitalize()} is seen in the {where[0]} of the image.",)
        else:
            things = f"{_NUMBERS[len(where)]} {plural(name)}"
            parts = " and ".join(f"the {w}" for w in dict.fromkeys(where))
            forms = (f"There are {things}, in {parts} of the image.",)
            forms += (f"{things.capitalize()} are seen, in {parts} of the image.",)
        sentences.append(_pick(rng, forms))
    if absent and (name == NO_FINDING or rng.random() < 0.6):
        sentences.append(absent)
    if rng.random() < 0.5:
        sentences.append(f"Impression: {name}.")
    return " ".join(sentences)


def questions(picture: Phantom, rng: np.random.Generator) -> list[dict]:
    """Return VQA-RAD rows without ids: 5 to 7 questions about one picture.

    Quirks of the original are kept: a count is a JSON integer, and some answer types have a
    trailing blank.
    """
    organ, name, modality = picture.organ, picture.finding, _MODALITY_ANSWERS[picture.modality]
    has_finding = name != NO_FINDING
    kind = _pick(rng, ("What kind of image is this?", "What is the modality of this image?"))
    part = _pick(rng, ("Which organ is shown?", "What body part does the image show?"))
    rows = [("MODALITY", kind, modality), ("ORGAN", part, organ)]
    rows.append(("ABN", "Is there an abnormality in the image?", _yes(has_finding)))
    others = [n for n in FINDINGS[picture.modality][organ].values() if n != name]
    asked = name if has_finding and rng.random() < 0.5 else _pick(rng, others)
    thing = f"{_article(asked)} {asked}"
    form = _pick(rng, (f"Is there {thing}?", f"Does the {organ} show {thing}?"))
    rows.append(("PRES", form, _yes(asked == name)))
    rows.append(("ABN", "What is the main finding?", name))
    where = places(picture)
    if has_finding:
        rows.append(("COUNT", f"How many {plural(name)} are seen?", len(where)))
    if len(where) == 1:
        rows.append(("POS", f"Where in the image is the {name}?", where[0]))
    return [
        {
            "answer": answer,
            "answer_type": _answer_type(answer, rng),
            "question_type": type_,
            "question": question,
            "phrase_type": "freeform",
        }
        for type_, question, answer in rows
    ]


def lessons() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return (focus, [(type, question, answer), ...]): about 150 pairs, some answers empty."""
    documents = []
    for modality in FINDINGS:
        use, picture = _MODALITY_LESSONS[modality]
        pairs = [
            ("information", f"What is {modality} used for?", use),
            ("information", f"What does {_a_picture(modality)} look like?", picture),
        ]
        documents.append((f"{modality} imaging", pairs))
    about: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (organ, name) -> modality, kind
    for modality, organs in FINDINGS.items():
        for organ, kinds in organs.items():
            for kind, name in kinds.items():
                about.setdefault((organ, name), []).append((modality, kind))
    for (organ, name), shown in about.items():
        meaning = _MEANINGS.get((organ, name)) or _MEANINGS["", name]
        noun = name if name in _MASS_NOUNS else f"{_article(name)} {name}"
        subject = f"{noun} {'in' if organ == 'blood' else 'of'} the {organ}"
        modalities = _listed([modality for modality, _ in shown], "and")
        verb = "show" if len(shown) > 1 else "shows"
        answer = f"{modalities[0].upper()}{modalities[1:]} {verb} {subject}."
        pairs = [("information", f"What is {subject}?", meaning)]
        pairs.append(("exams and tests", f"Which imaging modality shows {subject}?", answer))
        for modality, kind in shown:
            others = [n for n in FINDINGS[modality][organ].values() if n != name]
            tell = f" {_SHAPES[kind]}"
            tell += f" That distinguishes it from {_listed(others, 'and')}." if others else ""
            question = f"How does {subject} look in {_a_picture(modality)}?"
            pairs.append(("symptoms", question, _LOOKS[modality][kind] + tell))
        if len(documents) % 12 == 5:  # MedQuAD has documents whose answers were removed
            pairs.append(("treatment", f"How is {subject} treated?", ""))
        documents.append((subject.removeprefix("a ").removeprefix("an "), pairs))
    return documents


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _yes(value: bool) -> str:
    return "Yes" if value else "No"


def _answer_type(answer, rng) -> str:
    if answer not in ("Yes", "No"):
        return "OPEN"
    return "CLOSED " if rng.random() < 0.2 else "CLOSED"


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _a_picture(modality: str) -> str:
    by_sound = modality in ("MR", "X-ray", "OCT", "endoscopy", "ultrasound")
    return f"{'an' if by_sound else 'a'} {modality} image"


_MASS_NOUNS = ("drusen", "globules", "necrosis", "bleeding", "exudate", "calcification")

_SHAPES = {
    "solid": "It is one filled area with a clear border.",
    "ring": "It is a ring: a centre of one brightness with a wall of another.",
    "specks": "It is a cluster of small dots that lie close together.",
}

_MODALITY_LESSONS = {
    "CT": (
        "Computed tomography measures how strongly tissue weakens X-rays and shows slices of the "
        "body. It is used for the lungs, the abdomen, the head and for injuries.",
        "It is a grey slice in which bone is white, air is black and soft tissue lies between; a "
        "window chooses which range of Hounsfield units is visible.",
    ),
    "MR": (
        "Magnetic resonance imaging uses a magnetic field and radio waves, without X-rays. It "
        "shows soft tissue well, such as the brain, joints and the spinal cord.",
        "It is a grey slice with high contrast between soft tissues; compact bone and air are "
        "dark.",
    ),
    "X-ray": (
        "A radiograph is a projection of X-rays through the body. It is the first examination of "
        "the chest and of bones.",
        "It is one grey projection in which bones and the heart are bright and the air in the "
        "lungs is dark.",
    ),
    "ultrasound": (
        "Ultrasound makes images from the echoes of sound waves. It is used for the breast, the "
        "thyroid, the abdomen, the heart and in pregnancy.",
        "It is a grey image with a grainy texture called speckle; fluid is black and strong "
        "reflectors are white with a shadow behind them.",
    ),
    "PET": (
        "Positron emission tomography shows where a radioactive tracer collects. With FDG it "
        "shows tissue that uses much sugar, and it is used to find and stage cancer.",
        "It is a blurred grey map of the tracer; the brain, the heart and the bladder are bright "
        "in a healthy person.",
    ),
    "OCT": (
        "Optical coherence tomography measures reflections of light and shows a section through "
        "the retina. It is used for diseases of the macula.",
        "It is a grey section with the layers of the retina as bright and dark bands and a dip at "
        "the fovea.",
    ),
    "fundus": (
        "Fundus photography takes a colour picture of the back of the eye. It is used to screen "
        "for diabetic retinopathy and glaucoma.",
        "It is a round orange picture with a bright optic disc, branching vessels and a darker "
        "macula.",
    ),
    "dermoscopy": (
        "Dermoscopy looks at the skin through a magnifier with its own light. It is used to judge "
        "moles and other spots.",
        "It is a close colour picture of skin, often with hairs and a dark edge.",
    ),
    "endoscopy": (
        "Endoscopy looks into hollow organs with a camera on a tube. It is used to find polyps, "
        "ulcers and bleeding in the stomach and colon.",
        "It is a reddish colour picture of the mucosa with folds and white reflections of the "
        "light.",
    ),
    "histopathology": (
        "Histopathology examines thin stained sections of tissue under a microscope. It is used "
        "to decide whether a tumor is benign or malignant.",
        "With hematoxylin and eosin, nuclei are purple and the tissue between them is pink.",
    ),
    "microscopy": (
        "Microscopy of a blood smear shows single cells. It is used to count and judge blood "
        "cells and to find parasites.",
        "It is a bright picture with many round red cells that are paler in their middle.",
    ),
}

_BRIGHT = {
    "solid": "It is a filled area brighter than the tissue around it.",
    "ring": "It has a dark centre and a bright wall.",
    "specks": "It appears as several bright dots close together.",
}
_LOOKS = {
    "CT": _BRIGHT,
    "MR": _BRIGHT | {"specks": "It appears as several black dots close together."},
    "X-ray": _BRIGHT,
    "ultrasound": _BRIGHT | {"solid": "It is a filled dark area in brighter tissue."},
    "PET": {"solid": "It is a spot much brighter than the tissue around it."},
    "OCT": _BRIGHT,
    "fundus": {
        "solid": "It is a filled dark red area.",
        "ring": "It has a dark pigmented centre and a pale rim.",
        "specks": "It appears as several bright yellow dots close together.",
    },
    "dermoscopy": {
        "solid": "It is a filled area much darker than the skin.",
        "ring": "It has a pale centre and a dark rim.",
        "specks": "It appears as several dark dots close together.",
    },
    "endoscopy": {
        "solid": "It is a dome that is brighter than the mucosa and reflects the light.",
        "ring": "It has a pale base and a dark red rim.",
        "specks": "It appears as several dark red dots close together.",
    },
    "histopathology": {
        "solid": "It is a dense area of dark nuclei.",
        "ring": "It has a pale centre and a dark border.",
        "specks": "It appears as several small dark nuclei close together.",
    },
    "microscopy": {
        "solid": "It is large, filled and purple.",
        "ring": "It is a dark ring inside a red cell.",
        "specks": "It appears as several small purple dots close together.",
    },
}

_MEANINGS = {
    ("lung", "nodule"): "A lung nodule is a rounded spot in the lung of up to three centimetres. "
    "Most are benign, but one that grows can be an early cancer.",
    ("lung", "cyst"): "A lung cyst is a space filled with air that has a thin wall.",
    (
        "lung",
        "cavity",
    ): "A cavity is a hollow in diseased lung, surrounded by a wall. Tuberculosis, "
    "abscesses and some cancers form cavities.",
    ("lung", "calcification"): "A calcification of the lung is a deposit of calcium, often left "
    "behind by a healed infection.",
    ("liver", "mass"): "A liver mass is a solid growth in the liver. It can be benign, a primary "
    "cancer or a metastasis.",
    ("liver", "cyst"): "A liver cyst is a sac filled with fluid. Simple liver cysts are common and "
    "harmless.",
    ("liver", "calcification"): "A calcification of the liver is a deposit of calcium, for example "
    "after an infection or in an old lesion.",
    ("brain", "mass"): "A brain mass is an abnormal growth inside the skull, such as a glioma, a "
    "meningioma or a metastasis.",
    ("brain", "cyst"): "A brain cyst is a sac of fluid in or beside the brain.",
    ("brain", "microbleed"): "A cerebral microbleed is a tiny deposit of blood products in the "
    "brain, seen with high blood pressure and amyloid angiopathy.",
    ("knee", "mass"): "A mass of the knee is a solid growth in bone or soft tissue and needs to be "
    "examined further.",
    ("knee", "cyst"): "A cyst of the knee is a sac of joint fluid, for example a Baker cyst behind "
    "the knee.",
    (
        "hand",
        "foreign body",
    ): "A foreign body is an object in the tissue that does not belong there, "
    "such as a splinter of metal or glass.",
    ("hand", "cyst"): "A bone cyst is a hollow in a bone, often found by chance.",
    (
        "hand",
        "calcification",
    ): "A calcification of the hand is a deposit of calcium in soft tissue, "
    "for example near a tendon.",
    ("breast", "mass"): "A breast mass is a solid lump. Its shape and border help to tell a benign "
    "lump from cancer.",
    ("breast", "cyst"): "A breast cyst is a sac of fluid in the breast; it is common and usually "
    "harmless.",
    ("breast", "calcification"): "A breast calcification is a small deposit of calcium. Most are "
    "harmless, but a dense cluster can be a sign of early cancer.",
    (
        "thyroid",
        "nodule",
    ): "A thyroid nodule is a lump in the thyroid gland. Nodules are common and mostly benign.",
    ("thyroid", "cyst"): "A thyroid cyst is a nodule that is filled with fluid.",
    ("thyroid", "calcification"): "A thyroid calcification is a deposit of calcium in the gland; "
    "very fine ones raise the suspicion of cancer.",
    ("torso", "hypermetabolic focus"): "A hypermetabolic focus is a spot that takes up more tracer "
    "than its surroundings. Cancer, infection and inflammation can cause it.",
    (
        "retina",
        "drusen",
    ): "Drusen are deposits under the retina. They are an early sign of age-related "
    "macular degeneration.",
    ("retina", "cyst"): "A retinal cyst is a pocket of fluid in the retina, as in macular edema.",
    ("retina", "exudate"): "An exudate is a deposit of fat and protein that leaked from damaged "
    "vessels, often in diabetes.",
    (
        "retina",
        "hemorrhage",
    ): "A retinal hemorrhage is blood that has left the vessels of the retina.",
    ("retina", "laser scar"): "A laser scar is a burn left by laser treatment of the retina.",
    ("skin", "nodule"): "A skin nodule is a solid lump in the skin.",
    ("skin", "ulcer"): "A skin ulcer is a wound in which the upper layers of the skin are missing.",
    ("skin", "globules"): "Globules are small round clumps of pigment, as in many moles.",
    (
        "",
        "polyp",
    ): "A polyp is a growth that rises from the mucosa into the hollow organ. Some polyps "
    "can turn into cancer.",
    ("", "ulcer"): "An ulcer is a defect of the mucosa that reaches into deeper layers.",
    ("", "bleeding"): "Bleeding is blood that leaves vessels of the mucosa.",
    ("", "tumor nest"): "A tumor nest is a group of tumor cells that lie densely together.",
    ("", "necrosis"): "Necrosis is tissue that has died; it loses its nuclei and looks pale.",
    (
        "",
        "lymphocyte cluster",
    ): "A lymphocyte cluster is a group of small white blood cells, a sign "
    "of inflammation or of an immune response to a tumor.",
    (
        "blood",
        "white blood cell",
    ): "A white blood cell is a cell of the immune system. It is larger "
    "than a red cell and has a nucleus.",
    (
        "blood",
        "malaria parasite",
    ): "A malaria parasite is a single-celled organism that lives in red "
    "blood cells and is passed on by mosquitoes.",
    ("blood", "platelet clump"): "A platelet clump is a group of platelets that stick together; it "
    "can make the platelet count too low.",
}
