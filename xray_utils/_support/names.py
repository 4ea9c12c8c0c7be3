"""Names of classes: folders and labels of tables, in many spellings."""

import difflib
import json
import re
import unicodedata

from ..constants import CLASSES

PNEUMONIA = "pneumonia of unknown kind"
KINDS = {  # a class, or why images are left out: its words (a space stands for any separator, or none)
    "covid": ("pneumonia viral covid", "covid", "sars cov 2", "ncov", "coronavirus"),
    "normal": ("normal", "no findings?", "healthy", "controls?"),
    "virus": ("virus", "viral", "sars cov", "sars", "mers cov", "mers", "influenza", "h1n1", "varicella", "herpes"),
    "bacteria": ("bacterial?",),
    "fungi": ("fungal", "fungi"),
    "lung opacity": ("lung opacity", "non normal and non covid"),
    "tuberculosis": ("tuberculosis", "tb"),
    "inconclusive": ("inconclusive", "unknown", "nan", "todo"),
    PNEUMONIA: ("pneumonia",),
    "positive": ("positive", "infected", "infection", "confirmed", "ards"),  # next to a class, but never to normal
    "": (  # words that do not name a class
        *("training", "train", "testing", "test", "validation", "valid", "val", "images?", "cases?", "patients?"),
        *("x rays?", "cxrs?", "radiographs?", "chest", "class", "[0-9]"),
    ),
}
SEPARATORS = r"[\s_.,;:#&'\"+=/\\(){}\[\]\-]"
GROUPS = [f"({'|'.join(words)})" for words in KINDS.values()]
WORD = re.compile("|".join([f"{SEPARATORS}+", *GROUPS]).replace(" ", f"{SEPARATORS}*"))
NEAR = {  # words that those of an unknown name are compared with
    **dict.fromkeys(("covid", "coronavirus"), "covid"),
    **dict.fromkeys(("normal", "healthy", "control"), "normal"),
    **dict.fromkeys(("virus", "viral"), "virus"),
    **dict.fromkeys(("pneumonia", "positive", "images", "cases"), ""),
}
ZERO = re.compile(r"(?<!\d)0+\W*$")  # at the end, as in "covid_0"
MINUS = re.compile(r"[-\u2010-\u2015\u2212]\W*$")  # at the end, as in "covid (-)"
PATIENT_PATTERNS = (  # Kermany et al. 2018: person123_virus_456.jpeg, NORMAL2-IM-0123-0001.jpeg
    re.compile(r"(?P<patient>person\d+)_(?P<kind>virus|bacteria)_", re.I),
    re.compile(r"^(?P<patient>(?:NORMAL2-)?IM-\d+)-", re.I),
)


def fold(name):
    """`name` without accents, upper case and surrounding blanks."""
    decomposed = unicodedata.normalize("NFKD", str(name))
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).casefold().split())


def meaning(name):
    """The class that `name` means, why such images are left out, "" if it names no class, None if unknown.

    Every word must be known, and all must mean one class. So "COVID-19 positive (460)" is covid, while "no covid",
    "covid negative" and "not normal" are unknown: their "no", "negative" and "not" are words of no class.
    """
    text = fold(name)
    words = list(WORD.finditer(text))
    if MINUS.search(text) or "".join(word[0] for word in words) != text:
        return None
    kinds = {list(KINDS)[word.lastindex - 1] for word in words if word.lastindex} - {""}
    if not kinds:
        return ""
    if ZERO.search(text) or (len(kinds) > 1 and "normal" in kinds):
        return None
    kinds -= {"positive"}
    if len(kinds) > 1:
        kinds -= {PNEUMONIA}
    return kinds.pop() if len(kinds) == 1 else None


def check_labels(labels):
    """`labels` is None or `{name: class or None}`; returned with folded names."""
    if labels is None:
        return {}
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels):
        raise ValueError(f'labels: {str(labels)[:100]!r} is no dict of names; pass {{"Normais": "normal"}}, say.')
    for name, label in labels.items():
        if label is not None and not (isinstance(label, str) and label.lower() in CLASSES):
            raise ValueError(f"labels: {label!r} of {name!r} must be one of {', '.join(CLASSES)}, or None: left out.")
    folded = {fold(name): label and label.lower() for name, label in labels.items()}
    if len(folded) < len(labels):
        raise ValueError("labels: two of its names differ in accents, blanks or upper case only; keep one of them.")
    return folded


def check_found(labels, found, what):
    """Every name in `labels` (folded) is that of a folder or label that was found."""
    if missing := sorted(labels.keys() - {fold(name) for name in found}):
        names = ", ".join(map(repr, sorted(set(found))[:20])) or "none"
        raise ValueError(f"labels: there is no {what} {missing[0]!r}. Found: {names}.")


def patient_of(path):
    """The patient that a file name of Kermany et al. holds, or None."""
    for pattern in PATIENT_PATTERNS:
        if match := pattern.search(str(path).rpartition("/")[2]):
            kind = match.groupdict().get("kind") or "normal"
            return f"{kind.lower()}:{match['patient']}"
    return None


class UnknownClassError(ValueError):
    """Names of unknown classes, `examples` (`{name: an image of it}`), with the line to write.

    kinds: `{name: kind}` of all names, to say what is known. can_be_classes: False if there is one name only.
    """

    def __init__(self, where, examples, kinds):
        known = [f"{name[:60]!r} is {kind}" for name, kind in sorted(kinds.items()) if kind]
        self.can_be_classes = len(examples) + len(known) > 1
        shown = sorted(examples)[:8]
        more = f" and {len(examples) - 8} more" if len(examples) > 8 else ""
        line = ", ".join(f"{json.dumps(name[:99], ensure_ascii=False)}: {json.dumps(_nearest(name))}" for name in shown)
        super().__init__(
            f"{where}: unknown class {', '.join(repr(name[:60]) for name in shown)}{more} (for example "
            f"{examples[shown[0]][:100]!r}). Say which class each one is: labels={{{line}}}. Allowed: "
            f"{', '.join(CLASSES)}, and None, which leaves images out; two classes are enough. A name holds for the "
            "folders inside it, too. xu.use_images(folder, labels={...}) keeps it for all notebooks."
            + ("" if self.can_be_classes else " If all classes lie in one folder, write a manifest.csv (file, label).")
            + (f" Known here: {', '.join(known[:8])}." if known else "")
        )


def _nearest(name):
    """The class that all words of `name` resemble; "?" if one does not, since it may negate the class."""
    text, kinds = fold(name), set()
    if MINUS.search(text) or ZERO.search(text) or re.sub(f"[a-z0-9]|{SEPARATORS}", "", text):
        return "?"
    for word in re.findall("[a-z]+", text):
        close = difflib.get_close_matches(word, NEAR, 1, 0.7)
        if not close or close[0][0] != word[0]:  # "anormal" is not near to normal
            return "?"
        kinds.add(NEAR[close[0]])
    kinds.discard("")
    return kinds.pop() if len(kinds) == 1 else "?"
