"""Words: readable names, English noun phrases and the English-to-Chinese lexicon.

`readable` turns names as sources write them (`lung_middle_lobe_right`, `RBC`) into English,
`indefinite`, `definite` and `quantity` put a name into a sentence ("an ulcer", "two foreign
bodies", "left rib 9"), `translate` gives the Chinese term.

Paper: section 3.1 has 30 % of the English text translated by a machine.
Departs: a lexicon, so a Chinese term is the same everywhere and can be checked.
"""

import re
from collections import Counter
from functools import lru_cache

from gmai_lib.schema import NO_FINDING

# Labels that say that something is not there; the first is ours, the others are sources'.
NEGATIVE_LABELS = frozenset((NO_FINDING, "no tumor"))
# What some microscopy images show in place of an organ; it is described but not asked for.
# What an organ's name says as well: a lung is in a chest.
PART_OF = {"lung": ("chest",), "retina": ("eye",), "torso": ("chest", "abdomen")}
NOT_AN_ORGAN = "cell culture or tissue"

# Source spelling (lower case, blanks for underscores, side removed) -> readable name.
_ALIASES = {
    "rbc": "red blood cell",
    "wbc": "white blood cell",
    "platelets": "platelet",
    "nuclei": "nucleus",
    "glioma tumor": "glioma",
    "meningioma tumor": "meningioma",
    "normal": NO_FINDING,
    "xray": "X-ray",
    "abd": "abdomen",
    "autochthon": "autochthonous back muscle",
    "clavicula": "clavicle",
    "iliac vena": "iliac vein",
    "hip": "hip bone",
    "heart atrium": "atrium",
    "heart ventricle": "ventricle",
    "heart myocardium": "myocardium",
}

# Name -> (one, several) where adding "s" is wrong. "one" takes "a" or "the".
_IRREGULAR = {
    "foreign body": ("foreign body", "foreign bodies"),
    "hypermetabolic focus": ("hypermetabolic focus", "hypermetabolic foci"),
    "metastasis": ("metastasis", "metastases"),
    "nucleus": ("nucleus", "nuclei"),
    "cell nucleus": ("cell nucleus", "cell nuclei"),
    "drusen": ("drusen deposit", "drusen deposits"),
    "globules": ("cluster of globules", "clusters of globules"),
    "bleeding": ("bleeding site", "bleeding sites"),
    "necrosis": ("area of necrosis", "areas of necrosis"),
}

# Diseases and states that take no article: "The image shows pneumonia."
_MASS_NOUN = re.compile(
    r"(itis|osis|emia|pathy|edema|pneumonia|megaly|trophy|disease|COVID-19|SARS|ARDS)$", re.I
)

# Normal anatomy: takes "the", never "a", and is not counted. Base name (no side) -> Chinese.
STRUCTURES = {
    "spleen": "脾脏",
    "kidney": "肾",
    "gallbladder": "胆囊",
    "liver": "肝脏",
    "stomach": "胃",
    "pancreas": "胰腺",
    "adrenal gland": "肾上腺",
    "lung": "肺",
    "esophagus": "食管",
    "trachea": "气管",
    "thyroid gland": "甲状腺",
    "thyroid": "甲状腺",
    "small bowel": "小肠",
    "duodenum": "十二指肠",
    "colon": "结肠",
    "urinary bladder": "膀胱",
    "bladder": "膀胱",
    "prostate": "前列腺",
    "uterus": "子宫",
    "sacrum": "骶骨",
    "vertebrae": "椎体",
    "intervertebral discs": "椎间盘",
    "heart": "心脏",
    "atrium": "心房",
    "ventricle": "心室",
    "myocardium": "心肌",
    "aorta": "主动脉",
    "pulmonary vein": "肺静脉",
    "pulmonary artery": "肺动脉",
    "brachiocephalic trunk": "头臂干",
    "subclavian artery": "锁骨下动脉",
    "common carotid artery": "颈总动脉",
    "brachiocephalic vein": "头臂静脉",
    "atrial appendage": "心耳",
    "superior vena cava": "上腔静脉",
    "inferior vena cava": "下腔静脉",
    "lymph node": "淋巴结",
    "portal vein": "门静脉",
    "portal vein and splenic vein": "门静脉和脾静脉",
    "iliac artery": "髂动脉",
    "iliac vein": "髂静脉",
    "humerus": "肱骨",
    "scapula": "肩胛骨",
    "clavicle": "锁骨",
    "femur": "股骨",
    "hip bone": "髋骨",
    "spinal cord": "脊髓",
    "gluteus maximus": "臀大肌",
    "gluteus medius": "臀中肌",
    "gluteus minimus": "臀小肌",
    "autochthonous back muscle": "背部固有肌",
    "iliopsoas": "髂腰肌",
    "brain": "脑",
    "skull": "颅骨",
    "sternum": "胸骨",
    "costal cartilages": "肋软骨",
    "subcutaneous fat": "皮下脂肪",
    "torso fat": "躯干脂肪",
    "skeletal muscle": "骨骼肌",
    "knee": "膝关节",
    "hand": "手",
    "breast": "乳腺",
    "torso": "躯干",
    "retina": "视网膜",
    "skin": "皮肤",
    "blood": "血液",
    "chest": "胸部",
    "abdomen": "腹部",
    "head": "头部",
    "neck": "颈部",
    "pelvis": "骨盆",
    "foot": "足",
    "ankle": "踝关节",
    "shoulder": "肩关节",
    "elbow": "肘关节",
    "wrist": "腕关节",
    "spine": "脊柱",
    "lumbar spine": "腰椎",
    "cervical spine": "颈椎",
    "thoracic spine": "胸椎",
    "eye": "眼",
    "whole body": "全身",
    "gastrointestinal tract": "胃肠道",
    "cecum": "盲肠",
    "ileum": "回肠",
    "pylorus": "幽门",
    "anterior hippocampus": "海马前部",
    "posterior hippocampus": "海马后部",
    "hepatic vessel": "肝血管",
    "retinal vessels": "视网膜血管",
    "optic disc": "视盘",
    "abdominal wall": "腹壁",
    "inferior mesenteric artery": "肠系膜下动脉",
    "intestinal veins": "肠静脉",
    "ureter": "输尿管",
    "vesicular glands": "精囊",
    "prostate or uterus": "前列腺或子宫",
    "pulmonary annulus": "肺动脉瓣环",
    "pulmonary bifurcation": "肺动脉分叉",
    "pulmonary artery origin": "肺动脉起始部",
    "pulmonary sinotubular junction": "肺动脉窦管交界",
}
_NO_ARTICLE = frozenset(("blood", NOT_AN_ORGAN))
# Normal cells that are annotated to be counted; questions do not call them "the finding".
_NORMAL_CELLS = frozenset(("red blood cell", "platelet", "nucleus", "cell nucleus"))
_PLURAL_STRUCTURES = frozenset(
    (
        "vertebrae",
        "intervertebral discs",
        "costal cartilages",
        "retinal vessels",
        "intestinal veins",
    )
    + ("vesicular glands",)
)

# Labels of the recipes for public datasets that phantoms and the data of the tests do not have.
_PUBLIC_LABELS = {
    "active tuberculosis": "活动性结核",
    "grasper": "抓钳",
    "bipolar forceps": "双极钳",
    "grasping retractor": "抓持牵开器",
    "large needle driver": "大持针器",
    "monopolar curved scissors": "单极弯剪",
    "prograsp forceps": "ProGrasp抓钳",
    "vessel sealer": "血管闭合器",
    "healed tuberculosis": "陈旧性结核",
    "hook": "电钩",
    "scissors": "剪刀",
    "clipper": "施夹器",
    "irrigator": "冲洗器",
    "specimen bag": "标本袋",
    "bone anomaly": "骨异常",
    "bone lesion": "骨病变",
    "metal": "金属",
    "periosteal reaction": "骨膜反应",
    "pronator sign": "旋前肌征",
    "soft tissue": "软组织",
    "hard exudate": "硬性渗出",
    "microaneurysm": "微动脉瘤",
    "skin lesion": "皮肤病变",
    "soft exudate": "软性渗出",
    "thyroid nodule": "甲状腺结节",
    "Barrett's esophagus": "巴雷特食管",
    "abnormality": "异常",
    "actinic keratosis": "光化性角化病",
    "adenosis": "腺病",
    "adipose tissue": "脂肪组织",
    "atelectasis": "肺不张",
    "atypical ductal hyperplasia": "非典型导管增生",
    "background": "背景",
    "basal cell carcinoma": "基底细胞癌",
    "basophil": "嗜碱性粒细胞",
    "benign breast lesion": "乳腺良性病变",
    "benign keratosis": "良性角化病",
    "benign nodule": "良性结节",
    "benign skin lesion": "皮肤良性病变",
    "buckle rib fracture": "肋骨皱褶骨折",
    "cancer-associated stroma": "癌相关间质",
    "carcinoma in situ": "原位癌",
    "cardiomegaly": "心脏增大",
    "choroidal neovascularization": "脉络膜新生血管",
    "collecting duct or connecting tubule": "集合管或连接小管",
    "colon adenocarcinoma": "结肠腺癌",
    "colon tumor": "结肠肿瘤",
    "colorectal adenocarcinoma": "结直肠腺癌",
    "consolidation": "实变",
    "debris": "碎屑",
    "dermatofibroma": "皮肤纤维瘤",
    "diabetic macular edema": "糖尿病性黄斑水肿",
    "diabetic retinopathy": "糖尿病视网膜病变",
    "displaced rib fracture": "移位性肋骨骨折",
    "distal convoluted tubule": "远曲小管",
    "ductal carcinoma": "导管癌",
    "ductal carcinoma in situ": "导管原位癌",
    "dyed lifted polyp": "染色抬举息肉",
    "dyed resection margin": "染色切缘",
    "edema": "水肿",
    "effusion": "积液",
    "emphysema": "肺气肿",
    "eosinophil": "嗜酸性粒细胞",
    "erythroblast": "幼红细胞",
    "esophagitis": "食管炎",
    "excitatory synapse": "兴奋性突触",
    "fibroadenoma": "纤维腺瘤",
    "fibrosis": "纤维化",
    "flat epithelial atypia": "扁平上皮不典型增生",
    "fracture": "骨折",
    "glaucoma": "青光眼",
    "glomerular endothelial cell": "肾小球内皮细胞",
    "hemorrhoids": "痔",
    "hernia": "疝",
    "hyperplastic polyp": "增生性息肉",
    "immature granulocyte": "未成熟粒细胞",
    "impacted stool": "粪便嵌塞",
    "infiltration": "浸润影",
    "inhibitory synapse": "抑制性突触",
    "interstitial endothelial cell": "间质内皮细胞",
    "invasive carcinoma": "浸润性癌",
    "leukocyte": "白细胞",
    "liver tumor": "肝肿瘤",
    "metastasis": "转移灶",
    "lobular carcinoma": "小叶癌",
    "lung adenocarcinoma": "肺腺癌",
    "lung opacity": "肺部阴影",
    "lung squamous cell carcinoma": "肺鳞状细胞癌",
    "lung tumor": "肺肿瘤",
    "lymphocyte": "淋巴细胞",
    "lymphocytes": "淋巴细胞群",
    "malignant breast lesion": "乳腺恶性病变",
    "malignant nodule": "恶性结节",
    "malignant tumor": "恶性肿瘤",
    "melanocytic nevus": "黑素细胞痣",
    "melanoma": "黑色素瘤",
    "metastatic tumor": "转移性肿瘤",
    "monocyte": "单核细胞",
    "mucinous carcinoma": "黏液癌",
    "mucus": "黏液",
    "neutrophil": "中性粒细胞",
    "no malignant tumor": "无恶性肿瘤",
    "nondisplaced rib fracture": "无移位肋骨骨折",
    "normal colon mucosa": "正常结肠黏膜",
    "pancreatic tumor": "胰腺肿瘤",
    "papillary carcinoma": "乳头状癌",
    "pathological benign lesion": "病理性良性病变",
    "phyllodes tumor": "叶状肿瘤",
    "pleural thickening": "胸膜增厚",
    "pneumothorax": "气胸",
    "podocyte": "足细胞",
    "proliferative": "增殖期",
    "proximal tubule segment": "近端小管段",
    "seborrheic keratosis": "脂溢性角化病",
    "sessile serrated adenoma": "无蒂锯齿状腺瘤",
    "smooth muscle": "平滑肌",
    "squamous cell carcinoma": "鳞状细胞癌",
    "thick ascending limb": "髓袢升支粗段",
    "tuberculosis": "肺结核",
    "tubular adenoma": "管状腺瘤",
    "tubular adenoma with high-grade dysplasia": "管状腺瘤伴高级别异型增生",
    "tubular adenoma with low-grade dysplasia": "管状腺瘤伴低级别异型增生",
    "tubulo-villous adenoma with high-grade dysplasia": "管状绒毛状腺瘤伴高级别异型增生",
    "tubulo-villous adenoma with low-grade dysplasia": "管状绒毛状腺瘤伴低级别异型增生",
    "usual ductal hyperplasia": "普通型导管增生",
    "vascular lesion": "血管性病变",
    "viral pneumonia": "病毒性肺炎",
    "z-line": "齿状线",
}

# English -> Chinese: vocabularies of schema.py, findings, sides, places, sizes, answers.
LEXICON = {
    **STRUCTURES,
    **_PUBLIC_LABELS,
    "CT": "CT",
    "MR": "磁共振",
    "X-ray": "X线",
    "ultrasound": "超声",
    "endoscopy": "内镜",
    "histopathology": "组织病理",
    "fundus": "眼底照相",
    "dermoscopy": "皮肤镜",
    "microscopy": "显微镜",
    "OCT": "OCT",
    "infrared reflectance": "红外反射",
    "PET": "PET",
    "ophthalmoscope": "检眼镜",
    "orthopedic surgery": "骨科",
    "general surgery": "普通外科",
    "gastroenterology and hepatology": "消化内科",
    "hematology": "血液科",
    "pulmonary medicine": "呼吸内科",
    "sports medicine": "运动医学科",
    "endocrinology": "内分泌科",
    "cardiovascular surgery": "心血管外科",
    "otolaryngology": "耳鼻喉科",
    "obstetrics and gynecology": "妇产科",
    "neurosurgery": "神经外科",
    "nephrology and hypertension": "肾内科",
    "infectious diseases": "感染科",
    "laboratory medicine and pathology": "病理检验科",
    "dermatology": "皮肤科",
    "oncology": "肿瘤科",
    "ophthalmology": "眼科",
    "urology": "泌尿外科",
    NO_FINDING: "未见异常",
    "no tumor": "未见肿瘤",
    "nodule": "结节",
    "cyst": "囊肿",
    "calcification": "钙化",
    "mass": "肿块",
    "microbleed": "微出血灶",
    "cavity": "空洞",
    "foreign body": "异物",
    "hypermetabolic focus": "高代谢灶",
    "drusen": "玻璃膜疣",
    "exudate": "渗出",
    "hemorrhage": "出血灶",
    "laser scar": "激光瘢痕",
    "ulcer": "溃疡",
    "globules": "色素小球",
    "polyp": "息肉",
    "bleeding": "出血",
    "tumor nest": "肿瘤巢",
    "necrosis": "坏死",
    "lymphocyte cluster": "淋巴细胞簇",
    "white blood cell": "白细胞",
    "red blood cell": "红细胞",
    "platelet": "血小板",
    "malaria parasite": "疟原虫",
    "platelet clump": "血小板团",
    "nucleus": "细胞核",
    "cell nucleus": "细胞核",
    "glioma": "胶质瘤",
    "meningioma": "脑膜瘤",
    "pituitary tumor": "垂体瘤",
    "tumor": "肿瘤",
    "kidney cyst": "肾囊肿",
    "kidney tumor": "肾肿瘤",
    "necrotic tumor core": "坏死性肿瘤核心",
    "peritumoral edema": "瘤周水肿",
    "enhancing tumor": "强化肿瘤",
    "enlarged cardiomediastinum": "心影纵隔增宽",
    "lung lesion": "肺部病变",
    "other pleural abnormality": "其他胸膜异常",
    "support device": "支持装置",
    "abnormality without lung opacity": "无肺部阴影的异常",
    "cell": "细胞",
    "tissue": "组织",
    "COVID-19": "新型冠状病毒肺炎",
    "pneumonia": "肺炎",
    NOT_AN_ORGAN: "细胞培养物或组织",
    "finding": "目标",
    "left": "左侧",
    "right": "右侧",
    "upper left": "左上部",
    "upper center": "上中部",
    "upper right": "右上部",
    "middle left": "左中部",
    "center": "中央",
    "middle right": "右中部",
    "lower left": "左下部",
    "lower center": "下中部",
    "lower right": "右下部",
    "small": "小",
    "medium": "中等",
    "large": "大",
    "mild": "轻度",
    "moderate": "中度",
    "severe": "重度",
    "yes": "是",
    "no": "否",
}

# Findings spread over an area take another Chinese measure word than things one can point at.
_SPREAD = frozenset(
    ("calcification", "hemorrhage", "bleeding", "exudate", "necrosis", "ulcer", "laser scar")
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CHINESE_NUMBERS = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")
_CHINESE_LOBES = {"upper": "上叶", "middle": "中叶", "lower": "下叶"}
_CHINESE_SPINE = {"C": "颈椎", "T": "胸椎", "L": "腰椎", "S": "骶椎"}


@lru_cache(maxsize=4096)
def readable(name: str) -> str:
    """Return `name` as English text; a name that is readable already comes back unchanged.

    `lung_middle_lobe_right` -> "middle lobe of the right lung", `rib_left_9` -> "left rib 9",
    `vertebrae_T9` -> "vertebra T9", `hip_left` -> "left hip bone", `RBC` -> "red blood cell".
    """
    text = " ".join(name.replace("_", " ").split())
    if text.isupper() and len(text) > 4 and text.replace(" ", "").isalpha():
        text = text.lower()  # folder names such as NECROSIS
    if match := re.fullmatch(r"lung (upper|middle|lower) lobe (left|right)", text):
        return "{} lobe of the {} lung".format(*match.groups())
    if match := re.fullmatch(r"rib (left|right) (\d+)", text):
        return "{} rib {}".format(*match.groups())
    if match := re.fullmatch(r"vertebrae ([CTLS]\d+)", text):
        return f"vertebra {match[1]}"
    side, base = _split_side(text)
    base = _ALIASES.get(base.lower(), base)
    return f"{side} {base}" if side else base


def is_structure(name: str) -> bool:
    """Whether the readable `name` is normal anatomy (an organ, bone, muscle or vessel)."""
    return name in STRUCTURES or _split_side(name)[1] in STRUCTURES or _numbered(name) is not None


def is_finding(name: str) -> bool:
    """Whether a question may call the readable label `name` "the finding"."""
    return not is_structure(name) and name not in _NORMAL_CELLS


def indefinite(name: str, adjective: str = "") -> str:
    """Return "a nodule", "a small nodule", "an ulcer", "the liver", "left rib 9", "pneumonia"."""
    if is_structure(name):
        return definite(name)
    phrase = f"{adjective} {one(name)}".strip()
    return phrase if _is_mass(name) else with_article(phrase)


def definite(name: str) -> str:
    """Return "the nodule", "the area of necrosis", "the liver", "left rib 9"."""
    numbered = _numbered(name)
    bare = _is_mass(name) or name in _NO_ARTICLE or (numbered and numbered[0] != "lobe")
    return name if bare else f"the {one(name)}"


def one(name: str) -> str:
    """Return the singular without article: "nodule", "area of necrosis", "drusen deposit"."""
    return _IRREGULAR[name][0] if name in _IRREGULAR else name


def plural(name: str) -> str:
    """Return "nodules", "cavities", "masses", "foreign bodies", "bleeding sites"."""
    if name in _IRREGULAR:
        return _IRREGULAR[name][1]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """Put "a" or "an" before `phrase`: an ulcer, an MR image, an X-ray, a uterus."""
    vowel = phrase[0].lower() in "aeiou" and not re.match(r"(?i)(uni|ute|ur[ie]|eu|one)", phrase)
    vowel = vowel or re.match(r"(MR|X-|FL|LGE|SPECT\b|hour)", phrase) is not None
    return f"{'an' if vowel else 'a'} {phrase}"


def quantity(name: str, count: int, language: str, adjective: str = "") -> str:
    """Return "a small nodule", "two nodules", "12 red blood cells"; Chinese with measure word."""
    if language == "zh":
        number = CHINESE_NUMBERS[count] if count <= 10 else count
        return f"{number}{measure_word(name)}{adjective}{translate(name, 'zh')}"
    if count == 1:
        return indefinite(name, adjective)
    number = NUMBERS[count] if count <= 10 else str(count)
    return " ".join(filter(None, (number, adjective, plural(name))))


def measure_word(name: str) -> str:
    """Return the Chinese measure word of a finding."""
    return "处" if name in _SPREAD else "个"


def are(name: str) -> bool:
    """Whether the structure `name` is a plural ("the vertebrae are seen")."""
    return name in _PLURAL_STRUCTURES


def translate(term: str, language: str, unknown: Counter | None = None) -> str:
    """Return the `language` term for the readable English `term`; numbers stay as they are.

    A Chinese term that the lexicon lacks stays English and is counted in `unknown`.
    """
    if language == "en" or term.isdecimal():
        return term
    found = _chinese(term)
    if found is None and unknown is not None:
        unknown[term] += 1
    return found or term


@lru_cache(maxsize=4096)
def _chinese(term: str) -> str | None:
    if term in LEXICON:
        return LEXICON[term]
    if numbered := _numbered(term):
        kind, side, number = numbered
        left_right = {"left": "左", "right": "右", "": ""}[side]
        if kind == "lobe":
            return f"{left_right}肺{_CHINESE_LOBES[number]}"
        if kind == "rib":
            return f"{left_right}侧第{number}肋"
        return f"第{number[1:]}{_CHINESE_SPINE[number[0]]}"
    side, base = _split_side(term)
    if side and base in LEXICON:
        return {"left": "左", "right": "右"}[side] + LEXICON[base]
    return None


def _is_mass(name: str) -> bool:
    return name not in _IRREGULAR and _MASS_NOUN.search(name) is not None


def _split_side(text: str) -> tuple[str, str]:
    """("left", "kidney") from "kidney left" or "left kidney"; ("", text) without a side."""
    first, _, rest = text.partition(" ")
    if rest and first in ("left", "right"):
        return first, rest
    rest, _, last = text.rpartition(" ")
    return (last, rest) if rest and last in ("left", "right") else ("", text)


def _numbered(name: str) -> tuple[str, str, str] | None:
    """("rib", "left", "9"), ("vertebra", "", "T9"), ("lobe", "right", "middle") or None."""
    if match := re.fullmatch(r"(left|right) rib (\d+)", name):
        return "rib", match[1], match[2]
    if match := re.fullmatch(r"vertebra ([CTLS]\d+)", name):
        return "vertebra", "", match[1]
    if match := re.fullmatch(r"(upper|middle|lower) lobe of the (left|right) lung", name):
        return "lobe", match[2], match[1]
    return None
