"""Make a picture with the built-in model, and the same picture again from its record."""

import unnoise

model = unnoise.load("emoji")  # a .safetensors file, a diffusers folder or a hub id loads in the same way
result = model.generate("a red apple", seed=7)
result.images[0].save("apple.png")
print(result.images[0].size, "with", result.metadata[0]["sampler"], "from seed", result.seeds[0])

again = model.generate("a red apple", seed=7)
print("the same seed makes the same picture:", again.images[0].tobytes() == result.images[0].tobytes())
