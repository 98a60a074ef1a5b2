"""Translates PTX, as nvcc writes it, to C++ for the emulator: the kernel's inline assembly included.

    nvcc -std=c++20 -O3 -lineinfo -arch=sm_80 -ptx kernel.cu -o kernel.ptx
    python tests/cuda_host/ptx.py kernel.ptx > kernel.cpp

Every kernel becomes a function of the same symbol, which takes its parameters as they lie in memory
(block.h's launch). Registers become variables, each instruction one statement with the functions of ptx.h, at
the line of the CUDA source that it came from. An instruction that is not known here is an error, never a
guess.

After NVIDIA's "Parallel Thread Execution ISA".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TYPES = {
    **{f"u{bits}": f"uint{bits}_t" for bits in (8, 16, 32, 64)},
    **{f"b{bits}": f"uint{bits}_t" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    **{"f32": "float", "f64": "double", "pred": "bool"},
    **{"f16": "uint16_t", "bf16": "uint16_t", "f16x2": "uint32_t", "bf16x2": "uint32_t", "tf32": "uint32_t"},
}
BITS = {"pred": 8, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}
SPECIAL = {
    **{f"%tid.{axis}": f"threadIdx.{axis}" for axis in "xyz"},
    **{f"%ntid.{axis}": f"blockDim.{axis}" for axis in "xyz"},
    **{f"%ctaid.{axis}": f"blockIdx.{axis}" for axis in "xyz"},
    **{f"%nctaid.{axis}": f"gridDim.{axis}" for axis in "xyz"},
}
# Comparisons that an unordered operand fails; those with a u (neu, ltu) it would pass, and they are not here.
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# Of floats, which NaN passes: the opposite ones that it fails.
UNORDERED = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
SPACES = ("param", "shared", "global")


class UnknownError(Exception):
    """An instruction that this translator does not know."""


def bits_of(type_: str) -> int:
    return BITS.get(type_) or int(type_[1:])


def unsigned(type_: str) -> str:
    """Integers wrap around: sums and products are of unsigned numbers in C++."""
    return f"u{bits_of(type_)}" if type_[0] in "sb" else type_


def split_operands(text: str) -> list[str]:
    """`a, {b, c}, [d+4]` in three."""
    return [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text) if part.strip()]


def members(operand: str) -> list[str]:
    """Of a vector {a, b}; of a single register, itself."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


@dataclass
class Kernel:
    """One .entry. `offsets` are those of its parameters in memory."""

    name: str
    offsets: dict[str, int]
    shared: frozenset[str]
    registers: dict[str, str] = field(default_factory=dict)  # to their C++ types
    lines: list[str] = field(default_factory=lambda: [""])
    accesses: int = 0  # instructions that read or write memory, so far
    loops: list[int] = field(default_factory=list)  # around the current instruction, from the outermost

    def add(self, statement: str) -> None:
        """One more statement of the current line of the source."""
        self.lines[-1] += statement + " "

    # --- operands ---

    def variable(self, register: str) -> str:
        name = register.lstrip("%").replace("$", "_")
        if name not in self.registers:
            raise UnknownError(f"no register {register} was declared")
        return name

    def value(self, operand: str, type_: str) -> str:
        """C++ of what an operand is worth as this type."""
        cpp = TYPES[type_]
        if operand in SPECIAL:
            return f"{cpp}({SPECIAL[operand]})"
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"as<{cpp}>(0x{found[1]}u)"
        if found := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return f"as<{cpp}>(uint64_t{{0x{found[1]}u}})"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", operand):
            return f"as<{cpp}>(uint64_t({operand}ll))"
        if operand in self.shared:
            return f"{cpp}{{0}}"  # all of it is one array, which begins there
        if operand in self.offsets:
            return f"as<{cpp}>(parameters + {self.offsets[operand]})"
        return f"as<{cpp}>({self.variable(operand)})"

    def assign(self, register: str, type_: str, expression: str) -> str:
        if register == "_":
            return f"static_cast<void>({expression});"
        return f"set<{TYPES[type_]}>({self.variable(register)}, {expression});"

    def address(self, operand: str, space: str) -> str:
        found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not found:
            raise UnknownError(f"the address {operand}")
        base, offset = found[1], found[2] or "0"
        if space == "shared":
            return f"uint32_t({self.value(base, 'u32')} + ({offset}))"
        return f"uint64_t({self.value(base, 'u64')} + ({offset}))"

    def access(self) -> str:
        """Which of the kernel's accesses this is, to be told from others."""
        self.accesses += 1
        trips = ", ".join(f"trip_{loop}" for loop in self.loops)
        return f'{{"{self.name}", {self.accesses}, iteration({trips})}}'


@dataclass(frozen=True)
class Instruction:
    """`opcode` is split at its points."""

    kernel: Kernel
    opcode: list[str]
    operands: list[str]

    @property
    def type(self) -> str:
        """The type operated on, which an opcode names last."""
        return self.types[-1]

    @property
    def types(self) -> list[str]:
        found = [part for part in self.opcode if part in TYPES]
        if not found:
            raise UnknownError("an opcode without a type")
        return found

    @property
    def floats(self) -> bool:
        """Whether numbers of this type are; those of half precision are not computed with."""
        if self.type[0] not in "usb" and self.type not in ("f32", "f64", "pred"):
            raise UnknownError(f"arithmetic of {self.type}")
        return self.type in ("f32", "f64")

    def value(self, i: int, type_: str | None = None) -> str:
        return self.kernel.value(self.operands[i], type_ or self.type)

    def result(self, expression: str, type_: str | None = None) -> str:
        return self.kernel.assign(self.operands[0], type_ or self.type, expression)

    def require(self, *modifiers: str) -> None:
        """Of what may stand in the opcode, types apart."""
        for part in self.opcode[1:]:
            if part not in TYPES and part not in modifiers:
                raise UnknownError(f"the modifier {part}")


# --- instructions ---


def _space(i: Instruction) -> str:
    named = [part for part in i.opcode if part in SPACES]
    if not named:
        raise UnknownError("memory of no named space")
    return named[0]


def _vector(i: Instruction) -> int:
    return next((int(part[1]) for part in i.opcode if part in ("v2", "v4")), 1)


def _load(i: Instruction) -> str:
    i.require(*SPACES, "v2", "v4", "nc")
    space, cpp, k = _space(i), TYPES[i.type], i.kernel
    registers = members(i.operands[0])
    moves = " ".join(k.assign(register, i.type, f"from[{j}]") for j, register in enumerate(registers))
    if space == "param":
        base = re.fullmatch(r"\[([\w$]+)(?:\+(\d+))?\]", i.operands[1])
        where = (
            f"parameters + {k.offsets[base[1]] + int(base[2] or 0)}"
            if base and base[1] in k.offsets
            else f"as<const unsigned char*>({k.address(i.operands[1], space)})"
        )
        return f"{{ {cpp} from[{len(registers)}]; std::memcpy(from, {where}, sizeof from); {moves} }}"
    pointer = f"load_{space}<{cpp}, {_vector(i)}>({k.address(i.operands[1], space)}, {k.access()})"
    return f"{{ const {cpp}* from = {pointer}; {moves} }}"


def _store(i: Instruction) -> str:
    i.require(*SPACES, "v2", "v4")
    space, cpp, k = _space(i), TYPES[i.type], i.kernel
    moves = " ".join(f"to[{j}] = {k.value(r, i.type)};" for j, r in enumerate(members(i.operands[1])))
    pointer = f"store_{space}<{cpp}, {_vector(i)}>({k.address(i.operands[0], space)}, {k.access()})"
    return f"{{ {cpp}* to = {pointer}; {moves} }}"


def _mov(i: Instruction) -> str:
    to, source = i.operands
    half = f"b{bits_of(i.type) // 2}" if i.type != "pred" else ""
    if to[0] == "{":
        low, high = members(to)
        parts = [
            "" if register == "_" else i.kernel.assign(register, half, f"{TYPES[half]}(both >> {shift})")
            for register, shift in ((low, 0), (high, bits_of(half)))
        ]
        return f"{{ const auto both = {i.kernel.value(source, i.type)}; {' '.join(parts)} }}"
    if source[0] == "{":
        low, high = (f"{TYPES[i.type]}({i.kernel.value(part, half)})" for part in members(source))
        return i.result(f"{low} | {high} << {bits_of(half)}")
    return i.result(i.value(1))


def _cvta(i: Instruction) -> str:
    i.require("to", "global")  # addresses of global memory are generic addresses
    return i.result(i.value(1))


def _sum(sign: str) -> Callable[[Instruction], str]:
    def translate(i: Instruction) -> str:
        i.require("rn")
        type_ = i.type if i.floats else unsigned(i.type)
        return i.result(f"{TYPES[type_]}({i.value(1, type_)} {sign} {i.value(2, type_)})", type_)

    return translate


def _product(i: Instruction) -> str:
    """mul, mad and fma."""
    i.require("rn", "lo", "hi", "wide")
    adds = len(i.operands) == 4
    if i.floats:
        if adds:
            return i.result(f"std::fma({i.value(1)}, {i.value(2)}, {i.value(3)})")
        return i.result(f"{i.value(1)} * {i.value(2)}")
    if "lo" in i.opcode:
        type_ = unsigned(i.type)
        product = f"{i.value(1, type_)} * {i.value(2, type_)}" + (f" + {i.value(3, type_)}" if adds else "")
        return i.result(f"{TYPES[type_]}({product})", type_)
    wide = {"s32": "int64_t", "u32": "uint64_t", "s64": "__int128", "u64": "unsigned __int128"}.get(i.type)
    if wide is None:
        raise UnknownError(f"a product of {i.type}")
    product = f"{wide}({i.value(1)}) * {i.value(2)}"
    if "hi" in i.opcode:
        high = f"{TYPES[i.type]}(({product}) >> {bits_of(i.type)})"
        return i.result(f"{TYPES[i.type]}({high} + {i.value(3)})" if adds else high)
    type_ = f"{i.type[0]}{2 * bits_of(i.type)}"
    return i.result(f"{wide}({product} + {i.value(3, type_)})" if adds else product, type_)


def _div(i: Instruction) -> str:
    i.require("rn")
    if i.floats:
        return i.result(f"{i.value(1)} / {i.value(2)}")
    return i.result(f"divide({i.value(1)}, {i.value(2)})")


def _sqrt(i: Instruction) -> str:
    i.require("rn")
    return i.result(f"std::sqrt({i.value(1)})")


def _rcp(i: Instruction) -> str:
    i.require("rn")
    return i.result(f"1 / {i.value(1)}")


def _extremum(i: Instruction) -> str:
    i.require()
    if i.floats:
        raise UnknownError("an extremum of floats")
    return i.result(f"std::{i.opcode[0]}({i.value(1)}, {i.value(2)})")


def _neg(i: Instruction) -> str:
    i.require()
    if i.floats:
        return i.result(f"-{i.value(1)}")
    return i.result(f"{TYPES[unsigned(i.type)]}(0 - {i.value(1, unsigned(i.type))})", unsigned(i.type))


def _logic(sign: str) -> Callable[[Instruction], str]:
    return lambda i: i.result(f"{TYPES[i.type]}({i.value(1)} {sign} {i.value(2)})")


def _not(i: Instruction) -> str:
    return i.result(f"!{i.value(1)}" if i.type == "pred" else f"{TYPES[i.type]}(~{i.value(1)})")


def _shift(i: Instruction) -> str:
    direction = {"shl": "left", "shr": "right"}[i.opcode[0]]
    return i.result(f"shift_{direction}({i.value(1)}, {i.value(2, 'u32')})")


def _selp(i: Instruction) -> str:
    return i.result(f"{i.value(3, 'pred')} ? {i.value(1)} : {i.value(2)}")


def _setp(i: Instruction) -> str:
    if len(i.opcode) == 3 and len(i.operands) == 3 and i.floats and i.opcode[1] in UNORDERED:
        return i.result(f"!({i.value(1)} {UNORDERED[i.opcode[1]]} {i.value(2)})", "pred")
    if len(i.opcode) != 3 or len(i.operands) != 3 or i.opcode[1] not in COMPARISONS:
        raise UnknownError("a comparison of this kind")
    if i.floats and i.opcode[1] == "ne":
        raise UnknownError("a comparison that NaN fails")  # in C++ it passes
    return i.result(f"{i.value(1)} {COMPARISONS[i.opcode[1]]} {i.value(2)}", "pred")


def _cvt(i: Instruction) -> str:
    i.require("rn")
    to, source = i.types[0], i.types[-1]
    if (to, source) in (("bf16x2", "f32"), ("f16x2", "f32")):  # the first operand is the upper half
        kind = "BFloat16" if to == "bf16x2" else "Float16"
        return i.result(f"narrow_pair({kind}{{}}, {i.value(2)}, {i.value(1)})", "b32")
    if (to, source) in (("bf16", "f32"), ("f16", "f32")):
        kind = "BFloat16" if to == "bf16" else "Float16"
        return i.result(f"narrow<{kind}>({i.value(1)}).bits", "b16")
    if (to, source) in (("f32", "bf16"), ("f32", "f16")):
        kind = "BFloat16" if source == "bf16" else "Float16"
        return i.result(f"widen({kind}{{{i.value(1, 'b16')}}})", "f32")
    if to[0] in "us" and source[0] in "us":
        return i.result(f"{TYPES[to]}({i.value(1, source)})", to)
    if (source[0] in "us" and to in ("f32", "f64")) or (to, source) in (("f64", "f32"), ("f32", "f64")):
        return i.result(f"{TYPES[to]}({i.value(1, source)})", to)
    raise UnknownError("a conversion of this kind")


def _bra(i: Instruction) -> str:
    i.require("uni")
    return f"goto {_label(i.operands[0])};"


def _bar(i: Instruction) -> str:
    i.require("sync")
    if i.operands != ["0"]:
        raise UnknownError("a barrier other than 0, or of some threads")
    return "device::synchronize();"


def _cp(i: Instruction) -> str:
    opcode = ".".join(i.opcode)
    if opcode == "cp.async.commit_group":
        return "device::commit_copies();"
    if opcode == "cp.async.wait_group":
        return f"device::wait_for_copies<{i.operands[0]}>();"
    if opcode != "cp.async.cg.shared.global" or i.operands[2] != "16":
        raise UnknownError("a copy of this kind")
    k = i.kernel
    bytes_read = k.value(i.operands[3], "u32") if len(i.operands) == 4 else "16"
    to, source = k.address(i.operands[0], "shared"), k.address(i.operands[1], "global")
    return f"copy({to}, {source}, {bytes_read}, {k.access()}, {k.access()});"


def _ldmatrix(i: Instruction) -> str:
    if i.opcode[1:5] != ["sync", "aligned", "m8n8", "x4"] or i.opcode[-2:] != ["shared", "b16"]:
        raise UnknownError("matrices of this kind")
    k, transposed = i.kernel, str("trans" in i.opcode).lower()
    moves = " ".join(k.assign(r, "b32", f"r[{j}]") for j, r in enumerate(members(i.operands[0])))
    load = f"matrices<{transposed}>(r, {k.address(i.operands[1], 'shared')}, {k.access()});"
    return f"{{ uint32_t r[4]; {load} {moves} }}"


def _mma(i: Instruction) -> str:
    kinds = {"f16": ("m16n8k16", "Float16"), "bf16": ("m16n8k16", "BFloat16"), "tf32": ("m16n8k8", "float")}
    shape, element = kinds[i.types[1]]
    if i.opcode[1:6] != ["sync", "aligned", shape, "row", "col"]:
        raise UnknownError("a product of this kind")
    if i.types != ["f32", i.types[1], i.types[1], "f32"]:
        raise UnknownError("a product of these types")
    k = i.kernel
    d, a, b, c = map(members, i.operands)
    sums = ", ".join(k.value(register, "f32") for register in c)
    left = ", ".join(k.value(register, "b32") for register in a)
    right = ", ".join(k.value(register, "b32") for register in b)
    moves = " ".join(k.assign(register, "f32", f"d[{j}]") for j, register in enumerate(d))
    return (
        f"{{ float d[4] = {{{sums}}}; const uint32_t a[4] = {{{left}}}; "
        f"device::mma({element}{{}}, d, a, {right}); {moves} }}"
    )


def _shfl(i: Instruction) -> str:
    if i.opcode[1:] != ["sync", "down", "b32"]:
        raise UnknownError("a shuffle of this kind")
    k, (to, _, within) = i.kernel, i.operands[0].partition("|")
    call = f"shuffle_down({i.value(1)}, {', '.join(i.value(j, 'u32') for j in (2, 3, 4))}, within)"
    also = k.assign(within, "pred", "within") if within else ""
    return f"{{ bool within; {k.assign(to, 'b32', call)} {also} }}"


TRANSLATE: dict[str, Callable[[Instruction], str]] = {
    "ld": _load,
    "st": _store,
    "mov": _mov,
    "cvta": _cvta,
    "add": _sum("+"),
    "sub": _sum("-"),
    **dict.fromkeys(("mul", "mad", "fma"), _product),
    "div": _div,
    "sqrt": _sqrt,
    "rcp": _rcp,
    **dict.fromkeys(("min", "max"), _extremum),
    "neg": _neg,
    "and": _logic("&"),
    "or": _logic("|"),
    "xor": _logic("^"),
    "not": _not,
    **dict.fromkeys(("shl", "shr"), _shift),
    "selp": _selp,
    "setp": _setp,
    "cvt": _cvt,
    "bra": _bra,
    "bar": _bar,
    "cp": _cp,
    "ldmatrix": _ldmatrix,
    "mma": _mma,
    "shfl": _shfl,
    "ret": lambda i: "return;",
}


# --- kernels ---


def _label(name: str) -> str:
    return name.replace("$", "_")


def _statements(body: str) -> Iterator[str]:
    """Labels (with a colon), instructions and directives, one by one; blocks of inline assembly opened."""
    for part in body.split(";"):
        text = part.strip()
        while text:
            if found := re.match(r"(\$?[\w$]+:|[{}])\s*", text):
                if found[1] not in "{}":
                    yield found[1]
                text = text[found.end() :]
            else:
                yield text
                break


def _declare(kernel: Kernel, type_: str, names: str) -> None:
    for name in map(str.strip, names.split(",")):
        several = re.fullmatch(r"%(\w+)<(\d+)>", name)
        each = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name.lstrip("%")]
        kernel.registers.update(dict.fromkeys(each, TYPES[type_]))


def _loops(statements: list[str]) -> dict[int, int]:
    """Where loops begin, at a label, and where the last branch back to it stands."""
    labels = {text[:-1]: at for at, text in enumerate(statements) if text.endswith(":")}
    loops = {}
    for at, text in enumerate(statements):
        if (found := re.search(r"\bbra(?:\.uni)?\s+(\S+)$", text)) and labels[found[1]] <= at:
            loops[labels[found[1]]] = at
    return loops


def _translate(kernel: Kernel, body: str, files: dict[str, str]) -> None:
    statements = list(_statements(body))
    loops = _loops(statements)
    kernel.registers.update({f"trip_{begin}": "uint32_t" for begin in loops})
    for at, text in enumerate(statements):
        kernel.loops = [begin for begin, end in sorted(loops.items()) if begin <= at <= end]
        if found := re.fullmatch(r"(\$?[\w$]+):", text):
            kernel.add(f"{_label(found[1])}:;")
            if at in loops:
                # Of those that only overlap, none starts again with the other.
                inner = [begin for begin, end in loops.items() if at < begin and end <= loops[at]]
                kernel.add(" ".join([f"++trip_{at};", *(f"trip_{begin} = 0;" for begin in inner)]))
        elif found := re.fullmatch(r"LOC (\d+) (\d+)", text):
            kernel.lines += [f'#line {found[2]} "{files[found[1]]}"', ""]
        elif found := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S):
            _declare(kernel, found[1], found[2])
        else:
            found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", text, re.S)
            try:
                if not found:
                    raise UnknownError("a statement of this kind")
                instruction = Instruction(kernel, found[3].split("."), split_operands(found[4]))
                if instruction.opcode[0] not in TRANSLATE:
                    raise UnknownError("an opcode of this kind")
                guard = f"if ({found[1]}{kernel.variable(found[2])}) " if found[2] else ""
                kernel.add(guard + TRANSLATE[instruction.opcode[0]](instruction))
            except UnknownError as error:
                raise UnknownError(f"{kernel.name}: {error}: {text}") from None


def _offsets(parameters: str) -> dict[str, int]:
    """Each parameter lies at a multiple of its alignment, one after the other."""
    offsets, end = {}, 0
    pattern = (
        r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
    )
    for found in re.finditer(pattern, parameters):
        size = bits_of(found[2]) // 8
        alignment = int(found[1] or size)
        end = (end + alignment - 1) // alignment * alignment
        offsets[found[3]] = end
        end += size * int(found[4] or 1)
    return offsets


def _of_the_kernel(text: str) -> str:
    """Lines of functions that were inlined become those of the kernel that called them."""
    callers: dict[tuple[str, ...], tuple[str, ...]] = {}

    def line(found: re.Match[str]) -> str:
        place, caller = found.group(1, 2, 3), found.group(4, 5, 6)
        if caller[0]:
            callers[place] = caller
        else:
            callers.pop(place, None)
        seen = set()
        while place in callers and place not in seen:
            seen.add(place)
            place = callers[place]
        return f"LOC {place[0]} {place[1]};"

    inlined = r"(?:,\s*function_name\s+\S+\s*,?\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
    return re.sub(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)" + inlined + r"[^\n]*", line, text)


def translate(text: str) -> dict[str, str]:
    """C++ of each kernel, by its symbol."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text))
    text = _of_the_kernel(text)
    text = re.sub(r"\.pragma[^;\n]*;", "", text)
    shared = frozenset(re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text))
    translated = {}
    for name, parameters, body in re.findall(
        r"\.entry\s+([\w$]+)\s*\((.*?)\)[^{]*\{(.*?)\n\}", text, flags=re.S
    ):
        kernel = Kernel(name, _offsets(parameters), shared)
        _translate(kernel, body, files)
        declarations = [f"{type_} {register} = {{}};" for register, type_ in kernel.registers.items()]
        translated[name] = "\n".join(
            [
                '#include "ptx.h"',
                "using namespace sepconv;",
                "using namespace sepconv::cuda;",
                "using namespace sepconv::cuda_host::ptx;",
                f'extern "C" void {name}([[maybe_unused]] const unsigned char* parameters) {{',
                *declarations,
                *kernel.lines,
                "}",
                "",
            ]
        )
    return translated


if __name__ == "__main__":
    try:
        print("\n".join(translate(Path(sys.argv[1]).read_text()).values()))
    except UnknownError as error:
        sys.exit(str(error))
