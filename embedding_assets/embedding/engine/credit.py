"""Whether an answer says that the account has no money left, in whichever provider's words.

To stop a run takes evidence: a code, in a field for codes, at any status; a phrase only where a status does not speak
of the texts, and no text sent has it, for a message may echo them. Words of a quota a minute or a day are none of it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

_CODE_FIELDS: Final = frozenset({"code", "type", "status", "reason", "error", "error_code", "error_type"})
_CODE: Final = re.compile(
    r"insufficient_?(user_?|account_?)?(quota|balance|credits?|funds)|(not_?enough|no|low|out_?of)_?(balance|credits?)"
    r"|billing_?(hard_?limit_?reached|not_?active|(is_?)?disabled|not_?enabled)|credit_?(limit|balance)\w*"
    r"|account_?overdue(_?error)?|arrearage|exceeded_current_quota_error|budget_?exceeded|payment_?required"
    r"|spend(ing)?_?limit\w*"
)

_SILENT_OF_TEXTS: Final = frozenset({401, 402, 403, 412, 429, 503})
_MONEY: Final = r"(balance|credits?|funds)"
_PHRASE: Final = re.compile(
    rf"(insufficient|not enough|negative|no)( (account|available|remaining|prepaid))? {_MONEY}\b"
    rf"|\b{_MONEY}( \w+){{0,3}} (insufficient|depleted|exhausted|used up|too low|negative|overdrawn)"
    r"|insufficient_quota|\b(run )?out of credits|(exceeded|exhausted|used up)( \w+){0,3} credits"
    r"|\bcredit limit|spend(ing)? limit|billing (hard )?limit|billing( is| has)? not( been)? (active|enabled)"
    r"|requires billing|payment( is)? (required|overdue)|in arrears|overdue (bill|payment|balance)"
    r"|\btop[ -]up|\brecharge|余额不足|欠费"
)

_DEEPEST: Final = 6


def no_credit(status: int, body: str, texts: Sequence[str] = ()) -> bool:
    """Whether an answer of this status to these texts is for lack of money."""
    if status == 402 or any(_CODE.fullmatch(code.strip().casefold()) for code in _codes(body)):
        return True
    if status not in _SILENT_OF_TEXTS:
        return False
    phrases = {match[0] for match in _PHRASE.finditer(body.casefold())}
    return any(not any(phrase in text.casefold() for text in texts) for phrase in phrases)


def _codes(body: str) -> Iterator[str]:
    """What stands in the fields for codes of a body of JSON."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                yield from (entry for name, entry in value.items() if name in _CODE_FIELDS and isinstance(entry, str))
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
