"""Print a photograph's features, with PyTorch and Pillow: `python results/recommended/DEVICE.py photograph.jpg`."""

import json
import sys

import torch
from PIL import Image, ImageOps

files = {"dinoquant.json": ""}
model = torch.jit.load("FILE", map_location="DEVICE", _extra_files=files)
card = json.loads(files["dinoquant.json"])  # what the model says of itself
size = (card["image_size"], card["image_size"])
# DINO's protocol: the central 224 pixels of the shorter side's 256.
photograph = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
square = ImageOps.fit(photograph, size, Image.Resampling.BICUBIC, bleed=(1 - 224 / 256) / 2)
pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(*size, 3) / 255
batch = ((pixels - torch.tensor(card["mean"])) / torch.tensor(card["std"])).permute(2, 0, 1)[None]
with torch.inference_mode():
    print(*model(batch.to("DEVICE"))[0].tolist())
