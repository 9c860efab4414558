"""LiveCodeBench's packed private tests: base64 of zlib of a pickle that holds one string of JSON.

A pickle is a program, so it is never run: its opcodes are read, and anything but one constant string is refused.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib

MAX_UNPACKED_BYTES = 512 << 20

_STRING = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def unpack_tests(packed: str, key: str) -> str:
    """The JSON text inside. Raises ValueError with a message for the user."""
    try:
        inflater = zlib.decompressobj()
        pickled = inflater.decompress(base64.b64decode(packed, validate=True), MAX_UNPACKED_BYTES)
    except (binascii.Error, ValueError, zlib.error):
        raise ValueError(f"{key} is neither JSON nor the packed form (base64 of zlib of a pickled string)") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError(f"{key} is cut short or unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
    text = None
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _STRING and text is None:
                text = argument
            elif opcode.name not in _HARMLESS:
                raise ValueError(f"{key} holds a pickle that is not one plain string ({opcode.name}); it was not run")
    except ValueError as error:
        if str(error).startswith(key):
            raise
        raise ValueError(f"{key} holds a broken pickle; fetch the file again") from None
    except (IndexError, UnicodeDecodeError, OverflowError):
        raise ValueError(f"{key} holds a broken pickle; fetch the file again") from None
    if text is None:
        raise ValueError(f"{key} holds a pickle without a string")
    return str(text)
