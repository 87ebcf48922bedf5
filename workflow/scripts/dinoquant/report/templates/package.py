"""Print a photograph's features, with PyTorch and Pillow: `python results/recommended/DEVICE.py photograph.jpg`.

The package takes 1 to 4096 images, and runs only on such a processor and by the very PyTorch as compiled it: see
CARD. With one more argument, `pixels.bin`, this writes there what the program in C++ reads.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps

model = torch._inductor.aoti_load_package("FILE")
card = json.loads(Path("CARD").read_text())  # what the model says of itself
size = (card["image_size"], card["image_size"])
# DINO's protocol: the central 224 pixels of the shorter side's 256.
photograph = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
square = ImageOps.fit(photograph, size, Image.Resampling.BICUBIC, bleed=(1 - 224 / 256) / 2)
pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(*size, 3) / 255
batch = ((pixels - torch.tensor(card["mean"])) / torch.tensor(card["std"])).permute(2, 0, 1)[None]
batch = batch.contiguous()  # a package checks neither strides nor sizes
with torch.inference_mode():
    print(*model(batch)[0].tolist())
if len(sys.argv) > 2:
    Path(sys.argv[2]).write_bytes(bytes(batch.view(torch.uint8).flatten().tolist()))
