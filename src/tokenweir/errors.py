"""The failures of Tokenweir, and whose fault each is.

A refusal that the design foresees is a value (see `policies`); what stands here is raised. Every failure has a stable `code` for programs, a
`fault` that says who can mend it, and its docstring as the default message. Failures are translated once, at the edge: the gateway turns them
into the provider's error shape (`wire.faults`), the command line into one sentence and an exit code.

    TokenweirError
    ├── CallerError                 the request is at fault; sending it again unchanged will fail again
    │   ├── InvalidRequest            400  body, headers or parameters cannot be accepted
    │   ├── Unauthenticated           401  no key, or one we do not know
    │   ├── Forbidden                 403  the key is known but may not do this from here
    │   ├── BodyTooLarge              413
    │   ├── BodyTooSlow               408
    │   └── NotSupported              501  a provider route that Tokenweir does not meter
    ├── UpstreamError               the provider, or the way to it, is at fault
    │   ├── UpstreamUnreachable       503  nothing was sent: no connection in time
    │   ├── UpstreamBusy              529  our own pool of connections is exhausted
    │   ├── UpstreamSilent            504  sent, and no first byte (or no further byte) in time
    │   └── UpstreamCut               502  sent, and the connection ended early or made no sense
    ├── OwnError                    Tokenweir is at fault, or cannot work safely now
    │   ├── JournalFull               529  no disk for new paid work; work in flight is still settled
    │   ├── JournalBroken             503  an fsync failed: this process fences itself
    │   ├── StoreUnavailable          503  the database does not answer
    │   ├── CredentialUnusable        503  there is no upstream credential, or it may not be used
    │   └── ShuttingDown              529
    └── OperatorError               configuration, files or arguments are at fault
        ├── SettingsInvalid
        ├── SecretExposed
        ├── SchemaTooNew
        ├── SchemaTooOld
        ├── RateCardInvalid
        ├── PolicyInvalid
        ├── NotFound
        └── Conflict
"""

from __future__ import annotations

import inspect
from typing import ClassVar, Literal

Fault = Literal["caller", "upstream", "own", "operator"]


class TokenweirError(Exception):
    """Something failed in Tokenweir."""

    code: ClassVar[str] = "error"
    fault: ClassVar[Fault] = "own"
    status_hint: ClassVar[int] = 500
    """The HTTP status that says this best."""
    retryable: ClassVar[bool] = False
    """Whether sending the same request again, soon, can succeed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or self.code))

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return str(self.args[0])


class CallerError(TokenweirError):
    """The request cannot be accepted."""

    code = "invalid_request"
    fault = "caller"
    status_hint = 400


class InvalidRequest(CallerError):
    """The request is not one the gateway can read without doubt."""


class Unauthenticated(CallerError):
    """The key is missing or not known."""

    code = "authentication"
    status_hint = 401


class Forbidden(CallerError):
    """The key is known, but may not be used for this."""

    code = "forbidden"
    status_hint = 403


class BodyTooLarge(CallerError):
    """The request body is larger than the limit."""

    code = "body_too_large"
    status_hint = 413


class BodyTooSlow(CallerError):
    """The request body did not arrive in time."""

    code = "body_too_slow"
    status_hint = 408


class NotSupported(CallerError):
    """The gateway does not serve this route, because it could not meter it."""

    code = "not_supported"
    status_hint = 501


class UpstreamError(TokenweirError):
    """The provider could not be reached or did not answer properly."""

    code = "upstream"
    fault = "upstream"
    status_hint = 502
    retryable = True


class UpstreamUnreachable(UpstreamError):
    """No connection to the provider could be made in time; nothing was sent."""

    code = "upstream_unreachable"
    status_hint = 503


class UpstreamBusy(UpstreamError):
    """All connections to the provider are in use."""

    code = "upstream_busy"
    status_hint = 529


class UpstreamSilent(UpstreamError):
    """The provider took the request and then sent nothing in time."""

    code = "upstream_silent"
    status_hint = 504


class UpstreamCut(UpstreamError):
    """The connection to the provider ended before the answer was complete."""

    code = "upstream_cut"

    def __init__(self, message: str | None = None, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale
        """A kept connection turned out to be closed: the provider sent not one byte of an answer to this request."""


class OwnError(TokenweirError):
    """The gateway cannot work safely now."""

    code = "own"
    status_hint = 503
    retryable = True


class JournalFull(OwnError):
    """The disk is full: no new paid work is taken until there is room; work in flight is still booked."""

    code = "journal_full"
    status_hint = 529


class JournalBroken(OwnError):
    """The journal could not be made durable; this process takes no more work and ends."""

    code = "journal_broken"


class StoreUnavailable(OwnError):
    """The database does not answer."""

    code = "store_unavailable"


class CredentialUnusable(OwnError):
    """There is no usable upstream credential for this key."""

    code = "credential_unusable"
    retryable = False


class ShuttingDown(OwnError):
    """The gateway is shutting down."""

    code = "shutting_down"
    status_hint = 529


class OperatorError(TokenweirError):
    """The configuration, a file or an argument is wrong."""

    code = "operator"
    fault = "operator"
    status_hint = 400


class SettingsInvalid(OperatorError):
    """The settings are not valid."""

    code = "settings_invalid"


class SecretExposed(OperatorError):
    """A file that holds a secret can be read by others."""

    code = "secret_exposed"


class SchemaTooNew(OperatorError):
    """The database was written by a newer Tokenweir than this one."""

    code = "schema_too_new"


class SchemaTooOld(OperatorError):
    """The database needs an upgrade first."""

    code = "schema_too_old"


class RateCardInvalid(OperatorError):
    """The rate card cannot be used."""

    code = "rate_card_invalid"


class PolicyInvalid(OperatorError):
    """The policy file cannot be used."""

    code = "policy_invalid"


class NotFound(OperatorError):
    """There is no such thing."""

    code = "not_found"
    status_hint = 404


class Conflict(OperatorError):
    """It exists already, or its state does not allow this."""

    code = "conflict"
    status_hint = 409
