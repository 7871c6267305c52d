#!/usr/bin/env bash
# Pillow turns a 16-bit grey image into 8 bits by clipping at 255, a 16-bit colour image by taking the high byte: of one picture, one is white.
#
# Versions: pillow 13.0.0, numpy 2.4.6.
# Expected: convert("RGB") and convert("L") map the darkest level to 0 and the brightest to 255, whatever the depth, as for 16-bit colour.
# What happens: levels of a 16-bit grey PNG or TIFF (X-rays, CT, microscopy) are taken as they are and cut at 255.
#   seen: grey PNG:    0 1000 20000 65535 -> 0 255 255 255
#         grey TIFF:   0 1000 20000 65535 -> 0 255 255 255
#         colour PNG:  0 1000 20000 65535 -> 0 3 78 255
# Nothing is said. Image loaders call convert("RGB") on whatever they open, torchvision's ImageFolder among them.
# Why it matters: a data set of X-rays becomes one of white rectangles; accuracy is chance, and a privacy audit measures how well a
# white rectangle is rebuilt: perfectly.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'pillow==13.0.0' 'numpy==2.4.6'

cat >grey.py <<'PYTHON'
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image

levels = np.array([[0, 1000, 20000, 65535]], np.uint16)


def grey(kind):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file


def colour():
    """The same levels in all three channels; Pillow writes no 16-bit colour."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in levels)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


clipped, high = np.minimum(levels[0], 255), levels[0] >> 8
for name, file, expected in (("grey PNG", grey("PNG"), clipped), ("grey TIFF", grey("TIFF"), clipped), ("colour PNG", colour(), high)):
    found = np.asarray(Image.open(file).convert("RGB"))[0, :, 0]
    print(f"{name}: {' '.join(map(str, levels[0]))} -> {' '.join(map(str, found))}")
    if found.tolist() != expected.tolist():
        sys.exit(f"changed: {name} gives {found}, where {expected} was seen")
PYTHON
python grey.py
