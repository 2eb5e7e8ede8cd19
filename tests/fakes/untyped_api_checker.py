# ruff: noqa: C901, PLR0911, PLR0912 - a branch for each kind of syntax
"""Check the use of untyped packages in the sources against the real packages.

Types start at annotations that name a `TypeAlias` of `export/tensorrt/tensorrt_api.py`. They propagate through
attributes, calls, assignments and loops by the signatures of the real packages. An attribute that the real class lacks,
a call that fits no signature, and an attribute of a value of unknown type are errors.
"""

import ast
import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

PLAIN = {"int", "float", "bool", "str", "bytes", "None", "Any", "object", "capsule", "dict"}


@dataclass(frozen=True)
class Value:
    """A value of an untyped package: a known object, or an instance of a class."""

    thing: Any = None
    """Module, class, function or enum member."""
    of: Any = None
    """Class of an instance."""
    unknown: bool = False
    """The value comes from an untyped package, and its type is unknown."""


@dataclass(frozen=True)
class Method:
    """A bound method."""

    owner: Any
    name: str


@dataclass(frozen=True)
class TypeSequence:
    """A tuple, or a list of its only part."""

    parts: tuple[Any, ...]
    repeated: bool = False


UNKNOWN = Value(unknown=True)


@dataclass
class ApiChecker:
    """Checks the sources of some modules."""

    trees: Mapping[str, ast.Module]
    """Module -> its source."""
    trt: Any
    cuda: Any
    aliases: frozenset[str]
    """Names of the aliases of untyped classes."""
    errors: list[str] = field(default_factory=list)
    uses: set[tuple[str, str]] = field(default_factory=set)
    """(class or module, attribute) that the sources use."""
    optional: set[tuple[str, str]] = field(default_factory=set)
    """The same, used by `getattr` with a default."""
    sites: list[ast.Attribute] = field(default_factory=list)
    """Nodes that name an attribute of an untyped package."""
    _fields: dict[str, Any] = field(default_factory=dict)
    _returns: dict[str, Any] = field(default_factory=dict)
    _where: str = ""

    def check(self) -> "ApiChecker":
        """Read the declarations of all sources, then check all statements."""
        for tree in self.trees.values():
            self._declare(tree)
        # The type of a field may be known only after the method that assigns it.
        for _ in range(2):
            self.errors, self.sites = [], []
            for name, tree in self.trees.items():
                self._where = name
                self._block(tree.body, {})
        return self

    def _declare(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                found = self._annotation(node.returns)
                if found is not None:
                    self._returns[node.name] = found
            if isinstance(node, ast.AnnAssign):
                found = self._annotation(node.annotation)
                target = node.target
                name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
                if found is not None and name not in self.aliases:
                    self._fields[name] = found

    def _annotation(self, node: ast.expr | None) -> Any:
        """Return the untyped class that an annotation names, or None."""
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in self.aliases:
                return self._alias(name)
            case ast.BinOp(left=left, right=right):
                return self._annotation(left) or self._annotation(right)
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
                inside = tuple(self._annotation(part) for part in parts)
                return TypeSequence(inside) if any(inside) else None
        return None

    def _alias(self, name: str) -> Any:
        if name == "Module":
            return Value(self.trt)
        if name == "CudaRuntime":
            return Value(self.cuda)
        if name == "CudaFunction":
            return Value(of=types.FunctionType)
        named = {"CudaEvent": "cudaEvent_t", "CudaGraph": "cudaGraphExec_t", "TrtBuilder": "Builder"}.get(name, name)
        found = getattr(self.trt, named, None) or getattr(self.cuda, named, None)
        if found is None:
            self.errors.append(f"no class is called {named}")
        return Value(of=found)

    # Statements

    def _block(self, statements: Sequence[ast.stmt], scope: dict[str, Any]) -> None:
        for statement in statements:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        match node:
            case ast.FunctionDef():
                self._function(node, scope)
            case ast.ClassDef():
                self._class(node, scope)
            case ast.Assign(targets=targets, value=value):
                found = self._value(value, scope)
                for target in targets:
                    self._bind(target, found, scope)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                if value is not None:
                    self._value(value, scope)
                if self._annotation(annotation) is not None:
                    self._bind(target, self._annotation(annotation), scope)
            case ast.For(target=target, iter=over):
                self._bind(target, self._element(self._value(over, scope)), scope)
                self._block([*node.body, *node.orelse], scope)
            case ast.With(items=items):
                for item in items:
                    found = self._value(item.context_expr, scope)
                    if item.optional_vars is not None:
                        self._bind(item.optional_vars, found, scope)
                self._block(node.body, scope)
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.stmt):
                        self._statement(child, scope)
                    elif isinstance(child, ast.ExceptHandler):
                        self._block(child.body, scope)
                    elif isinstance(child, ast.expr):
                        self._value(child, scope)

    def _function(self, node: ast.FunctionDef, scope: dict[str, Any]) -> None:
        inner = dict(scope)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            inner[argument.arg] = self._annotation(argument.annotation)
        self._block(node.body, inner)

    def _class(self, node: ast.ClassDef, scope: dict[str, Any]) -> None:
        bases = [found.thing for found in (self._value(base, scope) for base in node.bases) if is_class(found)]
        for item in node.body:
            self._statement(item, scope)
            if isinstance(item, ast.FunctionDef) and bases and not item.name.startswith("__"):
                self._overridden(bases[0], item)

    def _overridden(self, base: Any, node: ast.FunctionDef) -> None:
        if not hasattr(base, node.name):
            self._error(node, f"{base.__name__}.{node.name} is overridden and does not exist")
            return
        wanted = [len(names) + 1 for names, _, _ in signatures(getattr(base, node.name))]
        if len(node.args.args) not in wanted:
            self._error(
                node, f"{base.__name__}.{node.name} takes {wanted} arguments, the override has {len(node.args.args)}"
            )

    def _bind(self, target: ast.expr, found: Any, scope: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                scope[name] = found
            case ast.Attribute(value=base, attr=name):
                owner = self._value(base, scope)
                if isinstance(owner, Value | Method):
                    self._attribute(target, owner)
                elif found is not None:
                    self._fields.setdefault(name, found)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for place, part in enumerate(parts):
                    self._bind(part, self._part(found, place), scope)
            case ast.Starred(value=inside):
                self._bind(inside, None, scope)
            case ast.Subscript(value=base):
                self._value(base, scope)

    @staticmethod
    def _part(found: Any, place: int) -> Any:
        if isinstance(found, TypeSequence):
            return found.parts[0] if found.repeated else found.parts[place] if place < len(found.parts) else None
        return found if isinstance(found, Value) and found.unknown else None

    def _element(self, found: Any) -> Any:
        return self._part(found, 0) if isinstance(found, TypeSequence) and found.repeated else None

    # Expressions

    def _value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        match node:
            case ast.Name(id=name):
                return scope.get(name)
            case ast.Attribute(value=base, attr=name):
                owner = self._value(base, scope)
                if isinstance(owner, Value | Method):
                    return self._attribute(node, owner)
                return self._fields.get(name)
            case ast.Call():
                return self._call(node, scope)
            case ast.Tuple(elts=parts):
                return TypeSequence(tuple(self._value(part, scope) for part in parts))
            case ast.Subscript(value=base, slice=index):
                self._value(index, scope)
                return self._element(self._value(base, scope))
            case ast.IfExp(body=body, orelse=other, test=test):
                self._value(test, scope)
                first, second = self._value(body, scope), self._value(other, scope)
                return first or second
            case ast.Lambda(body=body):
                self._value(body, scope)
                return None
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                return self._comprehension(node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child, scope)
        return None

    def _comprehension(self, node: Any, scope: dict[str, Any]) -> Any:
        inner = dict(scope)
        for generator in node.generators:
            self._bind(generator.target, self._element(self._value(generator.iter, inner)), inner)
            for condition in generator.ifs:
                self._value(condition, inner)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            found = self._value(part, inner)
        return TypeSequence((found,), repeated=True) if found is not None else None

    def _attribute(self, node: ast.Attribute, owner: Any) -> Any:
        if isinstance(owner, Method) or owner.unknown:
            self._error(node, f"the type of the value before .{node.attr} is unknown")
            return UNKNOWN
        base = owner.thing if owner.of is None else owner.of
        name = node.attr
        self.sites.append(node)
        if not hasattr(base, name):
            self._error(node, f"{_name(base)} has no {name}")
            return UNKNOWN
        if not name.startswith("__"):
            self.uses.add((_name(base), name))
        if isinstance(node.ctx, ast.Store) and getattr(base, name).fset is None:
            self._error(node, f"{_name(base)}.{name} cannot be set")
        return self._member(base, name, bound=owner.of is not None)

    def _member(self, base: Any, name: str, *, bound: bool) -> Any:
        member = getattr(base, name)
        if isinstance(member, property):
            return self._named_type((member.fget.__doc__ or "").partition("->")[2])
        if isinstance(member, types.ModuleType | type | Enum) or not bound:
            return Value(member)
        return Method(base, name) if callable(member) else None

    def _named_type(self, text: str) -> Any:
        """Return the type that the text of a signature names."""
        text = text.strip().splitlines()[0] if text.strip() else ""
        if text.startswith("list["):
            return TypeSequence((self._named_type(text[5:-1]),), repeated=True)
        last = re.split(r"[.:]+", text.replace(":py:obj:`~", "").strip("` "))[-1]
        if last in PLAIN:
            return None
        for name in (last, last.removeprefix("I")):
            for package in (self.trt, self.cuda):
                if isinstance(getattr(package, name, None), type):
                    return Value(of=getattr(package, name))
        return UNKNOWN

    # Calls

    def _call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            return self._getattr(node, scope)
        called = self._value(node.func, scope)
        arguments = [self._value(part, scope) for part in node.args]
        for keyword in node.keywords:
            self._value(keyword.value, scope)
        starred = any(isinstance(part, ast.Starred) for part in node.args)
        names = [keyword.arg for keyword in node.keywords]
        if isinstance(called, Method):
            return self._check_call(
                node, getattr(called.owner, called.name), None if starred else len(arguments), names
            )
        if isinstance(called, Value) and called.thing is not None:
            if isinstance(called.thing, type):
                init = called.thing.__init__
                self._check_call(node, init, None if starred else len(arguments), names)
                return Value(of=called.thing)
            if getattr(called.thing, "__name__", "").startswith("__"):
                return None
            return self._check_call(node, called.thing, None if starred else len(arguments), names)
        # A function that gets an untyped function and its arguments calls it.
        for place, argument in enumerate(arguments):
            if isinstance(argument, Value) and callable(argument.thing) and not isinstance(argument.thing, type):
                result = self._check_call(node, argument.thing, len(arguments) - place - 1, [])
                return TypeSequence(result.parts[1:]) if isinstance(result, TypeSequence) else result
        if isinstance(called, Value) and called.unknown:
            return UNKNOWN
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return self._returns.get(name)

    def _getattr(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        owner, name = self._value(node.args[0], scope), node.args[1]
        if not isinstance(owner, Value):
            return None
        base = owner.thing if owner.of is None else owner.of
        if not isinstance(name, ast.Constant):
            return UNKNOWN
        self.optional.add((_name(base), str(name.value)))
        return self._member(base, name.value, bound=owner.of is not None) if hasattr(base, name.value) else UNKNOWN

    def _check_call(self, node: ast.Call, function: Any, count: int | None, names: Sequence[str | None]) -> Any:
        """Check a call against the signatures of a function, and return the type of its result."""
        found = list(signatures(function))
        result = UNKNOWN
        for parameters, required, returned in found:
            fits = count is None or required <= count + len(names) <= len(parameters)
            if fits and set(names) <= set(parameters):
                if isinstance(returned, tuple):
                    return TypeSequence(tuple(self._named_type(one) for one in returned))
                return self._named_type(returned)
        if found:
            known = "; ".join(", ".join(parameters) for parameters, _, _ in found)
            self._error(node, f"{function.__name__}({known}) is called with {count} arguments and {list(names)}")
        else:
            self._error(node, f"the signature of {function.__name__} is unknown")
        return result

    def _error(self, node: ast.AST, what: str) -> None:
        self.errors.append(f"{self._where}:{getattr(node, 'lineno', 0)}: {what}")


def signatures(function: Any) -> Iterator[tuple[list[str], int, Any]]:
    """Yield (parameters without self, number of required ones, returned type) of every overload."""
    text = function.__doc__ or ""
    name = function.__name__
    for match in re.finditer(rf"^(?:\d+\. )?{name}\((.*)\) -> (.+)$", text, re.MULTILINE):
        parts = [part.strip() for part in re.split(r",\s*(?![^\[<]*[\]>])", match[1]) if part.strip()]
        parts = [part for part in parts if not part.startswith("self")]
        if "*args" in parts:
            continue
        yield [part.partition(":")[0] for part in parts], sum("=" not in part for part in parts), match[2]
    if not re.search(r"\) -> ", text):
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return
        needed = sum(one.default is inspect.Parameter.empty for one in parameters)
        _, _, returned = text.partition("Returns\n")
        kinds = re.findall(r"^(\w+)(?: : (.*))?$", returned.partition("See Also")[0], re.MULTILINE)
        returns = tuple(kind or status for status, kind in kinds)
        yield [one.name for one in parameters], needed, returns or "None"


def is_class(found: Any) -> bool:
    """Return whether a value is a class."""
    return isinstance(found, Value) and isinstance(found.thing, type)


def _name(base: Any) -> str:
    return str(base.__qualname__ if isinstance(base, type) else getattr(base, "__name__", base))
