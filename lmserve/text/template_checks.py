"""Has a template look at the clock, in each turn of its loops and each call of its macros: those
that write nothing too."""

from __future__ import annotations

from jinja2 import Environment, nodes
from jinja2.environment import Template

from lmserve.text import deadline

_CHECK = "_check_deadline"  # no client's: names that begin so are refused


def compile_checked(environment: Environment, source: str) -> tuple[Template, nodes.Template]:
    """The template, and its tree. Raises TemplateSyntaxError."""
    tree = environment.parse(source)
    environment.globals[_CHECK] = deadline.check
    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
        call = nodes.Call(nodes.Name(_CHECK, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
    tree.set_environment(environment)
    return environment.from_string(tree), tree
