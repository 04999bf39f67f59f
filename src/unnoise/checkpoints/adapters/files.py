"""Adapter files: LoRA and its kin, read in every dialect onto the networks at hand, written in kohya's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints.adapters import families
from unnoise.checkpoints.adapters.keys import grouped, other_kind
from unnoise.checkpoints.adapters.names import Names, Target, kohya
from unnoise.checkpoints.adapters.words import Embedding, bundled
from unnoise.checkpoints.store import write
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError, nearest
from unnoise.networks.lora import (
    Additive,
    Decomposed,
    Delta,
    Deltas,
    Difference,
    Hadamard,
    Kronecker,
    LowRank,
    Rows,
    fits,
    ratio,
    stack,
    tensors,
    touched,
)

KINDS = {LowRank: "LoRA", Hadamard: "LoHa", Kronecker: "LoKr", Difference: "full", Decomposed: "DoRA"}


@dataclass(frozen=True)
class Adapter:
    """What a file changes in the networks that it was read for. Tensors stay as stored and mapped from their file."""

    path: Path | str
    deltas: Mapping[str, Deltas]  # by place ("network", "text_encoder", ...), then by our parameter's name
    matched: int  # modules
    unmatched: tuple[str, ...] = ()  # keys that no module of the networks takes; none unless read with strict=False
    embeddings: tuple[Embedding, ...] = ()  # words that the file brings with it
    metadata: Mapping[str, str] | None = None

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Of KINDS, the most frequent first."""
        found = Counter(KINDS[type(delta.delta if isinstance(delta, Rows) else delta)] for _, _, delta in self._all())
        return tuple(kind for kind, _ in found.most_common())

    @cached_property
    def rank(self) -> int:
        """The largest; 0: none of its changes has one."""
        return max((delta.rank for _, _, delta in self._all()), default=0)

    @cached_property
    def bytes(self) -> int:
        """Of its own tensors."""
        return sum(t.numel() * t.element_size() for _, _, delta in self._all() for t in tensors(delta))

    def memory(self, networks: Mapping[str, nn.Module]) -> int:
        """Bytes that the networks with it on need beside the networks without."""
        return sum(touched(networks[place], deltas) for place, deltas in self.deltas.items() if place in networks)

    def _all(self) -> Iterator[tuple[str, str, Delta]]:
        for place, deltas in self.deltas.items():
            for name, several in deltas.items():
                yield from ((place, name, delta) for delta in several)


Scale = float | Mapping[str, float]  # one for all networks, or by place; a place that is not there is off


def apply(networks: Mapping[str, nn.Module], adapters: list[tuple[Adapter, Scale]]) -> dict[str, nn.Module]:
    """The networks with adapters on. Those given stay as they are and share with the result all that is not changed."""
    result = {}
    for place, network in networks.items():
        own = [
            (adapter.deltas.get(place, {}), scale.get(place, 0.0) if isinstance(scale, Mapping) else scale) for adapter, scale in adapters
        ]
        result[place] = stack(network, own)
    return result


def read(weights: Weights, networks: Mapping[str, nn.Module], *, strict: bool = True) -> Adapter:
    """An adapter for these networks, by place; they may be on the meta device.

    Raises FileError: for another family's file, for keys that no module takes (unless strict=False), where nothing matches, for shapes that
    do not fit, and for NaN.
    """
    modules, others = grouped(weights, networks)
    words, others = bundled(weights, others)
    names, alphas = Names(networks), _Alphas.read(weights)
    if strict:
        families.check(weights, networks)
    deltas: dict[str, dict[str, tuple[Delta, ...]]] = {}
    shapes = {place: {name: p.shape for name, p in network.named_parameters()} for place, network in networks.items()}
    matched, unmatched = 0, list(others)
    for module, roles in modules.items():
        target = names.find(module)
        if not target:
            unmatched += roles.values()
            continue
        changes, lost = _changes(weights, roles, alphas.find(module))
        unmatched += lost
        try:
            fitting = _fitting(target, changes, shapes[target.place])
        except FileError as error:
            if strict:
                clash = families.clash(weights, modules, networks)
                raise FileError(clash or f"{weights.path} does not fit this model, {families.of_model(networks)}: {error}") from None
            unmatched += [key for key in roles.values() if key not in lost]
            continue
        matched += bool(fitting)
        own = deltas.setdefault(target.place, {})
        for name, delta in fitting:
            own[name] = (*own.get(name, ()), delta)
    if strict and (unmatched or not matched):
        raise FileError(_refusal(weights, unmatched, modules, networks))
    return Adapter(weights.path, deltas, matched, tuple(unmatched), words, weights.metadata)


def _refusal(weights: Weights, unmatched: list[str], modules: Mapping[str, Mapping[str, str]], networks: Mapping[str, nn.Module]) -> str:
    if not unmatched:
        return f"{weights.path} has no tensors of an adapter"
    if other := families.clash(weights, modules, networks):
        return other
    if kind := other_kind(unmatched):
        return f"{weights.path} holds {kind}: expected LoRA, LoCon, LoHa, LoKr, DoRA or whole differences, in any form"
    names = Names(networks)
    lost = next((module for module, roles in modules.items() if unmatched[0] in roles.values()), unmatched[0])
    near = nearest(lost.replace(".", "_"), names.known(), n=1)
    keys = f"{len(unmatched)} of its {len(weights)} keys ({', '.join(unmatched[:2])}{', ...' if len(unmatched) > 2 else ''})"
    hint = f" (nearest here: {near[0]})" if near else ""
    return f"{weights.path}: {keys} belong to no module of this model, {families.of_model(networks)}{hint}: strict=False leaves them out"


def _fitting(target: Target, changes: list[tuple[str, Delta]], shapes: Mapping[str, torch.Size]) -> list[tuple[str, Delta]]:
    """Changes with our parameter's name. Raises FileError, to be completed, for a parameter that is not there or has another shape."""
    fitting = []
    for leaf, delta in changes:
        name = f"{target.module}.{leaf}"
        placed = Rows(delta, target.rows) if target.rows and not isinstance(delta, Rows) else delta
        shape = tuple(shapes[name]) if name in shapes else None
        if shape is None or not fits(placed, shape):
            wanted = f"the model's has shape {shape}" if shape else "the model has no such parameter"
            raise FileError(f"its change of {name} is a matrix of {delta.size}, {wanted}")
        fitting.append((name, placed))
    return fitting


def _changes(weights: Weights, roles: Mapping[str, str], alpha: float | None) -> tuple[list[tuple[str, Delta]], list[str]]:
    """Changes with their leaf, "weight" or "bias", and the keys that are part of none, such as half a pair.

    alpha: that of the metadata, times what PEFT's options make of it.
    """
    found = {role: _whole(weights, key) for role, key in roles.items()}
    if "alpha" not in found and alpha is not None:
        found["alpha"] = torch.tensor(alpha)
    inner = list(_factored(found))
    changes: list[tuple[str, Delta]] = [("weight", _decomposed(one, found) if len(inner) == 1 else one) for one in inner]
    changes += [("bias", Difference(found[role])) for role in ("diff_b", "b_norm") if role in found]
    if "up_bias" in found:
        changes += [
            ("bias", Difference(found["up_bias"].float() * ratio(low.alpha, low.rank))) for low in inner if isinstance(low, LowRank)
        ]
    used = {"alpha", "diff", "diff_b", "w_norm", "b_norm"}.union(*(FACTORS[type(one)] for one in inner))
    used |= {"dora_scale", "magnitude"} if len(inner) == 1 else set()
    return changes, [key for role, key in roles.items() if role not in used or not changes]


FACTORS = {
    LowRank: {"up", "down", "mid", "up_bias"},
    Hadamard: {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
    Kronecker: {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
    Difference: {"diff", "w_norm"},
}


def _factored(found: Mapping[str, Tensor]) -> Iterator[Additive]:
    """The changes of a weight whose factors are all there; a module may have several kinds."""
    get = found.get
    alpha = get("alpha")
    if "up" in found and "down" in found:
        yield LowRank(found["up"], found["down"], get("mid"), alpha)
    if all(f"hada_w{i}_{side}" in found for i in (1, 2) for side in "ab"):
        a1, b1, a2, b2 = (found[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
        yield Hadamard(a1, b1, a2, b2, get("hada_t1"), get("hada_t2"), alpha)
    if all(f"lokr_w{i}" in found or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= found.keys() for i in (1, 2)):
        parts = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        yield Kronecker(**{part: get(f"lokr_{part}") for part in parts}, alpha=alpha)
    yield from (Difference(found[role]) for role in ("diff", "w_norm") if role in found)


def _decomposed(inner: Additive, found: Mapping[str, Tensor]) -> Additive | Decomposed:
    if "dora_scale" in found:
        m = found["dora_scale"]
        return Decomposed(inner, m[:, None] if m.ndim == 1 else m)
    if "magnitude" in found:
        m = found["magnitude"]
        return Decomposed(inner, m[:, None] if m.ndim == 1 else m.transpose(0, 1), "peft")  # of convolutions PEFT's is (1, out, 1, 1)
    return inner


def _whole(weights: Weights, key: str) -> Tensor:
    tensor = weights.read(key)
    if not torch.isfinite(tensor).all():
        raise FileError(f"{weights.path}: {key} holds NaN or infinity: the file is broken, train or download it again")
    return tensor


@dataclass(frozen=True)
class _Alphas:
    """PEFT's alphas, which stand in the metadata or in adapter_config.json, by what stands before a module's path."""

    configs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, weights: Weights) -> _Alphas:
        text = weights.metadata.get("lora_adapter_metadata")
        beside = Path(weights.path).with_name("adapter_config.json") if Path(weights.path).name.startswith("adapter_model") else None
        if text is None and beside is not None and beside.is_file():
            text = beside.read_text()
        try:
            flat = dict(json.loads(text)) if text else {}
        except (ValueError, TypeError):
            raise FileError(f"{weights.path}: its LoRA metadata is no JSON object") from None
        configs: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            prefix, _, name = key.rpartition(".")
            configs.setdefault(prefix, {})[name] = value
        for config in configs.values():
            if config.get("peft_type", "LORA") not in ("LORA", "LOHA"):
                raise FileError(f"{weights.path}: got PEFT's {config['peft_type']}, expected LORA or LOHA; LyCORIS' form of it is read")
        return cls(configs)

    def find(self, module: str) -> float | None:
        name = module.replace("base_model.model.", "")
        prefix = max((p for p in self.configs if p == "" or name.startswith(p + ".")), key=len, default=None)
        if prefix is None:
            return None
        config, path = self.configs[prefix], name[len(prefix) :].lstrip(".")
        alpha = config.get("lora_alpha", config.get("alpha"))
        rank = config.get("r")
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            alpha = value if re.match(rf"(.*\.)?({pattern})$", path) else alpha
        for pattern, value in (config.get("rank_pattern") or {}).items():
            rank = value if re.match(rf"(.*\.)?({pattern})$", path) else rank
        if alpha is None or not config.get("use_rslora"):
            return alpha
        return alpha * float(rank or 1) ** 0.5  # alpha / sqrt(r) (Kalajdzievski 2023) as alpha' / r


def save(path: str | Path, adapter: Adapter, networks: Mapping[str, nn.Module]) -> None:
    """Write in kohya's form: its names of modules, LyCORIS' of factors, alpha where there is one, tensors as they are. Raises FileError."""
    names = kohya(networks)
    found: dict[str, Tensor] = {}
    for place, parameter, delta in adapter._all():
        module, _, leaf = parameter.rpartition(".")
        rows = delta.rows if isinstance(delta, Rows) else ()
        written = _written(delta.delta if isinstance(delta, Rows) else delta, leaf)
        for role, tensor in written.items():
            key = f"{names[Target(place, module, rows)]}.{role}"
            if key in found:
                raise FileError(f"cannot write {path}: two changes of {parameter}, and kohya's form holds one")
            found[key] = tensor
    metadata = {key: value for key, value in (adapter.metadata or {}).items() if key.startswith(("ss_", "sshs_", "modelspec."))}
    write.tensors(Path(path), found, metadata or None)


def _written(delta: Delta, leaf: str) -> dict[str, Tensor]:
    """A change's tensors by their roles in a key."""
    if isinstance(delta, Decomposed):
        if delta.dialect != "lycoris":
            raise FileError("got PEFT's DoRA, which at other scales than 1 is not what kohya's form means: keep the file as it is")
        return {**_written(delta.change, leaf), "dora_scale": delta.magnitude}
    if isinstance(delta, Difference):
        return {"diff_b" if leaf == "bias" else "diff" if delta.difference.ndim > 1 else "w_norm": delta.difference}
    if isinstance(delta, LowRank):
        roles = {"lora_up.weight": delta.up, "lora_down.weight": delta.down, "lora_mid.weight": delta.mid}
    elif isinstance(delta, Hadamard):
        roles = {"hada_w1_a": delta.a1, "hada_w1_b": delta.b1, "hada_w2_a": delta.a2, "hada_w2_b": delta.b2}
        roles |= {"hada_t1": delta.t1, "hada_t2": delta.t2}
    elif isinstance(delta, Kronecker):
        roles = {f"lokr_{part}": getattr(delta, part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
    else:
        raise FileError(f"got a change of kind {type(delta).__name__}, which kohya's form does not have")
    return {role: tensor for role, tensor in {**roles, "alpha": delta.alpha}.items() if tensor is not None}
