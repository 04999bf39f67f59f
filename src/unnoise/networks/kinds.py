"""The kinds of network that a model is made of, by what they are for: each config has a `kind` and builds its network."""

from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.taesd import TinyAutoencoderConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

Backbone = UNetConfig | DiTConfig | MMDiTConfig | NCSNppConfig
FirstStage = AutoencoderConfig | VQConfig | TinyAutoencoderConfig
TextConfig = CLIPTextConfig | T5Config | BertConfig | ClassTokensConfig  # of what makes tokens of a prompt, or of a label
