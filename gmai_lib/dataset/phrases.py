"""Surface forms of what the user says: questions, requests and the words that set the answer.

Slots: {x} the bare value ("nodule", "CT"), {a} with article ("a nodule", "an MR"), {the} ("the
nodule"), {many} ("nodules"), {box}. Chinese forms use {x} and the measure word {unit}.

Every kind has at least six forms per language; `questions.question` numbers them in this order.
"""

# What follows a question tells the form of the answer; without it the answer is a sentence.
BRIEF = {"en": "Answer briefly.", "zh": "请简短回答。"}
LABEL = {"en": "Give the label.", "zh": "请给出标签。"}
BOX = {"en": "Give the box.", "zh": "请给出边界框。"}
LETTER = {"en": "Answer with the letter.", "zh": "请回答选项字母。"}
OPTION = {"en": "Answer with the option.", "zh": "请回答选项内容。"}

QUESTIONS = {
    "modality": {
        "en": (
            "Which imaging modality is this?",
            "What kind of medical image is this?",
            "Which type of imaging is shown?",
            "Name the imaging modality.",
            "How was this image acquired?",
            "Which imaging technique produced this image?",
            "What is the modality of this image?",
        ),
        "zh": (
            "这是哪种成像方式？",
            "这是什么类型的医学图像？",
            "该图像采用了哪种成像技术？",
            "请说出该图像的成像方式。",
            "这幅图像是用什么检查方法获得的？",
            "该图像属于哪种影像模态？",
            "这张图像的模态是什么？",
        ),
    },
    "department": {
        "en": (
            "Which clinical department does this image belong to?",
            "Which department would order this image?",
            "Name the clinical department.",
            "Which medical specialty uses this image?",
            "To which department does this case belong?",
            "Which specialty is responsible for this image?",
        ),
        "zh": (
            "该图像属于哪个临床科室？",
            "这幅图像来自哪个科室？",
            "请说出对应的临床科室。",
            "哪个科室会使用这幅图像？",
            "该病例归哪个科室？",
            "这张图像对应哪个专科？",
        ),
    },
    "organ": {
        "en": (
            "Which organ is shown?",
            "Which organ or body part does this image show?",
            "What part of the body is this?",
            "Name the organ in this image.",
            "Which body part was imaged?",
            "What organ was examined?",
            "Which anatomical region is seen here?",
        ),
        "zh": (
            "图中显示的是哪个器官？",
            "该图像显示了哪个器官或部位？",
            "这是身体的哪个部位？",
            "请说出图中的器官。",
            "检查的是哪个部位？",
            "这幅图像拍摄的是什么器官？",
            "图中可见哪个解剖部位？",
        ),
    },
    "label": {
        "en": (
            "What is the finding?",
            "Which finding is visible?",
            "Name the finding in this image.",
            "What is the main finding here?",
            "Which finding does this image show?",
            "What finding can be identified?",
            "State the finding.",
        ),
        "zh": (
            "图中有什么发现？",
            "该图像的主要发现是什么？",
            "请说出图中的发现。",
            "图中可见何种病变或目标？",
            "这幅图像显示了什么发现？",
            "可以识别出什么发现？",
            "影像所见是什么？",
        ),
    },
    "labels": {  # several at once
        "en": (
            "What is visible here?",
            "What can be identified in this image?",
            "List what is visible.",
            "Which labels apply to this image?",
            "Name everything that is labeled here.",
            "What does the annotation of this image list?",
        ),
        "zh": (
            "图中可见哪些目标？",
            "这幅图像中能识别出什么？",
            "请列出图中可见的目标。",
            "该图像有哪些标签？",
            "请说出图中标注的所有目标。",
            "图像的标注中有哪些内容？",
        ),
    },
    "present": {
        "en": (
            "Is there {a}?",
            "Is there {a} in this image?",
            "Does this image show {a}?",
            "Can {a} be seen?",
            "Is {a} visible?",
            "Do you see {a} here?",
            "Is {a} present?",
        ),
        "zh": (
            "图中是否有{x}？",
            "是否可见{x}？",
            "该图像是否显示{x}？",
            "这幅图像中是否存在{x}？",
            "能否看到{x}？",
            "图像里是否能见到{x}？",
            "是否有{x}？",
        ),
    },
    "present_structure": {  # normal anatomy: {the} may be plural or without article
        "en": (
            "Can {the} be seen?",
            "Does this image show {the}?",
            "Do you see {the} here?",
            "Does the image include {the}?",
            "Does the image contain {the}?",
            "Can you see {the} in this image?",
        ),
        "zh": (
            "图中是否可见{x}？",
            "该图像是否显示{x}？",
            "能否看到{x}？",
            "图像是否包括{x}？",
            "这幅图像中是否有{x}？",
            "图像里是否能见到{x}？",
        ),
    },
    "any": {  # is there any finding at all
        "en": (
            "Is there any finding?",
            "Does this image show any finding?",
            "Is any finding visible?",
            "Can any finding be seen?",
            "Do you see any finding?",
            "Is any finding present in this image?",
        ),
        "zh": (
            "图中是否有异常？",
            "是否可见任何异常？",
            "该图像是否显示异常？",
            "这幅图像中是否存在异常？",
            "能否看到异常？",
            "图像里是否有任何异常？",
        ),
    },
    "none": {  # the same, asked the other way round
        "en": (
            "Is this image free of findings?",
            "Is it true that there is no finding?",
            "Is this image without any finding?",
            "Is it correct that no finding is visible?",
            "Would you say that no finding is present?",
            "Is the image clear of findings?",
        ),
        "zh": (
            "图中是否没有异常？",
            "是否未见任何异常？",
            "该图像是否无异常？",
            "这幅图像是否未显示异常？",
            "是否可以认为没有异常？",
            "图像里是否看不到异常？",
        ),
    },
    "is_modality": {
        "en": (
            "Is this {a} image?",
            "Was this image made by {x} imaging?",
            "Is the modality {x}?",
            "Do you see {a} image here?",
            "Is it correct that this is {a} image?",
            "Is {x} the modality of this image?",
        ),
        "zh": (
            "这是{x}图像吗？",
            "该图像的模态是否为{x}？",
            "成像方式是否是{x}？",
            "这幅图像是否由{x}获得？",
            "这是否为{x}图像？",
            "该图像是不是{x}图像？",
        ),
    },
    "is_organ": {
        "en": (
            "Does this image show {the}?",
            "Is {the} shown?",
            "Is this an image of {the}?",
            "Was {the} imaged?",
            "Is {the} what we see here?",
            "Do you see {the} in this image?",
        ),
        "zh": (
            "图中显示的是{x}吗？",
            "该图像是否显示{x}？",
            "这是{x}的图像吗？",
            "检查部位是否为{x}？",
            "这幅图像拍摄的是否是{x}？",
            "图中的部位是不是{x}？",
        ),
    },
    "side": {
        "en": (
            "On which side of the image is {the}?",
            "Is {the} on the left or the right side of the image?",
            "Which side of the image contains {the}?",
            "Does {the} lie on the left or on the right of the image?",
            "In which half of the image is {the}, left or right?",
            "Name the side of the image where {the} is.",
        ),
        "zh": (
            "{x}位于图像的哪一侧？",
            "{x}在图像的左侧还是右侧？",
            "图像的哪一侧有{x}？",
            "{x}处于图像左侧还是右侧？",
            "请说出{x}在图像的哪一侧。",
            "{x}在图像的左半边还是右半边？",
        ),
    },
    "place": {
        "en": (
            "Where in the image is {the}?",
            "In which part of the image is {the}?",
            "Where is {the} located in the image?",
            "Which part of the image contains {the}?",
            "Name the part of the image where {the} lies.",
            "In which of the nine parts of the image does {the} lie?",
        ),
        "zh": (
            "{x}在图像的什么位置？",
            "{x}位于图像的哪个部分？",
            "图像的哪个部分有{x}？",
            "请说出{x}在图像中的位置。",
            "{x}处于图像九宫格的哪一格？",
            "在图像的哪个位置可以看到{x}？",
        ),
    },
    "count": {
        "en": (
            "How many {many} are there?",
            "How many {many} are visible?",
            "How many {many} does this image show?",
            "Count the {many}.",
            "What is the number of {many}?",
            "How many {many} can be seen?",
        ),
        "zh": (
            "图中有几{unit}{x}？",
            "可见多少{unit}{x}？",
            "该图像显示了几{unit}{x}？",
            "请数一数有几{unit}{x}。",
            "{x}的数量是多少？",
            "这幅图像中能看到几{unit}{x}？",
        ),
    },
    "size": {
        "en": (
            "Is {the} small, medium or large?",
            "How large is {the}: small, medium or large?",
            "What is the size of {the}?",
            "Which size does {the} have?",
            "How big is {the} in the image?",
            "Name the size of {the}.",
        ),
        "zh": (
            "{x}的大小如何？",
            "{x}是小、中等还是大？",
            "{x}有多大？",
            "请说出{x}的大小。",
            "{x}的尺寸属于小、中等还是大？",
            "图中{x}的大小是什么？",
        ),
    },
    "severity": {
        "en": (
            "How severe is the finding?",
            "What is the severity?",
            "Which severity grade applies?",
            "Is the finding mild, moderate or severe?",
            "Name the grade of severity.",
            "How would you grade the severity?",
        ),
        "zh": (
            "病变的严重程度如何？",
            "严重程度是什么？",
            "属于哪个严重程度分级？",
            "病变是轻度、中度还是重度？",
            "请说出严重程度。",
            "如何对严重程度分级？",
        ),
    },
    "box": {
        "en": (
            "Locate {the}.",
            "Where exactly is {the}?",
            "Find {the} in the image.",
            "Mark {the}.",
            "Detect {the}.",
            "Which region contains {the}?",
        ),
        "zh": (
            "请定位{x}。",
            "{x}的确切位置在哪里？",
            "请在图像中找到{x}。",
            "请标出{x}。",
            "请检测{x}。",
            "哪个区域包含{x}？",
        ),
    },
    "boxes": {  # more than one instance
        "en": (
            "Locate all {many}.",
            "Where exactly are the {many}?",
            "Find every one of the {many}.",
            "Mark all {many}.",
            "Detect all {many} in the image.",
            "Which regions contain {many}?",
        ),
        "zh": (
            "请定位所有{x}。",
            "所有{x}的确切位置在哪里？",
            "请在图像中找到全部{x}。",
            "请标出所有{x}。",
            "请检测图中所有{x}。",
            "哪些区域包含{x}？",
        ),
    },
    "region": {
        "en": (
            "What is in the region {box}?",
            "What lies in the region {box}?",
            "What does the region {box} show?",
            "Name what is inside {box}.",
            "What can be seen in the box {box}?",
            "Identify the content of the region {box}.",
        ),
        "zh": (
            "区域{box}中是什么？",
            "区域{box}内有什么？",
            "区域{box}显示了什么？",
            "请说出{box}内的内容。",
            "在框{box}中可以看到什么？",
            "请识别区域{box}的内容。",
        ),
    },
    "region_organ": {
        "en": (
            "Which organ is in the region {box}?",
            "Which structure lies in the region {box}?",
            "Name the anatomical structure inside {box}.",
            "What anatomy does the region {box} show?",
            "Which organ or structure does the box {box} contain?",
            "Identify the structure in the region {box}.",
        ),
        "zh": (
            "区域{box}中是哪个器官？",
            "区域{box}内是什么结构？",
            "请说出{box}内的解剖结构。",
            "区域{box}显示了什么解剖结构？",
            "框{box}中包含哪个器官或结构？",
            "请识别区域{box}中的结构。",
        ),
    },
}

# What the user says to get a description.
REQUESTS = {
    "caption": {
        "en": (
            "Describe this image.",
            "Write a caption for this image.",
            "What does this image show? Describe it.",
            "Give a short description of the image.",
            "Describe what you see.",
            "Summarize the image in a few sentences.",
        ),
        "zh": (
            "请描述这幅图像。",
            "请为这幅图像写一段说明。",
            "请用几句话描述图像内容。",
            "请简要描述该图像。",
            "请描述你看到的内容。",
            "请概括这幅图像。",
        ),
    },
    "report": {
        "en": (
            "Write a report for this image.",
            "Report the findings of this image.",
            "What would the report of this image say?",
            "Give the report.",
            "Write the findings of this examination.",
            "Report what this image shows.",
        ),
        "zh": (
            "请为这幅图像写一份报告。",
            "请报告影像所见。",
            "请写出这项检查的所见。",
            "请给出报告。",
            "这幅图像的报告应如何书写？",
            "请报告图像内容。",
        ),
    },
    "region": {
        "en": (
            "Describe the region {box}.",
            "What does the region {box} show? Describe it.",
            "Write a caption for the region {box}.",
            "Give a short description of the region {box}.",
            "Describe what lies inside {box}.",
            "Describe the area marked by {box}.",
        ),
        "zh": (
            "请描述区域{box}。",
            "请为区域{box}写一段说明。",
            "请简要描述区域{box}。",
            "请描述{box}内的内容。",
            "区域{box}显示了什么？请描述。",
            "请描述{box}标出的区域。",
        ),
    },
}

REPORT_PREFIX = {"en": "Report: ", "zh": "报告："}
QUESTION_PREFIX = {"en": "Question: ", "zh": "问题："}
