"""``$`` expressions judged by their syntax tree: a small grammar is harmless, the rest is code or danger.

What is judged is the text after MONAI has put the look-ups in (`references.substituted`), since only that is evaluated.
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from medunet.trust.findings import Level
from medunet.trust.inspection.references import REFS
from medunet.trust.inspection.targets import dangerous, is_dangerous_attribute, table
from medunet.trust.inspection.words import words

MAX_LENGTH = 4000
_MAX_DEPTH = 150
_DEFAULTS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
_IMPORTS = {"glob", "os", "os.path", "math", "json", "random", "datetime", "re", "numpy", "torch", "monai", "pathlib"}
_BUILTINS = words(
    """len sorted range str int float list tuple dict set frozenset bool min max sum abs round zip enumerate reversed
    any all isinstance print next iter slice"""
)
_FILES = {"glob.glob", "glob.iglob", "os.listdir", "os.path.exists", "os.path.isfile", "os.path.isdir",
          "monai.data.load_decathlon_datalist", "monai.data.load_decathlon_properties",
          "os.path.getsize", "os.path.expanduser"}  # fmt: skip
_CALLS = _FILES | words(
    """os.path.join os.path.basename os.path.dirname os.path.abspath os.path.splitext os.path.normpath os.path.sep
    os.getcwd os.cpu_count os.sep os.environ.get pathlib.Path pathlib.PurePath pathlib.PurePosixPath math.ceil
    math.floor math.sqrt math.log math.pi math.prod math.inf re.sub re.match datetime.datetime.now json.dumps
    random.seed random.randint torch.cuda.current_device torch.cuda.set_device torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic torch.distributed.is_available torch.distributed.is_initialized
    torch.distributed.get_rank torch.distributed.get_world_size torch.set_float32_matmul_precision torch.no_grad
    torch.float16 torch.float32 torch.float64 torch.float torch.half torch.bfloat16 torch.int8 torch.uint8 torch.int16
    torch.int32 torch.int64 torch.long torch.int torch.bool torch.channels_last torch.channels_last_3d torch.inf
    torch.nn.Module torch.cat torch.stack torch.sigmoid torch.softmax torch.argmax torch.max torch.min torch.mean
    torch.sum torch.where torch.squeeze torch.unsqueeze torch.abs torch.exp torch.log torch.sqrt torch.round
    torch.clamp torch.argsort torch.randn torch.rand torch.arange torch.linspace torch.eye torch.flatten
    torch.nn.functional.softmax torch.nn.functional.one_hot torch.nn.functional.interpolate torch.__version__
    numpy.array numpy.asarray numpy.float32 numpy.float64 numpy.float16 numpy.int8 numpy.int16 numpy.int32 numpy.int64
    numpy.uint8 numpy.uint16 numpy.bool_ numpy.pi numpy.inf numpy.nan numpy.ceil numpy.floor numpy.round numpy.sqrt
    numpy.prod numpy.mean numpy.sum numpy.max numpy.min numpy.linspace numpy.arange numpy.zeros numpy.ones numpy.eye
    numpy.concatenate numpy.stack numpy.argmax numpy.unique numpy.random.RandomState numpy.log numpy.exp numpy.abs
    numpy.deg2rad numpy.random.seed numpy.diag numpy.transpose numpy.any numpy.all numpy.where
    monai.__version__ monai.utils.set_determinism monai.utils.path_to_uri monai.utils.path_to_sqlite_uri
    monai.data.box_utils.box_iou monai.data.utils.no_collation monai.data.utils.list_data_collate
    monai.utils.ForwardMode.EVAL monai.utils.ForwardMode.TRAIN monai.utils.CommonKeys.IMAGE
    monai.utils.CommonKeys.LABEL monai.utils.CommonKeys.PRED monai.utils.CommonKeys.LOSS"""
)
_METHODS = words(
    """parameters named_parameters state_dict load_state_dict to eval train cuda cpu float half double run items keys
    values get split rsplit join replace startswith endswith strip lstrip rstrip lower upper index count sort append
    extend copy numel size dim item tolist mean sum max min any all argmax squeeze unsqueeze permute transpose reshape
    view flatten detach clone numpy type attach step zero_grad is_file is_dir exists as_posix with_suffix joinpath
    relative_to glob modules children state_dict requires_grad_ isdigit zfill title
    """
)
_ATTRIBUTES = words(
    """shape dtype device ndim name stem parent suffix parts state network optimizer epoch iteration output metrics
    batch max_epochs key_metric_name data dataset transform transforms sampler in_channels out_channels num_classes
    value lr param_groups best_metric weight bias loss pred label image training meta affine T real imag"""
)
_MAKES_FOLDERS = ("os.makedirs", "os.mkdir")
_NODES = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.List, ast.Tuple,
    ast.Set, ast.Dict, ast.Subscript, ast.Slice, ast.Starred, ast.JoinedStr, ast.FormattedValue, ast.ListComp,
    ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Name, ast.Attribute, ast.Call, ast.keyword,
    ast.Lambda, ast.arguments, ast.arg, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_RANK: dict[Level, int] = {"note": 0, "code": 1, "danger": 2}


@dataclass
class Judgement:
    """How bad an expression is, why, what it touches, which references it follows and what its tree is."""

    level: Level = "note"
    reasons: list[str] = field(default_factory=list)
    touches: set[str] = field(default_factory=set)
    references: set[str] = field(default_factory=set)
    name: str = ""
    calls: list[tuple[str, ast.Call]] = field(default_factory=list)
    tree: ast.expr | None = None

    def say(self, level: Level, reason: str, *touches: str) -> None:
        """Add a reason; the worst level stays."""
        if _RANK[level] > _RANK[self.level]:
            self.level = level
        if level != "note" and reason not in self.reasons:
            self.reasons.append(reason)
        self.touches |= set(touches)


@dataclass(frozen=True)
class Scope:
    """What names mean in a bundle: imported aliases (each with the modules it may be) and its own modules."""

    aliases: Mapping[str, frozenset[str]]
    local_modules: Mapping[str, str]

    def meaning(self, name: str) -> str:
        """The module behind a name; empty if it is none."""
        known = set(self.aliases.get(name, ())) | ({_DEFAULTS[name]} if name in _DEFAULTS else set())
        return next(iter(known)) if len(known) == 1 else ""


def parse(text: str) -> ast.Module | None:
    """The tree of an expression without its ``$``; None if it is not Python."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        return tree if _is_shallow(tree) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


def _is_shallow(tree: ast.AST) -> bool:
    """Whether a tree can be walked by functions that call themselves."""
    level = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return True
    return False


def imports(text: str) -> tuple[str, str] | None:
    """(name that is bound, what it is) when the text is an import statement: MONAI takes the first name only."""
    tree = parse(text)
    first = tree.body[0] if tree and tree.body else None
    if isinstance(first, ast.Import):
        return first.names[0].asname or first.names[0].name, first.names[0].name
    if isinstance(first, ast.ImportFrom):
        return first.names[0].asname or first.names[0].name, f"{first.module}.{first.names[0].name}"
    return None


def judge(text: str, original: str, scope: Scope) -> Judgement:
    """Judge an expression (without ``$``, look-ups put in; `original` is as it is written)."""
    result = Judgement()
    if len(text) > MAX_LENGTH:
        result.say("danger", f"is longer than {MAX_LENGTH} characters")
        return result
    tree = parse(text)
    if tree is None or not tree.body:
        result.say("danger", "cannot be read as Python, or is nested too deeply")
        return result
    if REFS in original:
        result.say("danger", "names MONAI's internal table of references")
    if isinstance(tree.body[0], (ast.Import, ast.ImportFrom)):
        _judge_import(tree, text, scope, result)
    elif len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        result.say("danger", "is a statement, not an expression")
    else:
        result.tree = tree.body[0].value
        _Judge(scope, result).all(result.tree, text)
    return result


def _judge_import(tree: ast.Module, text: str, scope: Scope, result: Judgement) -> None:
    found = imports(text)
    first = tree.body[0]
    if found is None:
        return
    bound, what = found
    if len(tree.body) > 1 or (isinstance(first, (ast.Import, ast.ImportFrom)) and len(first.names) > 1):
        result.say("danger", "holds more than one import")
    if isinstance(first, ast.ImportFrom) and first.level:
        result.say("danger", "is a relative import")
    reserved = (hasattr(builtins, bound) and what != bound) or bound == REFS
    if reserved or (bound in _DEFAULTS and _DEFAULTS[bound] != what) or (bound in _IMPORTS and bound != what):
        result.say("danger", f"gives '{bound}' another meaning ({what})")
    root = what.split(".")[0]
    if root in scope.local_modules:
        result.say("code", f"imports code of the bundle ({scope.local_modules[root]})")
    elif (isinstance(first, ast.Import) and what in _IMPORTS) or what in _CALLS or what in table():
        return
    elif dangerous(what.split(".")):
        result.say("danger", f"imports '{what}', which {dangerous(what.split('.'))}")
    else:
        result.say("code", f"imports '{what}', which is not known to be inert")


class _Judge:
    """Walks the tree; names that the expression binds itself are objects, never modules."""

    def __init__(self, scope: Scope, result: Judgement) -> None:
        self.scope, self.result = scope, result
        self.bound: set[str] = set()

    def all(self, tree: ast.expr, text: str) -> None:
        """Judge a whole expression."""
        self._characters(tree, text)
        for node in ast.walk(tree):
            if not isinstance(node, _NODES):
                self.result.say("danger", f"holds {type(node).__name__}, which no value needs")
            elif isinstance(node, ast.arg):
                self._bind(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._bind(node.id)
        self.visit(tree)
        self.result.name = self._dotted(tree) or ""

    def _characters(self, tree: ast.expr, text: str) -> None:
        if text.isascii():
            return
        spoken = {
            c for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) for c in n.value
        }
        if any(not letter.isascii() and letter not in spoken for letter in text):
            self.result.say("danger", "has letters outside ASCII in names, which Python takes for others")

    def _bind(self, name: str) -> None:
        if hasattr(builtins, name) or name in _DEFAULTS or name in self.scope.aliases or name == REFS:
            self.result.say("danger", f"gives '{name}' another meaning")
        self.bound.add(name)

    def visit(self, node: ast.AST) -> None:
        """Judge a node and what is below it."""
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, (ast.Attribute, ast.Name)):
            self._value(node)
        elif isinstance(node, ast.Subscript) and _is_lookup(node):
            self._reference(node)
        else:
            if isinstance(node, ast.BinOp):
                self._work(node)
            for child in ast.iter_child_nodes(node):
                self.visit(child)

    def _reference(self, node: ast.Subscript) -> None:
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            self.result.references.add(key.value)

    def _dotted(self, node: ast.AST) -> str | None:
        """The full name where a chain of attributes begins at a module or an imported or free name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self.bound or node.id == REFS:
            return None
        return ".".join([self.scope.meaning(node.id) or node.id, *reversed(parts)])

    def _value(self, node: ast.Attribute | ast.Name) -> None:
        name = self._dotted(node)
        if name is not None:
            self._name(name)
        elif isinstance(node, ast.Attribute):
            self._attribute(node.attr, is_call=False)
            self.visit(node.value)
        elif node.id == REFS:
            self.result.say("danger", "names MONAI's internal table of references")

    def _name(self, name: str, is_call: bool = False) -> None:
        """A name that is read or called: listed, of the bundle, dangerous or unknown."""
        parts = name.split(".")
        root = parts[0]
        if root in self.scope.local_modules:
            self.result.say("code", f"uses '{name}', code of the bundle ({self.scope.local_modules[root]})")
        elif len(parts) == 1 and name in _BUILTINS and name not in self.scope.aliases:
            return
        elif name in _CALLS or (name in table() and len(parts) > 1):
            self.result.touches |= {"files"} if name in _FILES else set()
            component = table().get(name)
            if not is_call and component and any(component.arguments.values()):
                self.result.say("code", f"hands '{name}' on to be called with arguments that are not here")
        elif name in _MAKES_FOLDERS:
            self.result.say("code", f"uses '{name}', which makes folders", "files")
        elif len(parts) == 1 and name in _IMPORTS | set(_DEFAULTS.values()):
            self.result.say("danger", f"hands the module '{name}' itself on, with all it can do")
        else:
            why = dangerous(parts) or ("is a builtin that is not listed" if hasattr(builtins, name) else "")
            self.result.say("danger" if why else "code", f"uses '{name}', which {why or 'is not known to be inert'}")

    def _attribute(self, name: str, is_call: bool) -> None:
        listed = _METHODS if is_call else (_METHODS | _ATTRIBUTES) - {"replace"}
        if name in listed:
            return
        if is_dangerous_attribute(name):
            self.result.say("danger", f"reaches for '{name}'")
        elif name.startswith("_"):
            self.result.say("code", f"reaches for the private '{name}'")
        else:
            what = "calls" if is_call else "reads"
            self.result.say("code", f"{what} '{name}' of an object, which is not listed")

    def _call(self, node: ast.Call) -> None:
        function = node.func
        name = self._dotted(function)
        if name is not None:
            self.result.calls.append((name, node))
            self._name(name, is_call=True)
        elif isinstance(function, ast.Attribute):
            self._attribute(function.attr, is_call=True)
            if function.attr == "replace" and (len(node.args) != 2 or node.keywords):
                self.result.say("danger", "calls 'replace' in the way that moves a file", "files")
            self.visit(function.value)
        else:
            self.result.say("code", "calls something that it computes")
            self.visit(function)
        for child in [*node.args, *node.keywords]:
            self.visit(child.value if isinstance(child, ast.keyword) else child)
        if any(keyword.arg is None for keyword in node.keywords):
            self.result.say("code", "hands on arguments that it computes (**)")

    def _work(self, node: ast.BinOp) -> None:
        """Sums that would keep a machine busy or fill it."""
        big = [n.value for n in (node.left, node.right) if isinstance(n, ast.Constant) and isinstance(n.value, int)]
        nested = any(isinstance(n, ast.BinOp) and isinstance(n.op, (ast.Pow, ast.LShift)) for n in ast.walk(node.right))
        power = isinstance(node.op, (ast.Pow, ast.LShift))
        if power and (nested or any(value > 64 for value in big)):
            self.result.say("danger", "computes a number without a bound")
        if isinstance(node.op, ast.Mult) and any(value > 10**6 for value in big):
            self.result.say("code", "repeats something very often")


def _is_lookup(node: ast.Subscript) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == REFS and isinstance(node.slice, ast.Constant)
