"""Bits of a token must not depend on which of several kernels computes it, but a compiler may round a product before it
is added in one kernel and not in another. So device code of a decoding step says itself where both are one operation.

    rounding.py NVCC SOURCE_ROOT UNIT...

Fails where the compiler could still choose: a product without rounding mode that is added to something, or operations
that differ once the compiler may not join them.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*);")
SUMS = {"add.f32", "sub.f32", "add.rn.f32", "sub.rn.f32"}
COPIES = {"mov.f32", "neg.f32", "selp.f32", "abs.f32"}


def ptx(nvcc: str, root: Path, unit: str, *options: str) -> str:
    command = [nvcc, "-std=c++20", "-O3", "-arch=compute_90a", f"-I{root / 'src'}", "-ptx", *options, "-o", "-"]
    return subprocess.run([*command, root / unit], check=True, capture_output=True, text=True).stdout


def kernels(text: str) -> dict[str, list[tuple[str, list[str]]]]:
    """Instructions of each kernel: name and operands, the result first."""
    found = {}
    for part in re.split(r"\n(?=(?:\.visible )?\.entry )", text)[1:]:
        name = re.match(r"(?:\.visible )?\.entry (\w+)", part)[1]
        matches = filter(None, map(INSTRUCTION.match, part.split("\n")))
        found[name] = [(m[1], re.findall(r"%\w+", m[2])) for m in matches]
    return found


def open_choices(instructions: list[tuple[str, list[str]]]) -> list[str]:
    """Registers whose product is added to something and says nothing of its rounding."""
    products = {operands[0] for name, operands in instructions if name == "mul.f32"}
    while more := {o[0] for name, o in instructions if name in COPIES and products & set(o[1:])} - products:
        products |= more
    return sorted(r for name, o in instructions if name in SUMS for r in o[1:] if r in products)


def joined(instructions: list[tuple[str, list[str]]]) -> int:
    return Counter(name for name, _ in instructions)["fma.rn.f32"]


def main() -> int:
    nvcc, root, units = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    failed = seen = 0
    for unit in units:
        free, fixed = kernels(ptx(nvcc, root, unit)), kernels(ptx(nvcc, root, unit, "-fmad=false"))
        for name, instructions in free.items():
            seen += 1
            choices, more = open_choices(instructions), joined(instructions) - joined(fixed[name])
            if choices or more:
                failed += 1
                print(f"{unit}: {name}: {len(choices)} products the compiler may join, {more} that it joined")
    print(f"{seen} kernels, {failed} with roundings that the compiler chooses")
    return 1 if failed or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
