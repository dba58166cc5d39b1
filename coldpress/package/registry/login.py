"""What we say of ourselves to one registry: a password, or a token that is renewed in time.

Source: docker's token authentication specification; RFC 6750.
"""

import json
import re
import time
from collections.abc import Callable
from http.client import HTTPResponse
from urllib.parse import urlencode

from coldpress.errors import RemoteError
from coldpress.package.registry.answers import TRANSIENT, Answer, TransientError, refusal
from coldpress.package.registry.credentials import Credentials, find
from coldpress.package.registry.reference import Reference

Send = Callable[[str, str, dict[str, str], bytes | None], HTTPResponse]

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_MAX_TOKEN_BYTES = 1 << 20
# A token is renewed this long before its end; one that does not tell its end lasts a minute.
_MARGIN_S = 10
_DEFAULT_S = 60


class Login:
    """``authorization`` is the header to send, empty as long as nobody asks."""

    def __init__(self, reference: Reference) -> None:
        self.authorization = ""
        self._reference = reference
        self._valid_until_s = float("inf")
        self._challenge = ""
        self._credentials: Credentials | None = None
        self._looked = False

    @property
    def is_stale(self) -> bool:
        """Whether a token is about to end."""
        return time.monotonic() > self._valid_until_s

    def answer(self, challenge: str, send: Send) -> bool:
        """Meet a registry's challenge; False where we have nothing to meet it with.

        Raises:
            RemoteError: the token service refuses us.
            InputError, ToolError: the stored login cannot be read.
        """
        self._challenge = challenge
        if not self._looked:
            self._looked = True
            self._credentials = find(self._reference.host)
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._credentials and self._credentials.user:
            self.authorization = self._credentials.basic
            return True
        if kind.lower() == "bearer":
            self._fetch(dict(_PARAMETER.findall(rest)), send)
            return True
        return False

    def renew(self, send: Send) -> None:
        """Get another token for what was asked last."""
        self.answer(self._challenge, send)

    def _fetch(self, challenge: dict[str, str], send: Send) -> None:
        """Get a token from the service that the registry names."""
        # Nothing old is sent along, should the registry be its own token service.
        self.authorization, self._valid_until_s = "", float("inf")
        response = self._ask(challenge, send)
        answer = Answer(response.status, {}, response.read(_MAX_TOKEN_BYTES))
        if answer.status in TRANSIENT:
            raise TransientError(f"its token service answers {answer.status}")
        if answer.status != 200:
            raise refusal(self._reference, answer)
        try:
            found = json.loads(answer.data)
            token = str(found.get("token") or found["access_token"])
            lasts_s = float(found.get("expires_in") or _DEFAULT_S)
            if not token.isprintable():
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(
                f"{self._reference.host}'s token service gives no token", "try again later"
            ) from error
        self.authorization = f"Bearer {token}"
        self._valid_until_s = time.monotonic() + max(lasts_s - _MARGIN_S, lasts_s / 2)

    def _ask(self, challenge: dict[str, str], send: Send) -> HTTPResponse:
        realm, known = challenge.get("realm", ""), self._credentials
        service = {key: challenge[key] for key in ("service",) if key in challenge}
        scope = challenge.get("scope", "")
        if known and known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token}
            body = urlencode(service | form | {"scope": scope, "client_id": "coldpress"}).encode()
            return send("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, body)
        headers = {"Authorization": known.basic} if known else {}
        query = urlencode([*service.items(), *(("scope", it) for it in scope.split())])
        return send("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers, None)
