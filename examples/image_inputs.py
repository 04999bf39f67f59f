"""Start from a picture, and paint a part of one anew. Both are arguments of `generate`, and run on every model."""

import numpy as np
from PIL import Image

import unnoise

model = unnoise.load("emoji")
apple = model.generate("a red apple", seed=7).images[0]

# Image to image: strength 0.3 of 20 steps runs the last 6 of them, so the result stays close to the picture.
for strength in (0.3, 0.9):
    heart = model.generate("a blue heart", image=apple, strength=strength, seed=1).images[0]
    heart.save(f"heart-{strength}.png")
    difference = np.abs(np.asarray(heart, dtype=float) - np.asarray(apple, dtype=float)).mean()
    print(f"strength {strength}: mean difference {difference:.0f} of 255")

# Inpainting: what is white in the mask is painted anew, and what is black keeps every byte of the picture.
mask = Image.new("L", apple.size)
mask.paste(255, (0, 0, 64, 32))
painted = model.generate("a blue heart", image=apple, mask_image=mask, seed=1).images[0]
painted.save("painted.png")
lower = (0, 32, 64, 64)
print("the lower half kept every byte:", painted.crop(lower).tobytes() == apple.crop(lower).tobytes())
