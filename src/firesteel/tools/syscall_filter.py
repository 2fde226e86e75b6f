"""Which system calls a sandboxed program may not make: a seccomp filter, as the kernel reads it.

Namespaces do not cover everything. Left out are calls whose memory no limit of a process counts (System V segments,
semaphores and queues, files without a place), those that reach beyond namespaces (keyrings, sockets of virtual
machines), and large parts of the kernel that a short program never needs.
"""

from __future__ import annotations

import errno
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# Numbers of the calls on x86_64 and on aarch64.
REFUSED: dict[str, tuple[int, int]] = {
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41),
    "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_setup": (206, 0), "personality": (135, 92),
}  # fmt: skip
_SOCKET = {"x86_64": 41, "aarch64": 198}
SOCKET_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: the families that have a network namespace of their own to be empty in."""

# struct seccomp_data: the call's number, the architecture, 8 bytes of address, then the arguments.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


def filter_program(machine: str) -> bytes | None:
    """The filter for a machine (as `platform.machine` calls it); None for one whose calls are not known here.

    Refused calls fail with EPERM, sockets of other families with EAFNOSUPPORT, and calls in the manner of another
    architecture (32 bits on a 64-bit machine) with ENOSYS.
    """
    if machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine)
    unknown = _FAIL | errno.ENOSYS
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, unknown)]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_IF_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, unknown)]
    for numbers in REFUSED.values():
        code += [(_IF_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    code += [(_IF_EQUAL, 1, 0, _SOCKET[machine]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in SOCKET_FAMILIES:
        code += [(_IF_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    code += [(_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
