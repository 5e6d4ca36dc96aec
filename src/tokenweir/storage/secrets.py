"""Secrets that live outside the database: the pepper of the token digests, the key that seals stored credentials, and the upstream keys themselves.

The rules it protects: a copy of the database alone lets nobody guess a token or open a credential; a file that holds a secret and that others may
read is refused, always; an upstream key is sent only to the upstream it was given for; nothing here prints, pickles or raises a secret. Change with
it: docs/KEYS.md, and `ports.Vault`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tokenweir.errors import CredentialUnusable, SecretExposed, SettingsInvalid
from tokenweir.ports import SealedCredential
from tokenweir.settings import Settings

KEY_BYTES: Final = 32
PEPPER_FILE: Final = "pepper"
SEAL_FILE: Final = "seal"
SECRET_FILE_BYTES_MAX: Final = 64 * 1024
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"
"""Written before every sealed text, so that another way of sealing can follow without guessing."""
_HEADER_SAFE: Final = re.compile(r"[!-~]{1,4096}\Z").match
"""Visible ASCII: anything else could not be sent in a header, or would end it."""


class FileVault:
    """Two keys of 32 bytes, and the way to the upstream keys that the settings and the directory name."""

    __slots__ = ("_pepper", "_seal", "_settings")

    def __init__(self, settings: Settings, *, pepper: bytes, seal: bytes) -> None:
        self._settings = settings
        self._pepper = pepper
        self._seal = AESGCM(seal)

    def __repr__(self) -> str:
        return "FileVault(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a vault cannot be pickled or copied")

    @property
    def pepper(self) -> bytes:
        """The key of every token digest."""
        return self._pepper

    def seal(self, credential_id: str, base_url: str, text: str) -> bytes:
        """The text under AES-256-GCM with a fresh nonce, bound to the credential and to the upstream."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._seal.encrypt(nonce, header_safe(text).encode(), _bound_to(credential_id, base_url))

    def upstream_key(self, credential: SealedCredential | None) -> str:
        """The key to send upstream; None asks for the one in the settings. Raises CredentialUnusable, or SecretExposed for a file others can read."""
        upstream = self._settings.upstream
        if credential is None:
            return configured_key(self._settings)
        if credential.base_url != upstream.base_url:
            raise CredentialUnusable(
                f"secret required: credential {credential.credential_id} was given for {credential.base_url} and is not sent to {upstream.base_url}; "
                "give it again with: tokenweir credential set"
            )
        kind, _, place = credential.source.partition(":")
        match kind:
            case "env":
                if not (text := os.environ.get(place, "")):
                    raise CredentialUnusable(f"credential {credential.credential_id} is in the environment variable {place}, which is not set here")
                return header_safe(text)
            case "file":
                return header_safe(read_private(Path(place)))
            case "sealed":
                return self._unseal(credential)
            case _:
                raise CredentialUnusable(f"credential {credential.credential_id} comes from {kind!r}, which this version does not know")

    def _unseal(self, credential: SealedCredential) -> str:
        version, nonce, body = credential.sealed[:1], credential.sealed[1 : 1 + _NONCE_BYTES], credential.sealed[1 + _NONCE_BYTES :]
        if version != _VERSION:
            raise CredentialUnusable(f"credential {credential.credential_id} was sealed by a newer version")
        try:
            return self._seal.decrypt(nonce, body, _bound_to(credential.credential_id, credential.base_url)).decode()
        except (InvalidTag, ValueError):
            raise CredentialUnusable(
                f"secret required: credential {credential.credential_id} was sealed with another key, for another upstream, or was altered; "
                "give it again with: tokenweir credential set"
            ) from None


def configured_key(settings: Settings) -> str:
    """The upstream key of the settings. It needs no binding: whoever may change the upstream there may read the key there too."""
    upstream = settings.upstream
    if upstream.api_key is not None:
        return header_safe(upstream.api_key.get_secret_value())
    if upstream.api_key_file is not None:
        return header_safe(read_private(upstream.api_key_file))
    raise CredentialUnusable("there is no upstream key: set upstream.api_key or upstream.api_key_file, or run: tokenweir credential set --org")


def secrets_dir(settings: Settings) -> Path:
    """Where the pepper and the sealing key are."""
    return settings.secrets_dir or settings.data_dir / "secrets"


def open_vault(settings: Settings) -> FileVault:
    """The vault of the settings. The two keys are made at first use; raises SecretExposed if others may read a file that holds a secret."""
    directory = secrets_dir(settings)
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(f"cannot create {directory}: {error.strerror}") from error
    if settings.secrets_dir is None and stat.S_IMODE(directory.stat().st_mode) & 0o077:
        raise SecretExposed(f"{directory} holds secrets and others may enter it; run: chmod 700 {directory}")
    if settings.upstream.api_key_file is not None and settings.upstream.api_key_file.exists():
        read_private(settings.upstream.api_key_file)
    return FileVault(settings, pepper=_key_in(directory / PEPPER_FILE), seal=_key_in(directory / SEAL_FILE))


def read_private(path: Path) -> str:
    """The text of a secret file without surrounding space. What is checked is the file that is read: it is opened first."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CredentialUnusable(f"the secret file {path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise CredentialUnusable(f"{path} is not a file")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretExposed(f"{path} holds a secret and others may read it (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {path}")
        content = os.read(handle, SECRET_FILE_BYTES_MAX + 1)
    finally:
        os.close(handle)
    try:
        if len(content) > SECRET_FILE_BYTES_MAX:
            raise ValueError("too long")
        return content.decode("ascii").strip()
    except ValueError:  # the decoder's own message would show a byte of the file
        raise CredentialUnusable(f"{path} does not hold a secret: it is too long, or not plain text") from None


def header_safe(text: str) -> str:
    """The key without surrounding space, if it can be sent in a header; the failure does not show it."""
    text = text.strip()
    if not _HEADER_SAFE(text):
        raise CredentialUnusable("the upstream key is empty or holds spaces or characters that no key has")
    return text


def _key_in(path: Path) -> bytes:
    """The 32 bytes that the file holds in hexadecimal; made first if there is no such file."""
    if not path.exists():
        _create(path)
    text = read_private(path)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsInvalid(f"{path} must hold {KEY_BYTES} bytes in hexadecimal; put it back from your copy, without it no key can be recognized")
    return key


def _create(path: Path) -> None:
    """Write a new key so that it appears whole or not at all, once, even if two processes start at the same moment."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first; its key is the one
        finally:
            draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingsInvalid(f"cannot create {path}: {error.strerror}") from error


def _bound_to(credential_id: str, base_url: str) -> bytes:
    """What AES-GCM authenticates along with the text. An id holds no newline, so no two pairs read the same."""
    return f"tokenweir credential\n{credential_id}\n{base_url}".encode()
