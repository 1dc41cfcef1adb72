"""What schemathesis is taught: to send NDJSON."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def as_lines(context: Any, value: Any) -> bytes:
    """The document says that it is a text: whatever is generated is sent as that."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
