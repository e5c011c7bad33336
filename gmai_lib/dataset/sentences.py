"""Surface forms of what the assistant says in full sentences: answers, captions, reports.

Slots: {x} the bare value, {a} with article, {the} ("the nodule"), {many} ("nodules"), {n} an
amount ("two nodules") with the verb {is}, {organ}, {side}, {place}, {size}. {A}, {The} and {N}
start a sentence. Chinese forms use {x} and {n}.
"""

SENTENCES = {
    "modality": {
        "en": (
            "This is {a} image.",
            "The image is {a} image.",
            "The imaging modality is {x}.",
            "It is {a} image.",
            "The modality of this image is {x}.",
            "What we see is {a} image.",
        ),
        "zh": (
            "这是一幅{x}图像。",
            "该图像为{x}图像。",
            "成像方式为{x}。",
            "这是{x}图像。",
            "该图像的模态是{x}。",
            "所示为{x}图像。",
        ),
    },
    "department": {
        "en": (
            "The image belongs to {x}.",
            "The clinical department is {x}.",
            "This is an image from {x}.",
            "It comes from the field of {x}.",
            "The case falls under {x}.",
            "The responsible department is {x}.",
        ),
        "zh": (
            "该图像属于{x}。",
            "临床科室为{x}。",
            "图像来自{x}。",
            "这是{x}的图像。",
            "该病例归{x}。",
            "对应的科室是{x}。",
        ),
    },
    "organ": {
        "en": (
            "The image shows {the}.",
            "{The} is shown.",
            "The imaged organ is {the}.",
            "The body part in the image is {the}.",
            "We see {the}.",
            "The examined region is {the}.",
        ),
        "zh": (
            "图像显示的是{x}。",
            "图中所示为{x}。",
            "检查部位为{x}。",
            "该图像拍摄的是{x}。",
            "可见的部位是{x}。",
            "图中的器官是{x}。",
        ),
    },
    "modality_organ": {  # opens a description; {a} and {x} are the modality
        "en": (
            "This is {a} image of {organ}.",
            "{A} image of {organ} is shown.",
            "This {x} image shows {organ}.",
            "The image is {a} image of {organ}.",
            "We see {organ} on {a} image.",
            "{A} image of {organ} is presented here.",
            "Shown is {organ} on {a} image.",
        ),
        "zh": (
            "这是一幅{organ}的{x}图像。",
            "图为{organ}的{x}图像。",
            "该{x}图像显示{organ}。",
            "所示为{organ}{x}图像。",
            "{x}图像，部位为{organ}。",
            "这幅{x}图像拍摄的是{organ}。",
            "本图为{x}检查所得的{organ}图像。",
        ),
    },
    "label": {  # {n}: "a nodule", "two nodules", "a glioma", "no finding"
        "en": (
            "The image shows {n}.",
            "{N} {is} seen.",
            "{N} {is} visible.",
            "{N} can be seen.",
            "There {is} {n}.",
            "{N} {is} present.",
            "{N} can be identified.",
        ),
        "zh": (
            "图像显示{n}。",
            "可见{n}。",
            "图中有{n}。",
            "图中可以看到{n}。",
            "图像中存在{n}。",
            "所见为{n}。",
            "图中可识别出{n}。",
        ),
    },
    "no_label": {  # {n}: "finding", "tumor"; Chinese {x}: "未见异常"
        "en": (
            "No {n} is seen.",
            "There is no {n}.",
            "The image shows no {n}.",
            "No {n} is visible.",
            "No {n} is present.",
            "No {n} can be identified.",
        ),
        "zh": (
            "{x}。",
            "图中{x}。",
            "图像{x}。",
            "本图{x}。",
            "整幅图像{x}。",
            "所示范围内{x}。",
        ),
    },
    "include": {  # only some of what is labeled
        "en": (
            "Visible structures include {n}.",
            "Among the visible structures are {n}.",
            "The image includes {n}.",
            "The structures that can be seen include {n}.",
            "Among others, {n} can be seen.",
            "The image shows, among others, {n}.",
        ),
        "zh": (
            "可见的结构包括{n}。",
            "图中可见的结构有{n}等。",
            "图像包括{n}。",
            "可以看到的结构包括{n}。",
            "图中可见{n}等结构。",
            "图像显示了{n}等结构。",
        ),
    },
    "label_place": {  # label and place in one sentence
        "en": (
            "There {is} {n} in the {place} of the image.",
            "{N} {is} seen in the {place} of the image.",
            "{N} lies in the {place} of the image.",
            "In the {place} of the image there {is} {n}.",
            "The {place} of the image shows {n}.",
            "{N} can be seen in the {place} of the image.",
        ),
        "zh": (
            "图像{place}可见{n}。",
            "图像{place}有{n}。",
            "{n}位于图像{place}。",
            "在图像{place}可以看到{n}。",
            "图像的{place}显示{n}。",
            "图像{place}存在{n}。",
        ),
    },
    "place": {
        "en": (
            "{The} lies in the {place} of the image.",
            "{The} is in the {place} of the image.",
            "{The} is located in the {place} of the image.",
            "{The} can be found in the {place} of the image.",
            "The {place} of the image contains {the}.",
            "{The} sits in the {place} of the image.",
        ),
        "zh": (
            "{x}位于图像{place}。",
            "{x}在图像的{place}。",
            "{x}处于图像{place}。",
            "{x}的位置在图像{place}。",
            "图像{place}有{x}。",
            "{x}见于图像{place}。",
        ),
    },
    "places": {  # {many}: two or three instances; {place}: "upper left and the center"
        "en": (
            "The {many} lie in the {place} of the image.",
            "The {many} are in the {place} of the image.",
            "The {many} are located in the {place} of the image.",
            "The {many} can be found in the {place} of the image.",
            "We find the {many} in the {place} of the image.",
            "The {many} are seen in the {place} of the image.",
        ),
        "zh": (
            "{x}位于图像{place}。",
            "{x}在图像的{place}。",
            "{x}见于图像{place}。",
            "{x}处于图像{place}。",
            "图像{place}可以看到{x}。",
            "{x}的位置在图像{place}。",
        ),
    },
    "side": {
        "en": (
            "{The} is on the {side} side of the image.",
            "{The} lies on the {side} side of the image.",
            "The {side} side of the image contains {the}.",
            "{The} can be found on the {side} side of the image.",
            "{The} is located on the {side} side of the image.",
            "It is the {side} side of the image that contains {the}.",
        ),
        "zh": (
            "{x}位于图像{side}。",
            "{x}在图像的{side}。",
            "{x}处于图像{side}。",
            "{x}见于图像{side}。",
            "图像{side}有{x}。",
            "{x}的位置在图像{side}。",
        ),
    },
    "count": {
        "en": (
            "There {is} {n}.",
            "The image shows {n}.",
            "{N} can be seen.",
            "{N} {is} visible.",
            "The image contains {n}.",
            "We count {n}.",
        ),
        "zh": (
            "图中有{n}。",
            "图像显示{n}。",
            "可见{n}。",
            "可以看到{n}。",
            "图像中共有{n}。",
            "共计{n}。",
        ),
    },
    "size": {
        "en": (
            "{The} is {x}.",
            "{The} is {x} in size.",
            "The size of {the} is {x}.",
            "In size, {the} is {x}.",
            "{The} appears {x}.",
            "{The} has a {x} size.",
        ),
        "zh": (
            "{x}大小为{size}。",
            "{x}的大小属于{size}。",
            "{x}的尺寸为{size}。",
            "{x}大小：{size}。",
            "该{x}大小为{size}。",
            "{x}的大小是{size}。",
        ),
    },
    "severity": {
        "en": (
            "The severity is {x}.",
            "The severity is graded as {x}.",
            "It is a {x} case.",
            "The case is {x}.",
            "The grade of severity is {x}.",
            "In terms of severity, the case is {x}.",
        ),
        "zh": (
            "严重程度为{x}。",
            "病变为{x}。",
            "程度：{x}。",
            "严重程度分级为{x}。",
            "属于{x}病变。",
            "病变程度为{x}。",
        ),
    },
    "absent": {  # {n}: "cyst", "cyst or calcification"
        "en": (
            "No {n} is seen.",
            "There is no {n}.",
            "No {n} is visible.",
            "No {n} is present.",
            "The image shows no {n}.",
            "No {n} can be identified.",
        ),
        "zh": (
            "未见{n}。",
            "图中没有{n}。",
            "图像未显示{n}。",
            "未发现{n}。",
            "没有{n}。",
            "图中不存在{n}。",
        ),
    },
    "absent_structure": {
        "en": (
            "{The} is not seen.",
            "{The} is not visible.",
            "{The} cannot be seen.",
            "The image does not show {the}.",
            "{The} is not in the image.",
            "The image does not include {the}.",
        ),
        "zh": (
            "图中不可见{x}。",
            "图像未包括{x}。",
            "图中没有显示{x}。",
            "该图像看不到{x}。",
            "图像范围内没有{x}。",
            "图中未显示{x}。",
        ),
    },
    "region": {
        "en": (
            "This region shows {n}.",
            "This region contains {n}.",
            "This region holds {n}.",
            "This region corresponds to {n}.",
            "This region is where {n} can be seen.",
            "This region is annotated as {n}.",
        ),
        "zh": (
            "该区域显示{n}。",
            "该区域可见{n}。",
            "该区域内有{n}。",
            "该区域包含{n}。",
            "该区域为{n}所在处。",
            "该区域标注为{n}。",
        ),
    },
    "region_place": {
        "en": (
            "It lies in the {place} of the image.",
            "It is located in the {place} of the image.",
            "The region is in the {place} of the image.",
            "It appears in the {place} of the image.",
            "It is found in the {place} of the image.",
            "The region lies in the {place} of the picture.",
        ),
        "zh": (
            "它位于图像{place}。",
            "该处在图像的{place}。",
            "区域位于图像{place}。",
            "其位置在图像{place}。",
            "它处于图像{place}。",
            "位置在图像{place}。",
        ),
    },
    "region_context": {  # {a} and {x}: modality
        "en": (
            "The whole picture is {a} image of {organ}.",
            "It is part of {a} image of {organ}.",
            "It is taken from {a} image of {organ}.",
            "The surrounding image is {a} image of {organ}.",
            "The image around it is {a} image of {organ}.",
            "Its source is {a} image of {organ}.",
        ),
        "zh": (
            "整幅图为{organ}的{x}图像。",
            "它是{organ}{x}图像的一部分。",
            "它取自{organ}的{x}图像。",
            "周围为{organ}的{x}图像。",
            "所在图像为{organ}{x}图像。",
            "来源为{organ}的{x}图像。",
        ),
    },
}

# In front of a sentence that says what is there or is not: (yes, no).
YES_NO = {"en": ("Yes. ", "No. "), "zh": ("是。", "否。")}

# Adjectives in front of a noun.
ENGLISH_SIZES = {"small": "small", "medium": "medium-sized", "large": "large"}
CHINESE_SIZES = {"small": "较小的", "medium": "中等大小的", "large": "较大的"}
