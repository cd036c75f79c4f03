"""`data:` URLs (RFC 2397), as images and files arrive in requests: `data:[MEDIA TYPE][;base64],DATA`."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

_SCHEME = "data:"
_BASE64 = ";base64"


def is_data_url(value: object) -> bool:
    """Whether the value is a str that begins with `data:`, in any case."""
    return isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME


def get_media_type(data_url_str: str | None) -> str | None:
    """The media type with its parameters, for instance `image/png`; None when there is none, or this is no data URL."""
    try:
        header, _ = _split(data_url_str)
    except ValueError:
        return None
    return _without_base64(header) or None


def decode_bytes(data_url_str: str) -> bytes:
    """The data, from base64 or from percent-encoding.

    Raises:
        ValueError: this is no data URL, or its base64 is broken.
    """
    header, data = _split(data_url_str)
    raw = unquote_to_bytes(data)
    if _without_base64(header) == header:
        return raw
    try:
        return _decode_base64(raw)
    except binascii.Error as error:
        raise ValueError(f"the data URL's base64 is broken: {error}") from error


def try_decode_bytes(data_url_str: str | None) -> bytes | None:
    """The data, or None when this is no data URL or its base64 is broken."""
    if data_url_str is None:
        return None
    try:
        return decode_bytes(data_url_str)
    except ValueError:
        return None


def _split(value: str | None) -> tuple[str, str]:
    header, comma, data = (value or "").partition(",")
    if not is_data_url(value) or not comma:
        raise ValueError("not a data URL: expected data:[<media type>][;base64],<data>")
    return header[len(_SCHEME) :], data


def _without_base64(header: str) -> str:
    return header[: -len(_BASE64)] if header.lower().endswith(_BASE64) else header


def _decode_base64(raw: bytes) -> bytes:
    # Clients send padded and unpadded, plain and URL-safe base64, with and without line breaks.
    compact = b"".join(raw.split()).replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
