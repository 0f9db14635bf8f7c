"""What the colours of a picture file mean: the same to the service and to the commands that calibrate it."""

import numpy as np
from PIL import Image

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE = (255, 255, 255)


def rgb(image: Image.Image) -> Image.Image:
    """8 bits of red, green and blue: 16 bits scaled, transparency over white."""
    if image.mode in SIXTEEN_BIT:
        # Pillow's own conversion clips everything above 255 to white.
        grey = np.asarray(image).clip(0, 65535).astype(np.float32)
        grey /= 257
        return Image.fromarray(grey.round(out=grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, WHITE)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")
