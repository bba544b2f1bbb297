"""HTTPS: the certificate and key that $SSL_CERTFILE and $SSL_KEYFILE name, as for LMDeploy. Read
again when they change: what is shown to those who connect is new, who is connected stays."""

from __future__ import annotations

import logging
import os
import ssl
import stat

from lmserve.edge.expiry import expires_s
from lmserve.edge.reload import Reloads
from lmserve.errors import SetupError

logger = logging.getLogger(__name__)


class Certificate:
    """`context` is what a listener takes; each handshake is handed on to one made of the files as
    they were last read, whole."""

    def __init__(self) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.sni_callback = self._hand_on
        self._current = self.context
        self.expires_s: float | None = None  # since 1970

    def read(self) -> None:
        """Raises SetupError, and then the one before stays. Not for the loop."""
        self._current = make_context()
        self.expires_s = _expires_s()

    def _hand_on(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL asks, whether or not the client named a server."""
        handshake.context = self._current


def add_certificate(reloads: Reloads) -> Certificate:
    """To be read with the rest of these."""
    certificate = Certificate()
    paths = [os.environ.get(name, "") for name in ("SSL_CERTFILE", "SSL_KEYFILE")]
    reloads.add(f"the certificate {paths[0]}", paths, certificate.read)
    return certificate


def make_context() -> ssl.SSLContext:
    """Raises SetupError, one line with the remedy. Reads files: not for the loop."""
    certfile = _file("SSL_CERTFILE", "the certificate, with its chain")
    keyfile = _file("SSL_KEYFILE", "the certificate's private key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = "are not of one pair: give the key that the certificate was made with"
        else:
            problem = f"cannot be used ({error.reason or error}): both must be PEM files"
        raise SetupError(f"$SSL_KEYFILE {keyfile} and $SSL_CERTFILE {certfile} {problem}") from None
    return context


def _expires_s() -> float | None:
    """None where it cannot be told, which is no reason not to serve."""
    try:
        with open(os.environ["SSL_CERTFILE"], "rb") as file:
            return expires_s(file.read())
    except (OSError, ValueError) as error:
        logger.warning("when the certificate expires cannot be told: %s", error)
        return None


def _file(name: str, what: str) -> str:
    path = os.environ.get(name, "")
    if not path:
        raise SetupError(f"--ssl needs ${name}: set it to the path of {what} (PEM)")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, and has it once
            raise SetupError(
                f"${name} {path}: is no file, but a directory, a pipe or a device; set it to the "
                f"file of {what} (PEM)"
            )
        with open(path, "rb"):
            return path
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise SetupError(f"${name} {path}: {reason}; set it to {what} (PEM)") from None


def _no_password() -> str:
    """Called for an encrypted key, where OpenSSL would else ask in the terminal."""
    raise SetupError("$SSL_KEYFILE is encrypted: decrypt it first, `openssl pkey -in … -out …`")
