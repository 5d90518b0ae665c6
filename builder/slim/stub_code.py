"""The text of a stub, in assembler, and the linker's list of its versions. Pure: the same symbols make the same bytes.

Every function loads the address and length of its own name and jumps to one tail, which writes one line to stderr
(writev) and raises SIGABRT (tgkill). Both are system calls made directly, so a stub needs no library, works before any
other is relocated, and has no relocation of its own. A handler of SIGABRT, such as Python's faulthandler, still runs; where
one returns, or the signal is blocked or ignored, it is raised once more with neither, and after that the process exits with
134, which is what a shell shows for SIGABRT.
Sources: the kernel's syscall tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); struct
kernel_sigaction is 32 bytes on both machines, and all zero it is SIG_DFL with an empty mask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from builder.slim.symbols import Symbol, Version

WRITABLE = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]*")
"""Names that an assembler takes as they are; compilers make no others."""
PREFIX = "stub.."
"""Of labels; two dots, so that no name of C or C++ is like it."""
MAX_ALIGN = 64

X86_64 = """
{prefix}abort:
    sub $64, %rsp
    .cfi_adjust_cfa_offset 64
    lea {prefix}before(%rip), %rax
    mov %rax, (%rsp)
    movq ${before}, 8(%rsp)
    mov %rdi, 16(%rsp)
    mov %rsi, 24(%rsp)
    lea {prefix}after(%rip), %rax
    mov %rax, 32(%rsp)
    movq ${after}, 40(%rsp)
    mov $20, %eax               # writev(2, the three parts, 3)
    mov $2, %edi
    mov %rsp, %rsi
    mov $3, %edx
    syscall
    mov $39, %eax               # getpid
    syscall
    mov %eax, %r8d
    mov $186, %eax              # gettid
    syscall
    mov %eax, %r9d
    mov $234, %eax              # tgkill(pid, tid, SIGABRT)
    mov %r8d, %edi
    mov %r9d, %esi
    mov $6, %edx
    syscall
    xor %eax, %eax
    mov %rax, (%rsp)
    mov %rax, 8(%rsp)
    mov %rax, 16(%rsp)
    mov %rax, 24(%rsp)
    mov $13, %eax               # rt_sigaction(SIGABRT, default, 0, 8)
    mov $6, %edi
    mov %rsp, %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    mov $14, %eax               # rt_sigprocmask(SIG_SETMASK, none, 0, 8)
    mov $2, %edi
    mov %rsp, %rsi
    xor %edx, %edx
    mov $8, %r10d
    syscall
    mov $234, %eax              # tgkill, again
    mov %r8d, %edi
    mov %r9d, %esi
    mov $6, %edx
    syscall
    mov $231, %eax              # exit_group(134)
    mov $134, %edi
    syscall
    ud2
"""
AARCH64 = """
{prefix}abort:
    sub sp, sp, #64
    .cfi_adjust_cfa_offset 64
    adrp x2, {prefix}before
    add x2, x2, :lo12:{prefix}before
    mov x3, #{before}
    stp x2, x3, [sp]
    stp x0, x1, [sp, #16]
    adrp x2, {prefix}after
    add x2, x2, :lo12:{prefix}after
    mov x3, #{after}
    stp x2, x3, [sp, #32]
    mov x0, #2                  // writev(2, the three parts, 3)
    mov x1, sp
    mov x2, #3
    mov x8, #66
    svc #0
    mov x8, #172                // getpid
    svc #0
    mov x10, x0
    mov x8, #178                // gettid
    svc #0
    mov x11, x0
    mov x0, x10                 // tgkill(pid, tid, SIGABRT)
    mov x1, x11
    mov x2, #6
    mov x8, #131
    svc #0
    stp xzr, xzr, [sp]
    stp xzr, xzr, [sp, #16]
    mov x0, #6                  // rt_sigaction(SIGABRT, default, 0, 8)
    mov x1, sp
    mov x2, #0
    mov x3, #8
    mov x8, #134
    svc #0
    mov x0, #2                  // rt_sigprocmask(SIG_SETMASK, none, 0, 8)
    mov x1, sp
    mov x2, #0
    mov x3, #8
    mov x8, #135
    svc #0
    mov x0, x10                 // tgkill, again
    mov x1, x11
    mov x2, #6
    mov x8, #131
    svc #0
    mov x0, #134                // exit_group(134)
    mov x8, #94
    svc #0
    brk #0
"""
TAILS = {"x86_64": X86_64, "aarch64": AARCH64}
ENTRIES = {
    "x86_64": "    lea {text}(%rip), %rdi\n    mov ${size}, %esi\n    jmp {prefix}abort\n",
    "aarch64": "    adrp x0, {text}\n    add x0, x0, :lo12:{text}\n    mov x1, #{size}\n    b {prefix}abort\n",
}


def message(soname: str, name: str) -> tuple[str, str]:
    """What a stub says before and after the symbol's name. name: as image.stubs has it."""
    return "stub: ", (
        f" of {soname} was taken out of this image; take {name} out of image.stubs in builder.yaml and build again\n"
    )


def assembler(machine: str, soname: str, name: str, symbols: Sequence[Symbol], note: bytes) -> str:
    """The source. note: description of the note that tells a stub from a library (see stub.py)."""
    before, after = message(soname, name)
    labels = [symbol.name if not symbol.version else f"{PREFIX}{number}" for number, symbol in enumerate(symbols)]
    functions = [(label, symbol) for label, symbol in zip(labels, symbols, strict=True) if symbol.kind in ("function", "ifunc")]
    data = [(label, symbol) for label, symbol in zip(labels, symbols, strict=True) if symbol.kind not in ("function", "ifunc")]
    said = {symbol.name: f"{PREFIX}said.{number}" for number, (_, symbol) in enumerate(functions)}
    lines = [".text", ".balign 16", ".cfi_startproc"]
    for label, symbol in functions:
        lines += [*_declared(label, symbol, "function"), ".balign 8", f"{label}:"]
        lines += [ENTRIES[machine].format(text=said[symbol.name], size=len(symbol.name), prefix=PREFIX).rstrip()]
        lines += [f".size {label}, . - {label}"]
    lines += [TAILS[machine].format(prefix=PREFIX, before=len(before), after=len(after)).strip("\n"), ".cfi_endproc"]
    lines += ['.section .rodata, "a", %progbits', *_text("before", before), *_text("after", after)]
    lines += [f'{label}: .ascii "{text}"' for text, label in said.items()]
    lines += _storage(".bss", "aw", "object", [(label, one) for label, one in data if one.kind != "tls"])
    lines += _storage(".tbss", "awT", "tls_object", [(label, one) for label, one in data if one.kind == "tls"])
    lines += ['.section .note.builder.stub, "a", %note', ".balign 4", f".4byte 8, {len(note)}, {NOTE_TYPE}"]
    lines += ['.asciz "builder"', f".byte {', '.join(map(str, note))}", ".balign 4"]
    lines += ['.section .note.GNU-stack, "", %progbits']
    return "\n".join(lines) + "\n"


NOTE_TYPE = 0x53545542  # "STUB"


def version_script(versions: Sequence[Version]) -> str:
    """The linker's version script: nodes only, as the assembler gives each symbol its version; and no label gets out.

    No `local: *`: a library may have symbols without a version beside those that have one.
    """
    nodes = []
    for number, version in enumerate(versions):
        own = f" local: {PREFIX}*;" if number == 0 else ""
        nodes.append(f'"{version.name}" {{{own} }} {" ".join(_quoted(parent) for parent in version.parents)};')
    return "\n".join(nodes) + "\n"


def _quoted(name: str) -> str:
    return f'"{name}"'


def _declared(label: str, symbol: Symbol, kind: str) -> list[str]:
    lines = [f".{'weak' if symbol.bind == 'weak' else 'globl'} {label}", f".type {label}, %{kind}"]
    if symbol.protected:
        lines.append(f".protected {label}")
    if symbol.version:
        lines.append(f".symver {label}, {symbol.text}")
    return lines


def _text(label: str, text: str) -> list[str]:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return [f'{PREFIX}{label}: .ascii "{escaped}"']


def _storage(section: str, flags: str, kind: str, data: Sequence[tuple[str, Symbol]]) -> list[str]:
    """Zeroed bytes, aligned as the originals were; names of one address stay names of one address."""
    if not data:
        return []
    lines, places = [f'.section {section}, "{flags}", %nobits'], sorted({symbol.value for _, symbol in data})
    for place in places:
        here = [(label, symbol) for label, symbol in data if symbol.value == place]
        size = max(symbol.size for _, symbol in here)
        lines += [line for label, symbol in here for line in _declared(label, symbol, kind)]
        lines += [f".balign {max(1, min(MAX_ALIGN, place & -place or MAX_ALIGN))}", *(f"{label}:" for label, _ in here)]
        lines += [*(f".size {label}, {symbol.size}" for label, symbol in here), f".zero {max(8, size)}"]
    return lines
