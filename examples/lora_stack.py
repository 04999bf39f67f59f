"""Put two LoRAs on a model at once, each with its own scale, for one request. The weights of the model stay as they are.

The two files are random, in the keys of PEFT; files of kohya, diffusers and cloneofsimo are read in the same way.
"""

import torch
from safetensors.torch import save_file
from torch import Tensor

import unnoise

torch.manual_seed(0)
model = unnoise.load("emoji")
before = {name: value.detach().clone() for name, value in model.networks.named_parameters()}

for name, place in (("line", "down_blocks.1.attentions.0"), ("flat", "mid_block.attentions.0")):
    weight = before[f"network.{place}.to_q.weight"]
    down, up = torch.randn(4, weight.shape[1]) / 8, torch.randn(weight.shape[0], 4) / 8  # of rank 4
    save_file({f"unet.{place}.to_q.lora_A.weight": down, f"unet.{place}.to_q.lora_B.weight": up}, f"{name}.safetensors")


def draw(*lora: tuple[str, float]) -> Tensor:
    """(1, 3, 64, 64) in 0..1"""
    return model.generate("a red apple", seed=7, num_inference_steps=6, lora=list(lora) or None, output_type="pt").images


plain = draw()
for stack in ([("line.safetensors", 0.8)], [("flat.safetensors", 0.5)], [("line.safetensors", 0.8), ("flat.safetensors", 0.5)]):
    print(stack, f"mean difference {(draw(*stack) - plain).abs().mean():.4f}")
print("scale 0 is off:", torch.equal(draw(("line.safetensors", 0.0)), plain))
print("the weights are as they were:", all(torch.equal(value, before[name]) for name, value in model.networks.named_parameters()))

# For many requests, put them on once: this is a second model that shares all weights that the LoRAs do not change.
styled = model.with_lora([("line.safetensors", 0.8), ("flat.safetensors", 0.5)])
print(*styled.evidence, sep="\n")
