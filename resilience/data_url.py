"""Images and files inside requests: ``from resilience.data_url import is_data_url``."""

from protocol.data_url import decode_bytes, get_media_type, is_data_url, try_decode_bytes

__all__ = ["decode_bytes", "get_media_type", "is_data_url", "try_decode_bytes"]
