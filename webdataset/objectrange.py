"""Byte ranges of objects in S3, Google Cloud Storage and Azure, through obstore (the extra ``objects``)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.remote import AbsentError, RemoteIdentity, TransientError, changed, object_place, public_url

__all__ = ["ObjectRanges", "open_store"]

_PIECE = 1 << 20
_CONNECT_SECONDS = 5
_SOCKET_SECONDS = 10
_STATUS = re.compile(r"\b(?:status|code)[^0-9]{0,10}([1-5][0-9]{2})\b", re.IGNORECASE)
_PERMANENT = re.compile(r"status:? (?:code:? )?4(?!08|25|29)[0-9]{2}|InvalidCertificate|certificate", re.IGNORECASE)
_NO_CREDENTIALS = (
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT or "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; for a public bucket AWS_SKIP_SIGNATURE=true, "
    "GOOGLE_SKIP_SIGNATURE=true or AZURE_SKIP_SIGNATURE=true"
)
_QUERY = re.compile(r"\?[^\s\"')]*")


class ObjectRanges:
    """Reads objects of a provider by range, with the credentials of the environment or the machine.

    obstore's timeouts belong to a store, not to a request, so ``timeout`` makes no difference here:
    silence ends a request after ten seconds.
    """

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        :raises ConfigError: obstore is not installed.
        """
        self._obstore = _import(url)
        self._stores: dict[str, Any] = {}
        self._lock = threading.Lock()

    def identify(self, url: str, timeout: float, *, ranges: bool) -> RemoteIdentity:
        """Ask what is known of an object; see ``Ranges``. All stores give ranges."""
        store, key = self._place(url)
        with _mapped(self._obstore):
            identity = _identity(self._obstore.head(store, key))
        if ranges and identity.size == 0:
            raise ShardError("it is empty: 0 bytes are not a tar")
        return identity

    def pieces(self, url: str, start: int, end: int, identity: RemoteIdentity, timeout: float) -> Iterator[bytes]:
        """Ask for a range of the object that ``identity`` is of; see ``Ranges``."""
        store, key = self._place(url)
        options: dict[str, Any] = {"range": (start, end)}
        if identity.etag:
            options["if_match"] = identity.etag
        with _mapped(self._obstore):
            result = self._obstore.get(store, key, options=options)
            if how := identity.differs_from(_identity(result.meta)):
                raise changed(how)
            for piece in result.stream(min_chunk_size=_PIECE):
                yield bytes(piece)

    def close(self) -> None:
        """Forget the stores, which hold the connections."""
        with self._lock:
            self._stores.clear()

    def _place(self, url: str) -> tuple[Any, str]:
        bucket, key = object_place(url)
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = open_store(bucket)
            return self._stores[bucket], key


def open_store(bucket: str) -> Any:
    """Open a bucket, given its URL, as obstore's ``ObjectStore``.

    :raises ConfigError: obstore is not installed, or cannot make sense of the URL or the environment.
    """
    obstore = _import(bucket)
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_SOCKET_SECONDS),
        "timeout": timedelta(minutes=10),
    }
    # Whoever writes http:// for the endpoint means it; else plain HTTP stays refused.
    endpoints = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    if any(os.environ.get(name, "").startswith("http://") for name in endpoints):
        client["allow_http"] = True
    # Retrying is done in one place for every kind of server, in remote.py.
    retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=_SOCKET_SECONDS)}
    try:
        return import_module("obstore.store").from_url(bucket, client_options=client, retry_config=retry)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise ConfigError(f"{public_url(bucket)} cannot be opened: {_first_line(error)}") from None


def _import(url: str) -> Any:
    try:
        import_module("obstore.store")
        import_module("obstore.exceptions")
        return import_module("obstore")
    except ImportError as error:
        raise ConfigError(
            f"shard {public_url(url)}: object stores need obstore; install it: pip install 'shardfeed[objects]'"
        ) from error


def _identity(meta: Any) -> RemoteIdentity:
    modified = meta["last_modified"]
    # Whole seconds: a listing, a HEAD and a GET give more or fewer digits.
    return RemoteIdentity(meta["size"], meta["e_tag"] or "", int(modified.timestamp()) * 10**9 if modified else 0)


@contextmanager
def _mapped(obstore: Any) -> Iterator[None]:
    """Map obstore's errors. Their text goes on in one line without what may be signed in a URL."""
    errors = obstore.exceptions
    try:
        yield
    except FileNotFoundError as error:
        raise AbsentError("there is no such object (HTTP status 404)") from error
    except errors.PreconditionError as error:
        raise changed("the store has another version of it (HTTP status 412)") from error
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
        raise AbsentError(f"the store refuses it; look at the credentials: {_first_line(error)}") from error
    except (errors.NotSupportedError, errors.InvalidPathError, errors.UnknownConfigurationKeyError) as error:
        raise ShardError(_first_line(error)) from error
    except (errors.BaseError, OSError, ValueError) as error:
        text = _first_line(error)
        # The last place where it looks for credentials is the machine's own, in a cloud.
        if "169.254.169.254" in text or "metadata.google.internal" in text:
            raise ShardError(_NO_CREDENTIALS) from error
        raise (ShardError(text) if _PERMANENT.search(text) else TransientError(text)) from error


def _first_line(error: BaseException) -> str:
    text = _QUERY.sub("", str(error).partition("\n\nDebug source:")[0])
    return " ".join(text.split()) or type(error).__name__
