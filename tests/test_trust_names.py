"""Small judgements: dotted names, expressions, paths, names of members; each case says what is expected."""

from __future__ import annotations

import pytest

from medunet.trust.inspection.characters import looks_special, odd_characters
from medunet.trust.inspection.expressions import Scope, judge
from medunet.trust.inspection.members import name_problem
from medunet.trust.inspection.paths import judge_path
from medunet.trust.inspection.references import absolute, macro_parts, substituted
from medunet.trust.inspection.targets import judge_name

SCOPE = Scope(
    {"os": frozenset({"os"}), "m": frozenset({"monai"}), "two": frozenset({"os", "glob"})}, {"scripts": "scripts/a.py"}
)


@pytest.mark.parametrize(("name", "kind"), [
    ("monai.transforms.LoadImaged", "inert"), ("LoadImaged", "inert"), ("monai.transforms.io.dictionary.LoadImaged", "inert"),  # noqa: E501
    ("torch.optim.AdamW", "inert"), ("monai.networks.nets.resnet50", "inert"), ("loadimaged", "unknown"),
    ("monai.transforms.LoadImaged.__init__", "danger"), ("scripts.a", "bundle"), ("os.system", "danger"), ("", "danger"),  # noqa: E501
    ("torch.optim.AdamW.", "danger"), ("monai.transforms.os", "danger"), ("TORCH.optim.AdamW", "unknown"),
    ("getattr", "danger"), ("dict", "inert"), ("statistics.mean", "unknown"), ("types.FunctionType", "danger"),
    ("torch.hub.load_state_dict_from_url", "danger"), ("monai.apps.download_and_extract", "danger"),
])  # fmt: skip
def test_dotted_names(name: str, kind: str) -> None:
    assert judge_name(name, {"scripts": "scripts/a.py"}).kind == kind


@pytest.mark.parametrize(("text", "level"), [
    ("1 + 2", "note"), ("len(@a)", "note"), ("m.handlers.from_engine('x')", "note"), ("scripts.f()", "code"),
    ("two.path.join('a')", "code"), ("x()", "code"), ("@a.unheard_of()", "code"), ("@a._private", "code"),
    ("@a.b.c.device", "code"), ("@a.device", "note"), ("'a'.replace('b', 'c')", "note"), ("@a.replace('b')", "danger"),
    ("2 ** 10", "note"), ("2 ** 10 ** 10", "danger"), ("[0] * 10000000", "code"), ("(lambda x: x)(1)", "code"),
    ("m", "danger"), ("type(1)", "danger"), ("[print for print in [1]]", "danger"), ("x: 1", "danger"),
])  # fmt: skip
def test_expressions(text: str, level: str) -> None:
    assert judge(substituted(text), text, SCOPE).level == level


@pytest.mark.parametrize(("path", "level"), [
    ("eval/log.txt", "note"), ("./models/model.pt", "note"), ("", "note"), ("../x.txt", "danger"), ("~/x", "danger"),
    ("/workspace/out", "code"), ("/etc/x", "danger"), ("C:\\x", "danger"), ("a/.ssh/x", "danger"), ("torch.py", "danger"),  # noqa: E501
    ("torch.PY.", "danger"), ("configs/train.json", "danger"), ("eval/scores.json", "note"), ("s3://bucket/x", "code"),
    ("\\\\server\\x", "code"), ("${HOME}/x", "danger"),
])  # fmt: skip
def test_paths_that_are_written(path: str, level: str) -> None:
    assert judge_path(path, written=True)[0] == level
    assert judge_path(path, written=False)[0] == ("code" if "network" in judge_path(path, True)[1] else "note")


@pytest.mark.parametrize("name", ["b/configs/train.yaml", "b/", "b/.gitignore", "b/Bericht für CT.md", "b/a.b.c"])
def test_names_of_members_that_pass(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name", ["", "/x", "a/../b", "a\\b", "c:x", "NUL", "a/aux.txt", "x ", "x.", "a//b", "a/\x07b", "a" * 300]
)
def test_names_of_members_that_do_not(name: str) -> None:
    assert name_problem(name)


def test_ids_are_read_as_monai_reads_them() -> None:
    assert absolute("B::key", "@##A") == "@A"
    assert absolute("B::value2", "%#value1") == "%B::value1"
    assert absolute("B::value3::2", "@#1") == "@B::value3::1"
    assert substituted("@a::b + @a") == "__local_refs['a::b'] + __local_refs['a']"
    assert macro_parts("%/data/x.json#net") == ("/data/x.json", "net")
    assert macro_parts("%net::a") == ("", "net::a")


def test_the_same_replacements_as_monai() -> None:
    from monai.bundle import ConfigParser, ReferenceResolver

    for item_id, text in [
        ("a::b", "@##c + @#d"),
        ("a", "$@#b"),
        ("x::y::z", "%##q"),
        ("k'+1+'::x", "$'%#'"),
        ("a::b", "x#y"),
    ]:
        assert absolute(item_id, text) == ConfigParser.resolve_relative_ids(item_id, text)
    for text in ("$@a + @a::b + '@ab' + @", "$'@f{1}'", "$@a@a", "$@ä"):
        ids = {found[1:]: None for found in ReferenceResolver.id_matcher.findall(text)}
        assert substituted(text) == ReferenceResolver.update_refs_pattern(text, ids)
    for text in ("%a.json", "%a.json::b", "%x.YAML#b#c", "%b", "%a.json.yaml::c", "%a.jsonx"):
        assert macro_parts(text) == ConfigParser.split_path_id(text[1:])


def test_letters() -> None:
    assert odd_characters("plain, Gewebe für Ärzte") == ""
    assert odd_characters("a\u202eb") == "the invisible character U+202E"
    assert odd_characters("a\x1b[2J") == "the control character U+001B"
    assert looks_special("＄x") == "$"
    assert looks_special("_tаrget_") == "_target_"
    assert looks_special("größe") == ""
