"""``/init``: a static program of a few hundred bytes that starts Python with an environment of our own.

The kernel turns unknown ``a=b`` words of its command line into the environment of process 1. The dynamic
loader (``LD_PRELOAD``, ``LD_TRACE_LOADED_OBJECTS``) and the interpreter (``PYTHONHOME``, ``PYTHONMALLOC``)
read theirs before any code of ours runs; a wrong word there ends in a kernel panic. So the first program is
this one: no libc, no loader, no environment of its own. What it was given it passes on as arguments:

    python OPTIONS... -c CODE  ENV... ""  ARGV...

It is written here byte by byte, so that building an image takes no compiler. References: System V ABI, AMD64
supplement, 3.4.1 "Initial Stack and Register State" and A.2 "Linux conventions"; elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

#: Where the file is mapped: the usual address of a static x86-64 program.
BASE = 0x400000
ELF_HEADER = 64
PROGRAM_HEADER = 56

_NR_WRITE = 1
_NR_EXECVE = 59
_NR_EXIT_GROUP = 231
_STDERR = 2
#: What a shell answers for a program that is not there.
EXIT_STATUS = 127

#: All that the interpreter and the dynamic loader see. The hash seed lets the interpreter start without
#: random numbers, which early in a boot may not exist yet.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "TERM": "linux",
    "PYTHONHOME": "/usr",
    "PYTHONPATH": "/usr/lib/pyinit",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PYTHONCOERCECLOCALE": "0",
}
OPTIONS = ("-S", "-s", "-P", "-B")
CODE = "from pyinit.__main__ import main;main()"


def build(python: str) -> bytes:
    """The ELF file that starts ``python``, an absolute path in the image, as PID 1."""
    return assemble(
        (python, *OPTIONS, "-c", CODE),
        ENVIRONMENT,
        f"pyinit: E-IMAGE cannot execute {python}; build the image again\n",
    )


def assemble(arguments: Sequence[str], environment: Mapping[str, str], message: str) -> bytes:
    """The ELF file that executes ``arguments[0]`` with ``environment``.

    Its argument list is ``arguments``, the environment words the program was started with, an empty word, and
    the arguments it was started with. When that fails, ``message`` goes to standard error.
    """
    strings = [argument.encode() + b"\0" for argument in arguments]
    strings += [f"{name}={value}".encode() + b"\0" for name, value in environment.items()]
    text = message.encode()

    # Layout: headers, code, the two pointer tables (8-byte aligned), strings. The code has the same length
    # whatever the addresses in it, so a first pass with zeros tells where everything else goes.
    code_at = BASE + ELF_HEADER + PROGRAM_HEADER
    length = len(_code(len(arguments), 0, 0, 0, 0, 0, len(text)))
    table_at = code_at + length + (-length % 8)
    words = len(arguments) + len(environment) + 1
    string_at = table_at + 8 * words
    addresses = []
    for string in strings:
        addresses.append(string_at)
        string_at += len(string)
    message_at = string_at
    environment_at = table_at + 8 * len(arguments)
    # The empty word is the zero byte that ends the first string.
    empty_at = addresses[0] + len(strings[0]) - 1

    code = _code(len(arguments), table_at, environment_at, empty_at, addresses[0], message_at, len(text))
    body = code + bytes(-length % 8)
    body += struct.pack(f"<{words}Q", *addresses, 0) + b"".join(strings) + text
    return _elf(body)


def _code(count: int, table: int, environment: int, empty: int, path: int, message: int, size: int) -> bytes:
    """The machine code.

    At entry the stack holds argc, the argv pointers, 0, the environment pointers, 0; the direction flag is
    clear. All addresses are below 4 GiB, so that 32-bit moves, which clear the upper half, reach them.
    """
    immediate = struct.Struct("<I").pack
    return b"".join(
        (
            b"\x48\x8b\x1c\x24",  # mov rbx, [rsp]              argc
            b"\x4c\x8d\x64\x24\x08",  # lea r12, [rsp+8]            argv
            b"\x4d\x8d\x6c\xdc\x08",  # lea r13, [r12+rbx*8+8]      envp, behind the 0 that ends argv
            b"\x31\xed",  # xor ebp, ebp                number of environment words
            b"\x49\x83\x7c\xed\x00\x00",  # count: cmp qword [r13+rbp*8], 0
            b"\x74\x05",  # je counted
            b"\x48\xff\xc5",  # inc rbp
            b"\xeb\xf3",  # jmp count
            # counted: room for the new argv: ours, the environment, "", the old argv, 0
            b"\x48\x8d\x84\x2b" + immediate(count + 2),  # lea rax, [rbx+rbp+count+2]
            b"\x48\xc1\xe0\x03",  # shl rax, 3                  in bytes
            b"\x48\x29\xc4",  # sub rsp, rax
            b"\x48\x89\xe7",  # mov rdi, rsp                where the next pointer goes
            b"\xbe" + immediate(table),  # mov esi, table
            b"\xb9" + immediate(count),  # mov ecx, count
            b"\xf3\x48\xa5",  # rep movsq                   our arguments
            b"\x4c\x89\xee",  # mov rsi, r13
            b"\x48\x89\xe9",  # mov rcx, rbp
            b"\xf3\x48\xa5",  # rep movsq                   the environment words
            b"\xb8" + immediate(empty),  # mov eax, empty
            b"\x48\xab",  # stosq                       ""
            b"\x4c\x89\xe6",  # mov rsi, r12
            b"\x48\x8d\x4b\x01",  # lea rcx, [rbx+1]            with the 0 that ends them
            b"\xf3\x48\xa5",  # rep movsq                   the old arguments
            b"\xb8" + immediate(_NR_EXECVE),  # mov eax, execve
            b"\xbf" + immediate(path),  # mov edi, path
            b"\x48\x89\xe6",  # mov rsi, rsp                argv
            b"\xba" + immediate(environment),  # mov edx, environment
            b"\x0f\x05",  # syscall                     returns only when it failed
            b"\xb8" + immediate(_NR_WRITE),  # mov eax, write
            b"\xbf" + immediate(_STDERR),  # mov edi, 2
            b"\xbe" + immediate(message),  # mov esi, message
            b"\xba" + immediate(size),  # mov edx, size
            b"\x0f\x05",  # syscall
            b"\xb8" + immediate(_NR_EXIT_GROUP),  # mov eax, exit_group
            b"\xbf" + immediate(EXIT_STATUS),  # mov edi, 127
            b"\x0f\x05",  # syscall
        )
    )


def _elf(body: bytes) -> bytes:
    """Wrap code and data into a program of one segment, entered at its first byte."""
    size = ELF_HEADER + PROGRAM_HEADER + len(body)
    header = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)  # 64 bits, little endian, version 1, System V
    header += struct.pack(
        "<HHIQQQIHHHHHH",
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,  # EV_CURRENT
        BASE + ELF_HEADER + PROGRAM_HEADER,  # entry
        ELF_HEADER,  # program headers follow
        0,  # no section headers
        0,
        ELF_HEADER,
        PROGRAM_HEADER,
        1,
        0,
        0,
        0,
    )
    header += struct.pack(
        "<IIQQQQQQ",
        1,  # PT_LOAD
        0x4 | 0x1,  # readable, executable
        0,  # the whole file...
        BASE,  # ...at this address
        BASE,
        size,
        size,
        0x1000,
    )
    return header + body
