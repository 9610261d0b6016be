"""Templates have no dead code: compilers do not miss a function that nobody calls any more."""

from __future__ import annotations

import re

from podrt.jit import templates_dir

#: Of a function's definition, its name. Constructors and operators are called by other names.
_DEFINED = re.compile(r"__device__ __forceinline__ (?:explicit )?[\w:<>*& ]*?\b(\w+)\(")

#: In ``hopper/kernel.cu.jinja``, whose macro puts the name together.
_NAMED_BY_JINJA = {"alloc_registers"}


def test_every_device_function_is_used() -> None:
    texts = [
        path.read_text(encoding="utf-8") for path in templates_dir().rglob("*.c*") if path.is_file()
    ]
    code = "\n".join(re.sub(r"//.*", "", text) for text in texts)
    types = set(re.findall(r"\bstruct (?:alignas\(\d+\) )?(\w+)", code))
    functions = {name for name in _DEFINED.findall(code) if name not in types}
    assert len(functions) > 100
    unused = {name for name in functions if len(re.findall(rf"\b{name}\b", code)) < 2}
    assert unused == _NAMED_BY_JINJA
