"""Photoshop (``.psd``) files."""

from __future__ import annotations

import io

from psd_tools import PSDImage
from psd_tools.constants import BlendMode, Resource
from psd_tools.psd.image_resources import ImageResource

from nurie.inference.layers import LayeredPicture

_BLEND = {"normal": BlendMode.NORMAL, "multiply": BlendMode.MULTIPLY}


def write_psd(picture: LayeredPicture, xmp: bytes | None = None) -> bytes:
    """Write a picture with its layers; transparency becomes a layer mask, so nothing is cut off.

    Args:
        picture: The picture.
        xmp: Metadata.
    """
    document = PSDImage.frompil(picture.flatten())
    for layer in reversed(picture.layers()):
        # Grey has no layers of its own kind in an RGB file.
        image = layer.image.convert("RGB") if layer.image.mode == "L" else layer.image
        made = document.create_pixel_layer(
            image,
            name=layer.name,
            opacity=round(255 * layer.opacity),
            blend_mode=_BLEND[layer.blend],
        )
        made.visible = layer.visible
    if xmp is not None:
        key = Resource.XMP_METADATA
        document.image_resources[key] = ImageResource(key=key.value, data=xmp)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()
