"""What is private in a text: places, people, machines, dates, identifiers, and the names in a dataset's own index.

The rules look at words, not at meaning: a first name alone, or a rare disease, is not recognised.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import ipaddress
import os
import re
import socket
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

_ROOTS = "home|Users|root|mnt|media|scratch|data|srv|tmp|work|nfs|net|[Vv]olumes?|lustre|gpfs|projects?|private"
_PERSON = (
    r"birth|born|dob|patient|subject|study|series|acqui\w+|scan(?:ned)?|exam\w*|admi(?:ssion|tted)|discharged?|visit"
    r"|deceased|died|death|geboren|geb\.|naissance|nacimiento"
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = (
    r"(?<![\d.])(?:(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:[0-2]?\d|3[01])"
    r"|(?:[0-2]?\d|3[01])[-/.](?:[0-2]?\d|3[01])[-/.](?:19|20)\d\d"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    rf"|\d{{1,2}}\.? {_MONTH},? (?:19|20)\d\d|{_MONTH} \d{{1,2}},? (?:19|20)\d\d)(?![\d.]*\d)"
)
_KEY_NAMES = (
    r"mrn|medical[ _-]?record(?:[ _-]?(?:no|nr|number))?|accession(?:[ _-]?(?:no|nr|number|id))?"
    r"|patient[ _']?s?[ _-]?(?:id|name|nr|no|number|address|sex|age|weight)|patient[ _-]?birth[ _-]?(?:date|time|name)"
    r"|birth[ _-]?date|date[ _-]?of[ _-]?birth|dob|(?:study|series|sop)[ _-]?instance[ _-]?uid|study[ _-]?(?:id|date)"
    r"|ssn|social[ _-]?security(?:[ _-]?number)?|nhs[ _-]?(?:no|number)|insurance[ _-]?(?:no|id|number)"
    r"|(?:referring|performing|attending)[ _-]?physician(?:'?s)?(?:[ _-]?name)?|operators?'?[ _-]?name"
    r"|institution[ _-]?(?:name|address)|station[ _-]?name|device[ _-]?serial[ _-]?number|phone(?:[ _-]?number)?"
)
_NOTHING = {"", "null", "none", "n/a", "na", "unknown", "anonymous", "anonymized", "anonymised", "true", "false", "~"}

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("absolute-path", re.compile(r"file:/{1,4}[\w.~%$-][^\s\"'<>]*", re.I)),
    ("internal-address", re.compile(r"\b(?:s?ftp|ssh|smb|nfs|cifs|afp|s3|gs|dicom|rsync)://[^\s\"'<>)]+", re.I)),
    ("internal-address", re.compile(r"\bhttps?://[^\s/\"'<>@:]+:[^\s/\"'<>@]+@[^\s\"'<>]+", re.I)),
    (
        "internal-address",
        re.compile(
            r"\bhttps?://(?:[\w-]+|[\w.-]+\.(?:local|lan|intern|internal|intranet|corp|home|private|localdomain))"
            r"(?=[:/\s\"'<>)]|$)(?::\d+)?[^\s\"'<>)]*",
            re.I,
        ),
    ),
    (
        "internal-address",  # a machine's full name: with a digit or hyphen, which attributes in code seldom have
        re.compile(
            r"(?<![\w.@/-])(?=[\w.-]*[\d-])[A-Za-z][\w-]*(?:\.[\w-]+)*\."
            r"(?:local|lan|intern|intranet|localdomain|corp)(?![\w(-]|\.\w)",
            re.I,
        ),
    ),
    ("absolute-path", re.compile(r"(?<![A-Za-z])[A-Za-z]:(?:\\{1,4}|/(?!/))[\w$.~%-][^\s\"'<>|]*")),
    ("absolute-path", re.compile(r"(?<![\\\w])\\{2,8}[A-Za-z][\w.-]+\\{1,4}[\w$.-]{2,}[^\s\"'<>|]*")),
    ("absolute-path", re.compile(r"(?<![:\w/\"'<>])//[A-Za-z][\w-]*/[\w$-]+[^\s\"'<>]*")),
    ("absolute-path", re.compile(r"(?<![\w~.*)\]])~[\w.-]*/[\w.-][^\s\"'<>,;)]*")),
    (
        "absolute-path",
        re.compile(
            rf"(?<![\w.@/#<>~)\]}}%*$-])/(?!/)(?:(?:{_ROOTS})/[^\s/\"'<>,;:)]+|root\b|(?:[\w.+@%-]+/)+[\w.+@%-]+)"
            r"[^\s\"'<>,;:)]*"
        ),
    ),
    (
        "e-mail",
        re.compile(r"(?<![\w.+-])[\w.+-]+(?:@|\s?[\[(]at[\])]\s?|%40)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
    ),
    (
        "secret",
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:gh[pousr]_|hf_|glpat-|sk-|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}"
            r"|\b(?:password|passwd|api[_-]?key|secret[_-]?key|access[_-]?token)[\"']?\s*[:=]\s*[\"']?[^\s\"',;}@$]{4,}",
            re.I,
        ),
    ),
    ("uid", re.compile(r"(?<![\w.])[0-2](?:\.(?:0|[1-9]\d*)){4,}(?![\w.]*\w)")),
    ("uid", re.compile(r"(?<![\w.])2\.25\.[1-9]\d{9,}(?!\w)")),
    ("ip-address", re.compile(r"(?<![\w.=<>~^-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-]*\w)(?:/\d{1,2})?")),
    ("mac-address", re.compile(r"(?<![\w:-])(?:[0-9A-Fa-f]{2}([:-]))(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])")),
    ("ip-address", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{1,4}(?![\w:])")),
    ("person-name", re.compile(r"(?<![^\W_])[^\W\d_][^\W\d_'’-]+\^[^\W\d_][^\W\d_'’-]+(?:\^[^\W\d_'’.-]*)*")),
    ("person-name", re.compile(r"\b[Pp]atient(?:'?s? name)?\s?[:=]\s?[^\W\d_a-z][^\W\d_]+,? [^\W\d_a-z][^\W\d_]+")),
    ("date", re.compile(rf"(?:{_PERSON})[^\n]{{0,40}}?({_DATE})", re.I)),
    ("date", re.compile(rf"({_DATE})[^\n]{{0,24}}?\b(?:{_PERSON})", re.I)),
    ("identifier", re.compile(r"\b(?:MRN|[Aa]ccession(?: [Nn]o\.?| [Nn]umber)?) ([A-Z]{0,3}\d{4,}\w*)")),
    (
        "identifier",
        re.compile(rf"(?<![^\W_])(?:{_KEY_NAMES})[\"']?[ \t]*[:=#][ \t#]*[\"']?([^\s\"',;}}\]]+)", re.I),
    ),
)
_CONTAINS = {
    "date": re.compile(r"(?:19|20)\d\d"),
    "e-mail": re.compile(r"@|[\[(]at[\])]|%40", re.I),
    "person-name": re.compile(r"\^|[Pp]atient"),
    "internal-address": re.compile(r"://|\.(?:local|lan|intern|intranet|localdomain|corp)", re.I),
    "identifier": re.compile(r"[:=#]|MRN|ccession"),
    "uid": re.compile(r"\d\."),
    "ip-address": re.compile("[.:]"),
    "mac-address": re.compile("[:-]"),
    "secret": re.compile("[-_=:]|AKIA", re.I),
}
_CAREFUL = ("e-mail", "uid", "absolute-path")
_HARMLESS_PATHS = re.compile(
    r"/(?:usr/bin|bin|usr/local/bin|dev|proc|etc|opt/(?:conda|monai)|path(?:/to)?|your)/", re.I
)
_PUBLIC_UIDS = ("1.2.840.10008.", "2.16.840.1.113883.")
_CODE = re.compile(r"\w[(\[]|^[a-z_]\w*\.[A-Za-z_]")
_LOCAL = ("localhost", "127.0.0.1")
_VERSION_BEFORE = re.compile(r"(?:version|release|\bv|[=<>~^])[\s\"':=]*$", re.I)

RULES: dict[str, tuple[str, str]] = {
    "absolute-path": ("a path of somebody's machine", "write a relative path or none"),
    "internal-address": ("an address inside a house, or with a password", "remove it"),
    "e-mail": ("an e-mail address", "remove it unless it is a public contact, then name the contact's page"),
    "uid": ("a unique identifier, as scans and objects carry them", "remove it"),
    "ip-address": ("a network address", "remove it"),
    "mac-address": ("the address of a network card", "remove it"),
    "person-name": ("a name as DICOM writes it", "remove it"),
    "date": ("a date beside words about a person or scan", "remove the date or give the year only"),
    "identifier": ("a field that identifies a person, scan or place, with a value", "remove the value"),
    "case-id": ("a case, patient or file name of the training data", "remove it"),
    "machine": ("the name of this machine or its user", "remove it"),
    "secret": ("a password, token or private key", "remove it and change it, it may be known already"),
    "case-list": ("a list of single cases", "keep the summary and remove the list"),
    "training-log": ("a training log", "do not ship it"),
    "event-file": ("an event file, which names the machine that wrote it", "do not ship it"),
    "checkpoint": ("more than weights", "save the plain state dict, nothing else"),
    "header-text": ("free text in a header", "empty the field (--fix does)"),
    "image-text": ("text or data about the picture inside its file", "strip it (--fix does for PNG and JPEG)"),
    "thumbnail": ("a small picture inside a picture", "strip it"),
    "document-info": ("information about a document's making", "write the document without it"),
    "archive-comment": ("a comment in an archive", "write the archive without it"),
    "image-volume": ("a volume of voxels", "ship it only if it is no patient's, or if that patient agreed"),
    "dicom": ("a DICOM object, which names a patient", "do not ship it"),
    "hidden-file": ("a hidden file, a backup or a cache", "do not ship it"),
    "private-folder": ("a file of the private folder eval/", "do not ship it"),
    "link": ("a link to another place", "ship the file itself or nothing"),
    "unreadable": ("something that cannot be looked into", "remove it or ship it in an open form"),
}


@dataclass(frozen=True)
class Hit:
    """A private word: its rule, where it stands in the text, and itself."""

    rule: str
    start: int
    found: str


def masked(found: str) -> str:
    """Enough of a private word to find it again: ``/ho…ta (17 characters)``."""
    found = " ".join(found.split())
    kept = min(3, max(1, len(found) // 4))
    tail = found[-2:] if len(found) >= 12 else ""
    return f"'{found[:kept]}…{tail}' ({len(found)} characters)"


def sentence(rule: str, found: str = "") -> str:
    """One sentence: what it is, the shortened words, what to do."""
    what, do = RULES[rule]
    return f"{what}{' ' + masked(found) if found else ''}; {do}"


_RUN = re.compile(r"[^\W\d_]+|\d+")
_GENERIC = {
    word
    for line in (
        "image images img label labels mask masks seg segmentation scan scans volume volumes case cases patient",
        "subject train training test testing val validation data dataset imagestr labelstr imagests labelsts",
        "background foreground series study ct mr mri pet us xray input output prediction reference channel slice",
        "medunet monai torch pytorch model models bundle config configs docs true false null none unknown anonymous",
        "default medical device frame subjects patients",
    )
    for word in line.split()
}
_NUMBERED = re.compile(
    r"(?:fold|model|layer|level|block|conv|class|channel|label|step|epoch|version|v|stage|head|down|up|norm)\W?\d{1,2}"
)
_SHORT_CONTEXT = re.compile(
    r"(?:\b|_)(?:case|patient|subject|participant|pat|sub)(?:[ _-]?(?:id|no|nr))?[\s\"'_:#=.-]{1,4}$", re.I
)


class Names:
    """Words to find as whole tokens, in any case and however separated: ``STS_001``, ``sts-001``, ``STS001``."""

    def __init__(self, strong: Iterable[str], weak: Iterable[str] = ()) -> None:
        self._tree: dict[str, Any] = {}
        self._digests: set[str] = set()
        for words, kind in ((weak, "weak"), (strong, "strong")):
            for word in words:
                self._add(word, kind)

    def _add(self, word: str, kind: str) -> None:
        runs = _RUN.findall(_plain_letters(word).lower())
        node = self._tree
        for run in runs:
            node = node.setdefault(run, {})
        if runs:
            node[""] = kind
            if kind == "strong":
                digests = (hashlib.md5, hashlib.sha1, hashlib.sha256)
                self._digests |= {digest(word.encode(), usedforsecurity=False).hexdigest() for digest in digests}

    def hits(self, text: str) -> Iterator[tuple[int, str]]:
        """(position, words) of every name in `text`, the longest at each place."""
        if not self._tree:
            return
        runs = [(m.group().lower(), m.start(), m.end()) for m in _RUN.finditer(text)]
        position = 0
        while position < len(runs):
            last = self._match(text, runs, position)
            if last is not None:
                yield runs[position][1], text[runs[position][1] : runs[last][2]]
                position = last
            position += 1
        for found in re.finditer(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9a-f])", text.lower()):
            if found.group() in self._digests:
                yield found.start(), text[found.start() : found.end()]

    def _match(self, text: str, runs: list[tuple[str, int, int]], first: int) -> int | None:
        """Index of the last run of the longest name that starts at run `first`."""
        start = runs[first][1]
        if start and text[start - 1].isalnum():
            return None
        node, best, at = self._tree, None, first
        while at < len(runs) and runs[at][0] in node:
            if at > first and not _joined(text[runs[at - 1][2] : runs[at][1]]):
                break
            node = node[runs[at][0]]
            if "" in node and self._whole(text, start, runs[at][2], node[""]):
                best = at
            at += 1
        return best

    @staticmethod
    def _whole(text: str, start: int, end: int, kind: str) -> bool:
        before, after = text[:start][-24:], text[end : end + 2]
        if after[:1].isalnum():
            return False
        numeric = text[start:end].isdigit()
        if numeric and (re.search(r"[\d.][.,]?$", before) or re.match(r"[.,]\d", after)):
            return False
        if re.search(r"[^\W\d] \d+$", text[start:end]) and re.match(r"[.,]\d", after):
            return False  # "liver 1.5" is a word and a number, also where a case is called liver_1
        return kind == "strong" or bool(_SHORT_CONTEXT.search(before))


def _joined(between: str) -> bool:
    return len(between) <= 2 and all(character in "_-. " for character in between)


@dataclass(frozen=True)
class Private:
    """All that is looked for in texts."""

    cases: Names = field(default_factory=lambda: Names(()))
    machine: Names = field(default_factory=lambda: Names(()))

    @classmethod
    def of(cls, index: Mapping[str, Any] | None) -> Private:
        """From a bundle's private ``eval/index.json`` and this machine."""
        strong, weak = _case_words(index or {})
        return cls(Names(strong, weak), Names(_machine_words()))

    def hits(self, text: str, name: str = "", careful: bool = False) -> list[Hit]:
        """Everything private in `text`, in order; `name` is the key that the text is the value of.

        `careful`: the text was cut out of unknown bytes, where only unmistakable things count.
        """
        if not text.isascii():
            text = _plain_letters(text)
        found = [Hit("case-id", *hit) for hit in self.cases.hits(text)]
        found += [Hit("machine", *hit) for hit in self.machine.hits(text)]
        for rule, pattern in _PATTERNS:
            if (not careful or rule in _CAREFUL) and _possible(rule, text):
                found += [hit for hit in _pattern_hits(rule, pattern, text) if not careful or _unmistakable(hit)]
        if name and not careful:
            found += _named(name, text)
        return _without_overlaps(found)


def _possible(rule: str, text: str) -> bool:
    """A cheap look for what every match of a rule contains."""
    return rule not in _CONTAINS or bool(_CONTAINS[rule].search(text))


def _plain_letters(text: str) -> str:
    """Letters as they are usually written (NFKC), without invisible characters between them."""
    kept = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFKC", kept)


def _pattern_hits(rule: str, pattern: re.Pattern[str], text: str) -> Iterator[Hit]:
    for match in pattern.finditer(text):
        group = 1 if rule in ("date", "identifier") else 0
        hit = Hit(rule, match.start(group), match.group(group))
        if _REAL.get(rule, _always)(hit, text):
            yield hit


def _always(hit: Hit, text: str) -> bool:
    return True


def _real_path(hit: Hit, text: str) -> bool:
    return not _HARMLESS_PATHS.match(hit.found)


def _real_address(hit: Hit, text: str) -> bool:
    return not any(re.match(rf"https?://{re.escape(host)}\b", hit.found, re.I) for host in _LOCAL)


def _real_uid(hit: Hit, text: str) -> bool:
    """Not a version number: a known root, or as long as only identifiers are."""
    if hit.found.startswith(_PUBLIC_UIDS):
        return False
    known = hit.found.startswith(("1.2.", "1.3.", "2.16.", "2.25.", "1.0.", "0.4."))
    return (known and len(hit.found) >= 14) or len(hit.found) >= 20


def _real_ip(hit: Hit, text: str) -> bool:
    try:
        address = ipaddress.ip_address(hit.found.split("/")[0])
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or str(address).startswith("255."):
        return False
    certain = address.version == 6 or address.is_private or len(str(address)) >= 11
    return certain and not _VERSION_BEFORE.search(text[: hit.start][-24:])


def _real_value(hit: Hit, text: str) -> bool:
    value = hit.found.strip("\"'`*_.(<[{|").lower()
    return value not in _NOTHING and not value.startswith(("@", "$", "%")) and not _CODE.search(hit.found)


def _real_secret(hit: Hit, text: str) -> bool:
    return not re.search(r"[:=]\s*[a-z_][\w.]*\(|[:=]\s*(?:none|null|true|false|self\.|os\.)", hit.found, re.I)


_REAL: dict[str, Callable[[Hit, str], bool]] = {
    "absolute-path": _real_path, "internal-address": _real_address, "uid": _real_uid, "ip-address": _real_ip,
    "identifier": _real_value, "secret": _real_secret,
}  # fmt: skip


def _unmistakable(hit: Hit) -> bool:
    if hit.rule == "absolute-path":
        return bool(re.match(rf"/(?:{_ROOTS})/[\w.-]{{3,}}/|[A-Za-z]:\\+Users\\|file://", hit.found))
    return len(hit.found) >= 10


def _named(name: str, value: str) -> list[Hit]:
    """Hits that the key's name makes: an identifying field, a birth date."""
    if re.fullmatch(rf"(?:0x)?(?:{_KEY_NAMES})", name, re.I) and value.strip().lower() not in _NOTHING:
        return [] if value.startswith(("@", "$", "%")) else [Hit("identifier", 0, value[:60])]
    if re.search(_PERSON, name, re.I):
        return [Hit("date", match.start(), match.group()) for match in re.finditer(_DATE, value, re.I)]
    return []


def _without_overlaps(hits: list[Hit]) -> list[Hit]:
    """One hit per place: the first rule in the order above that claims it."""
    kept: list[Hit] = []
    for hit in hits:
        end = hit.start + len(hit.found)
        if not any(hit.start < other.start + len(other.found) and other.start < end for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start)


def _case_words(index: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Words of an index that name a case (strong) and those that do so only beside "case" or "patient" (weak)."""
    cases = [case for side in ("training", "test") for case in index.get(side) or () if isinstance(case, Mapping)]
    owners: dict[str, set[int]] = {}
    own: set[str] = set()
    for number, case in enumerate(cases):
        names = {str(case.get("id") or ""), str(case.get("patient") or "")} - {""}
        own |= names
        for path in (*(case.get("images") or ()), case.get("label")):
            names |= set(_path_words(str(path))) if path else set()
        for word in names:
            owners.setdefault(word, set()).add(number)
    public = {str(word).lower() for key in ("labels", "channels") for word in index.get(key) or ()}
    public |= {str(index.get("name", "")).lower()} | _GENERIC
    patients = {str(case.get("patient")) for case in cases}
    several = len(patients) > 1
    words = {w for w in owners if w in own or not (several and _spread(owners[w], cases))}
    words = {word for word in words if word.lower() not in public and _RUN.search(word)}
    strong = {word for word in words if _telling(word)}
    return strong, {word for word in words - strong if len(word) >= 2}


def _spread(numbers: set[int], cases: list[Mapping[str, Any]]) -> bool:
    """A file name that scans of several patients share says nothing about one."""
    return len({str(cases[number].get("patient")) for number in numbers}) > 1


def _path_words(path: str) -> Iterator[str]:
    """The folder names and the stem of a file, without its suffixes and a trailing ``#OPTION``."""
    parts = PurePosixPath(path.split("#")[0].replace("\\", "/")).parts
    for number, part in enumerate(parts):
        yield re.sub(r"(?:\.[A-Za-z]\w{1,4}){1,2}$", "", part) if number == len(parts) - 1 else part


def _telling(word: str) -> bool:
    """Long and special enough to mean a case wherever it stands."""
    if _NUMBERED.fullmatch(word.lower()):
        return False
    solid = "".join(_RUN.findall(word))
    if solid.isdigit() and solid.startswith("0") and int(solid):
        return len(solid) >= 4  # filled up with zeros, as numbers in prose are not
    return len(solid) >= (6 if solid.isdigit() else 4)


def _machine_words() -> set[str]:
    """Host and user names of this machine that are not what every machine is called."""
    names = {socket.gethostname(), socket.gethostname().split(".")[0], os.environ.get("HOSTNAME", "")}
    names |= {os.environ.get(key, "") for key in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    with contextlib.suppress(OSError, KeyError, RuntimeError):
        names |= {getpass.getuser(), Path.home().name}
    usual = {"root", "user", "admin", "ubuntu", "debian", "runner", "build", "home", "nobody", "docker", "localhost"}
    return {name for name in names if len(name) >= 4 and name.lower() not in usual | _GENERIC}
