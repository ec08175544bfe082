"""Attribution maps and thumbnails as small PNG pictures: of a map its ranks, as colours."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from service.correlation import average_ranks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

LEVELS = 64
"""Colours of a map at most."""


def ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places of the values, of the same shape: 1 for the largest, equal values share the mean of their places."""
    import numpy as np

    return np.array(average_ranks((-values).ravel().tolist())).reshape(values.shape)


def map_png(values: NDArray[np.float32], *, side: int) -> bytes:
    """Ranks of a map [h, w] as colours; larger ones are averaged to `side` pixels."""
    import numpy as np
    from PIL import Image

    places = ranks(values)
    # 0 for the last place, 1 for the first.
    shares = (places.size - places) / max(1, places.size - 1)
    picture = Image.fromarray(shares.astype(np.float32))
    if max(picture.size) > side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    levels = min(LEVELS, places.size)
    numbers = np.rint(np.asarray(picture) * (levels - 1)).astype(np.uint8)
    coloured = Image.fromarray(numbers)
    coloured.putpalette(colours(levels).tobytes())
    return _png(coloured)


def colours(count: int) -> NDArray[np.uint8]:
    """Cividis (Nuñez, Anderton and Renslow 2018): perceptually uniform, alike for colour-blind readers. [count, 3]."""
    import numpy as np
    from matplotlib import colormaps

    found: NDArray[np.uint8] = np.rint(255 * colormaps["cividis"](np.linspace(0, 1, count))[:, :3]).astype(np.uint8)
    return found


def thumbnail_png(pixels: NDArray[np.uint8], *, side: int) -> bytes:
    """An image [s, s, 3], in grey where it has no colours."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    if picture.width > side:
        picture = picture.resize((side, side), Image.Resampling.BOX)
    is_grey = bool((pixels == pixels[..., :1]).all())
    return _png(picture.convert("L") if is_grey else picture)


def _png(picture: Picture) -> bytes:
    written = io.BytesIO()
    picture.save(written, format="PNG", optimize=True)
    return written.getvalue()


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
