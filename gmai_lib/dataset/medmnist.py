"""What the numbers of MedMNIST v2 mean: one row per set, for the recipes of the `npz` reader.

Labels in the order of their numbers, as info.py of the medmnist package gives them, in words of
our own where theirs are codes. Left out: adrenalmnist3d and vesselmnist3d, which are shapes and no
images of a modality.

Source: MedMNIST v2 (Yang et al., Scientific Data 2023); https://medmnist.com.
"""

from gmai_lib.schema import NO_FINDING

_ORGANS = (
    "urinary bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver",
    "left lung", "right lung", "pancreas", "spleen",
)  # fmt: skip
_ABDOMEN = ("CT", "unstated", "organ recognition", "abdomen")

# flag: (modality, department, clinical task, organ, labels)
SETS: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "pathmnist": (
        "histopathology", "laboratory medicine and pathology", "disease diagnosis", "colon",
        ("adipose tissue", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
         "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma"),
    ),
    "chestmnist": (
        "X-ray", "pulmonary medicine", "disease diagnosis", "lung",
        ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
         "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural thickening",
         "hernia"),
    ),
    "dermamnist": (
        "dermoscopy", "dermatology", "disease diagnosis", "skin",
        ("actinic keratosis", "basal cell carcinoma", "benign keratosis", "dermatofibroma",
         "melanoma", "melanocytic nevus", "vascular lesion"),
    ),
    "octmnist": (
        "OCT", "ophthalmology", "disease diagnosis", "retina",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", NO_FINDING),
    ),
    "pneumoniamnist": (
        "X-ray", "pulmonary medicine", "disease diagnosis", "lung", (NO_FINDING, "pneumonia"),
    ),
    "retinamnist": (
        "fundus", "ophthalmology", "severity grading", "retina",
        (NO_FINDING, *["diabetic retinopathy"] * 4),
    ),
    "breastmnist": (
        "ultrasound", "general surgery", "disease diagnosis", "breast",
        ("malignant tumor", "no malignant tumor"),  # 1 is normal or benign
    ),
    "bloodmnist": (
        "microscopy", "hematology", "cell recognition", "blood",
        ("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte",
         "monocyte", "neutrophil", "platelet"),
    ),
    "tissuemnist": (
        "microscopy", "laboratory medicine and pathology", "cell recognition", "kidney",
        ("collecting duct or connecting tubule", "distal convoluted tubule",
         "glomerular endothelial cell", "interstitial endothelial cell", "leukocyte", "podocyte",
         "proximal tubule segment", "thick ascending limb"),
    ),
    "organamnist": (*_ABDOMEN, _ORGANS),
    "organcmnist": (*_ABDOMEN, _ORGANS),
    "organsmnist": (*_ABDOMEN, _ORGANS),
    "organmnist3d": (  # another order than the 2D sets
        *_ABDOMEN,
        ("liver", "right kidney", "left kidney", "right femur", "left femur", "urinary bladder",
         "heart", "right lung", "left lung", "spleen", "pancreas"),
    ),
    "nodulemnist3d": (
        "CT", "pulmonary medicine", "disease diagnosis", "lung",
        ("benign nodule", "malignant nodule"),
    ),
    "fracturemnist3d": (
        "CT", "orthopedic surgery", "disease diagnosis", "chest",
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    ),
    "synapsemnist3d": (
        "microscopy", "laboratory medicine and pathology", "disease diagnosis", "brain",
        ("inhibitory synapse", "excitatory synapse"),
    ),
}  # fmt: skip
# Grades of diabetic retinopathy; retinamnist's label is the grade.
GRADES = {"retinamnist": ("", "mild", "moderate", "severe", "proliferative")}
