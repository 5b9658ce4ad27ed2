"""Every error that somebody has to act on says what to do: its message has a "Cure: …"."""

import ast
import builtins
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import dagster as dg
import psycopg
import pytest

import embedding_assets
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.orchestration.automation.failures import reason
from embedding_assets.pgvector.connection import pipeline_errors

PACKAGE: Final = Path(embedding_assets.__file__).parent
CURE: Final = "Cure: "


@cache
def modules() -> dict[str, ast.Module]:
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def names(node: ast.AST) -> set[str]:
    """The variables, functions and attributes that a piece of code uses."""
    found = ast.walk(node)
    return {n.id if isinstance(n, ast.Name) else n.attr for n in found if isinstance(n, ast.Name | ast.Attribute)}


def has_cure(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str) and CURE in n.value for n in ast.walk(node))


@cache
def pipeline_error_classes() -> dict[str, bool]:
    """Every class of the pipeline's errors, and whether it composes its message with a cure itself.

    Those that may pass reach people, too: where they do not pass.
    """
    found = {"PermanentError": False, "TransientError": False}
    while True:
        more = {
            node.name: has_cure(node)
            for module in modules().values()
            for node in ast.walk(module)
            if isinstance(node, ast.ClassDef) and any(names(base) & found.keys() for base in node.bases)
        }
        if more.keys() <= found.keys():
            return found
        found |= more


def constructions(scope: ast.AST, around: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    """Each call in which such a class is the function, with the functions and the module that it stands in."""
    inner = (*around, scope) if isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) else around
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.Call) and names(node.func) & pipeline_error_classes().keys():
            yield node, inner
        yield from constructions(node, inner)


def variables_with_a_cure(nodes: Iterable[ast.AST]) -> set[str]:
    """Variables, or constants, that stand for a text with a cure."""
    assigned = [node for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
    return {
        target.id
        for node in assigned
        if node.value is not None and has_cure(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


@cache
def constants_with_a_cure() -> frozenset[str]:
    """Constants of the package's modules, which other modules import by their names."""
    return frozenset(name for module in modules().values() for name in variables_with_a_cure(module.body))


@cache
def functions_with_a_cure() -> frozenset[str]:
    """Functions of the package that return nothing but texts with a cure."""
    return frozenset(
        function.name
        for module in modules().values()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef)
        and (returned := [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None])
        and all(has_cure(value) for value in returned)
    )


def says_the_cure(call: ast.Call, around: tuple[ast.AST, ...]) -> bool:
    used = names(call) - set(dir(builtins))
    composed = any(pipeline_error_classes()[name] for name in names(call.func) & pipeline_error_classes().keys())
    inside = [node for scope in around[1:] for node in ast.walk(scope)]
    module = around[0].body if isinstance(around[0], ast.Module) else []
    texts = functions_with_a_cure() | constants_with_a_cure() | variables_with_a_cure([*module, *inside])
    return composed or has_cure(call) or bool(used & texts)


CALLS: Final = [
    pytest.param(call, around, id=f"{path}:{call.lineno}")
    for path, module in modules().items()
    for call, around in constructions(module)
]


@pytest.mark.parametrize(("call", "around"), CALLS)
def test_every_error_says_its_cure(call: ast.Call, around: tuple[ast.AST, ...]) -> None:
    assert says_the_cure(call, around), ast.unparse(call)


def test_the_walk_sees_what_has_no_cure() -> None:
    def found(code: str) -> list[bool]:
        return [says_the_cure(call, around) for call, around in constructions(ast.parse(code))]

    assert len(CALLS) > 60
    assert found("raise PermanentError('no')\nraise errors.PermanentError(f'{a}')") == [False, False]
    assert found("raise (PermanentError if a else TransientError)(b)") == [False]
    assert found("cure = 'Cure: so'\ndef f():\n    raise PermanentError(f'no. {cure}')") == [True]
    assert found("def g():\n    cure = 'Cure: so'\ndef f():\n    raise PermanentError(f'no. {cure}')") == [False]
    assert found("raise MassDelete('no. Cure: so')") == [True]
    assert found("raise ProviderDown('away', 60)") == [False]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("FATAL:  password authentication failed"),
        psycopg.errors.InsufficientPrivilege("permission denied for table"),
        psycopg.errors.UndefinedTable("no such table"),
        psycopg.ProgrammingError("anything"),
    ],
)
def test_what_postgres_refuses_for_good_is_told_with_a_cure(error: psycopg.Error) -> None:
    with pytest.raises(PermanentError, match=r"looking: .+\. Cure: \w+"), pipeline_errors("looking"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("connection refused"),
        psycopg.errors.DiskFull("could not extend file: No space left on device"),
        psycopg.errors.TooManyConnections("too many connections for role"),
        psycopg.errors.TransactionTimeout("terminating connection due to transaction timeout"),
    ],
)
def test_what_may_pass_of_postgres_is_told_with_what_to_do_where_it_does_not(error: psycopg.Error) -> None:
    with pytest.raises(TransientError, match=r"looking: .+\. Cure: \w+"), pipeline_errors("looking"):
        raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TransientError("the store is away. Cure: wait"), "step: the store is away. Cure: wait"),
        (KeyError("a bug"), "step: KeyError: 'a bug'"),
    ],
)
def test_a_failed_step_is_told_in_its_errors_own_words(error: Exception, told: str) -> None:
    @dg.op(name="step")
    def step() -> None:
        raise error

    @dg.job
    def job() -> None:
        step()

    (failure,) = job.execute_in_process(raise_on_error=False).filter_events(lambda event: event.is_step_failure)

    assert reason(failure) == told
