"""Ask whether the Hugging Face Hub answers, before its client tries for half a minute."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError, URLError
from urllib.request import Request, getproxies, urlopen

ANSWER_SECONDS = 5.0


def hub_answers() -> bool:
    """Return whether the Hub is to be asked and answers, if only with an error.

    Its client tries six times, 23 s in all, and again for every file. Behind a proxy it is left to
    the client, which knows more kinds of them; so is what is wrong with a certificate.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=ANSWER_SECONDS):
            return True
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep what the client logs of its attempts off stderr: the error's own line says the end."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
