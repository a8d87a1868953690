"""Who may call the server: a file of names and tokens that only its owner can read.

A line is a name and a token; a colleague gets a line of their own, and the audit trail tells them apart.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from autocompress.errors import UsageError

FILE = ".server-tokens"
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,39})\s+([A-Za-z0-9_-]{32,200})")


class Tokens:
    """The people who may call, by token.

    Args:
        by_name: token of every person.
    """

    def __init__(self, by_name: Mapping[str, str]) -> None:
        self._by_name = dict(by_name)
        self._cookies = {name: _cookie(token) for name, token in by_name.items()}

    def of_token(self, token: str) -> str | None:
        """Name of the person with this token."""
        return _find(self._by_name, token)

    def of_cookie(self, value: str) -> str | None:
        """Name of the person whose browser holds this cookie."""
        return _find(self._cookies, value)

    def cookie(self, name: str) -> str:
        """What a browser keeps instead of the token: it opens this server, and no token can be made of it."""
        return self._cookies[name]

    @property
    def first(self) -> str:
        """The token of the first person of the file, who started the server."""
        return next(iter(self._by_name.values()))

    def hidden_in(self, text: str) -> str:
        """A text without any token or cookie in it, for logs."""
        for secret in (*self._by_name.values(), *self._cookies.values()):
            text = text.replace(secret, "[secret]")
        return text


def read_tokens(workspace: Path) -> Tokens:
    """The tokens of a workspace; the first time, a file with one for its owner is written.

    Raises:
        UsageError: the file can be read by others, or is not what it should be.
    """
    path = workspace / FILE
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"owner {secrets.token_urlsafe(32)}\n")
    except FileExistsError:
        pass
    with path.open(encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise UsageError(f"others can read {path}; `chmod 600 {path}`, or remove it to get a new token")
        lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or not all(found):
        raise UsageError(f"{path} must hold lines of a name and a token; remove it to get a new one")
    return Tokens({match[1]: match[2] for match in found if match})


def _find(secrets_by_name: Mapping[str, str], given: str) -> str | None:
    """Compares with every entry, so that the time says nothing."""
    match = None
    for name, secret in secrets_by_name.items():
        if hmac.compare_digest(secret.encode(), given.encode("utf-8", "replace")):
            match = name
    return match


def _cookie(token: str) -> str:
    return hmac.new(token.encode(), b"autocompress cookie", hashlib.sha256).hexdigest()
