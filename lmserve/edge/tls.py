"""HTTPS: the certificate and key that $SSL_CERTFILE and $SSL_KEYFILE name, as for LMDeploy."""

from __future__ import annotations

import os
import ssl

from lmserve.errors import SetupError


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


def _file(name: str, what: str) -> str:
    path = os.environ.get(name, "")
    if not path:
        raise SetupError(f"--ssl needs ${name}: set it to the path of {what} (PEM)")
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise SetupError(f"${name} {path}: {reason}; set it to {what} (PEM)") from None


def _no_password() -> str:
    """Called for an encrypted key, where OpenSSL would else ask in the terminal."""
    raise SetupError("$SSL_KEYFILE is encrypted: decrypt it first, `openssl pkey -in … -out …`")
