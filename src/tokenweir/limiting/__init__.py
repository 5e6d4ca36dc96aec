"""Setting limits, granting more, and asking for more: the small library that the command line uses, and the console after it.

The twin of `issuing` for limits. The rules it protects: what cannot be meant is refused before anything is written, with one sentence that says what
to write instead; setting a limit again changes it and adds none; whoever decides is named. Names of teams and keys become ids here, so nothing below
has to look them up. Time and randomness are arguments. Change with it: `limit_ports.LimitDirectory`, docs/LIMITS.md.
"""

from __future__ import annotations

from tokenweir.limiting.asking import LIFECYCLE, Asked, approve, ask_for_more, comment, deny, list_requests, show_request, withdraw
from tokenweir.limiting.finding import Place, find_place, history_of, list_limits, live_limit, show_limit, whose_of
from tokenweir.limiting.granting import Granted, add_grant, list_grants, void_grant
from tokenweir.limiting.setting import SetLimit, remove_limit, set_limit

__all__ = [
    "LIFECYCLE",
    "Asked",
    "Granted",
    "Place",
    "SetLimit",
    "add_grant",
    "approve",
    "ask_for_more",
    "comment",
    "deny",
    "find_place",
    "history_of",
    "list_grants",
    "list_limits",
    "list_requests",
    "live_limit",
    "remove_limit",
    "set_limit",
    "show_limit",
    "show_request",
    "void_grant",
    "whose_of",
    "withdraw",
]
