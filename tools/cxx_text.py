"""A reader of C++ text that is good enough to count functions: no parser, only comments, literals and braces."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMENT_OR_LITERAL = re.compile(
    r"""//[^\n]*                                  # line comment
      | /\*.*?\*/                                 # block comment
      | R"(?P<delimiter>[^\s()\\]{0,16})\(.*?\)(?P=delimiter)"   # raw string
      | "(?:\\.|[^"\\\n])*"                       # string
      | (?<![0-9a-zA-Z_])'(?:\\.|[^'\\\n])+'      # character; 1'000'000 is none
    """,
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
_BEFORE_DECLARATION = re.compile(r"\s*(?:(?:public|private|protected)\s*:(?!:)\s*)*")
_TEMPLATE = re.compile(r"template\s*<(?:[^<>]|<[^<>]*>)*>\s*")
_OTHER_SCOPE = re.compile(r"(?:inline\s+)?(?:namespace|class|struct|union|enum|extern)\b")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """One function body; lines count from 1, `last` is the line of the closing brace."""

    name: str
    first: int
    last: int

    @property
    def lines(self) -> int:
        return self.last - self.first + 1


def blank(text: str) -> str:
    """Replaces comments, literals and directives by spaces; line breaks, and so line numbers, stay."""

    def spaces(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    return _DIRECTIVE.sub(spaces, _COMMENT_OR_LITERAL.sub(spaces, text))


def includes(text: str) -> list[tuple[int, str]]:
    """Line and name of every #include, those in block comments left out."""
    without_blocks = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in _INCLUDE.finditer(without_blocks)]


def functions(text: str) -> list[Function]:
    """Every outermost function body: a brace that opens at namespace or class scope behind a parameter list."""
    code = blank(text)
    found: list[Function] = []
    scopes: list[tuple[str, int] | None] = []  # None: a scope that may hold functions; else (name, first line)
    head_start = 0
    for match in re.finditer(r"[{};]", code):
        inside_function = any(scope is not None for scope in scopes)
        if match.group() == "{":
            head = code[head_start : match.start()]
            opens_function = not inside_function and _is_function_head(head)
            first = code.count("\n", 0, head_start + _BEFORE_DECLARATION.match(head).end()) + 1
            scopes.append((_name_of(head), first) if opens_function else None)
        elif match.group() == "}" and scopes:
            scope = scopes.pop()
            if scope is not None:
                found.append(Function(scope[0], scope[1], code.count("\n", 0, match.start()) + 1))
        head_start = match.end()
    return found


def _is_function_head(head: str) -> bool:
    declaration = _TEMPLATE.sub("", head[_BEFORE_DECLARATION.match(head).end() :])
    return ")" in head and not _OTHER_SCOPE.match(declaration) and not head.rstrip().endswith("=")


def _name_of(head: str) -> str:
    match = re.search(r"(operator\s*[^\s(]+|~?\w[\w:~]*)\s*\(", head)
    return match.group(1) if match else head.strip().split("\n")[0]
