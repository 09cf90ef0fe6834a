"""Images in messages: from the address that a message gives to a picture, within bounds.

An address is a `data:` URI, as `dspy.Image` makes it of files, bytes and pictures. Nothing is fetched: an address elsewhere is
refused. The bytes are bounded before they are decoded, the pixels by a file's header before they are unpacked.

Covered: PNG, JPEG, WebP, GIF (its first picture), BMP and TIFF, turned as their cameras noted. Not covered: formats that
another program must read (EPS, PDF, SVG), video.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.protocol import Image

MAX_BYTES = 32 * 2**20
"""Of the files of one request together."""
MAX_PIXELS = 50_000_000
"""Of the pictures of one request together; unpacked they take three bytes each."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Named, since Pillow hands others (EPS) to programs outside."""
DATA = re.compile(r"data:image/[\w.+-]+(;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


def take_image(url: Any, at: int) -> Image:
    """The image at an address. Its bytes are checked here, its pixels by `open_images`.

    Args:
        url: a `data:` URI in base64.
        at: where it stands, in characters of the message's text.

    Raises:
        RequestRefused: another address, too many bytes, or no base64.
    """
    given = url if isinstance(url, str) else repr(url)
    if (found := DATA.match(given)) is None:
        raise RequestRefused(
            f"An image is given as {given[:80]!r}, and nothing is fetched from elsewhere: give its bytes as a data: URI in "
            "base64, as dspy.Image.from_path and dspy.Image.from_url make it."
        )
    data = given[found.end() :]
    if len(data) * 3 // 4 > MAX_BYTES + 2:  # the last two may be padding
        raise _too_many_bytes(len(data) * 3 // 4)
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestRefused(f"An image's data: URI is no base64: {error}. Encode the file again.") from None
    return Image(at=at, data=data)


def open_images(images: Iterable[Image]) -> list[Any]:
    """The pictures, in RGB, as Pillow's.

    Raises:
        RequestRefused: a file is damaged or of no format that is read, or all together have too many bytes or pixels.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    files = [base64.b64decode(image.data) for image in images]
    if (size := sum(map(len, files))) > MAX_BYTES:
        raise _too_many_bytes(size)
    made, pixels = [], 0
    for number, file in enumerate(files, 1):
        try:
            with Pillow.open(BytesIO(file), formats=FORMATS) as picture:
                pixels += picture.width * picture.height
                if pixels > MAX_PIXELS:
                    raise _too_many_pixels(f"{pixels:,}")
                made.append(ImageOps.exif_transpose(picture).convert("RGB"))
        except RequestRefused:
            raise
        except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
            raise _too_many_pixels(f"over {Pillow.MAX_IMAGE_PIXELS or MAX_PIXELS:,}") from None
        except Exception as error:  # isolation boundary: a damaged file raises whatever its decoder met
            raise RequestRefused(
                f"Image {number} of {len(files)} cannot be read ({len(file)} bytes): {type(error).__name__}. Give a whole "
                f"file in one of {', '.join(FORMATS)}."
            ) from error
    return made


def _too_many_bytes(size: int) -> RequestRefused:
    return RequestRefused(
        f"The images of a request have {size:,} bytes, and {MAX_BYTES:,} may be sent together. Send smaller ones."
    )


def _too_many_pixels(count: str) -> RequestRefused:
    return RequestRefused(
        f"The images of a request have {count} pixels, and {MAX_PIXELS:,} may be sent together. Send smaller ones."
    )
