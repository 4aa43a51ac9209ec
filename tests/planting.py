"""How a bug is planted: the code of a function with one place of its source changed."""

import ast
import inspect
import sys
import textwrap


def mutated(function, before, after):
    """The code of ``function`` with ``before`` in its source replaced by ``after``."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(before) == 1, f"{function.__name__} no longer says {before!r} once: plant the bug anew"
    tree = ast.parse(source.replace(before, after))
    tree.body[0].decorator_list.clear()
    scope = dict(vars(sys.modules[function.__module__]))
    exec(compile(tree, f"<planted in {function.__name__}>", "exec"), scope)
    return scope[function.__name__].__code__
