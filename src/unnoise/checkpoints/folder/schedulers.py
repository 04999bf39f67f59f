"""A diffusers scheduler's config as our words: what the network was trained to predict, in which process, and how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unnoise.errors import FileError, UnknownName
from unnoise.families.spec import Defaults, ModelSpec, ScheduleSpec

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# Schedulers of distilled models, which are made for few steps: our sampler and spacing
FEW_STEPS = {
    "LCMScheduler": ("lcm", "lcm"),
    "TCDScheduler": ("tcd", "tcd"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "trailing"),  # of SDXL-Turbo, where its spacing is trailing
}
# Classes of diffusers whose config says the betas by these names. EDM's and the consistency models' do not: their families say the process.
KNOWN = (
    "DDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


def read(config: Mapping[str, Any], spec: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """The family's spec with what the config says, and that in words. Raises FileError, and UnknownName for a class that is not known."""
    name = config.get("_class_name", "")
    if name not in KNOWN:
        raise UnknownName("scheduler in scheduler_config.json", name, KNOWN)
    if "FlowMatch" in name:
        shift = config.get("shift", 1.0)
        flow = {"schedule": ScheduleSpec(kind="flow", shift=shift), "prediction": "flow"}
        return spec.model_copy(update=flow), [f"flow with shift {shift:g} by {name}"]
    if config.get("trained_betas") is not None:
        raise FileError(f"the scheduler's config gives its betas as a list, which no published model does: got {name}")
    update: dict[str, Any] = {"schedule": _betas(config), "prediction": _prediction(config)}
    if name in FEW_STEPS and ("Ancestral" not in name or config.get("timestep_spacing") == "trailing"):
        update |= distilled(name, spec, update["prediction"])
    elif update["schedule"].zero_terminal_snr:  # the first step must be the last of the table (Lin et al. 2023, section 3.3)
        update["defaults"] = spec.defaults.model_copy(update={"spacing": "trailing"})
    schedule = update["schedule"]
    evidence = f"{update['prediction']}, {schedule.betas} betas {schedule.beta_start or ''}..{schedule.beta_end or ''} by {name}"
    return spec.model_copy(update=update), [evidence + (", zero terminal SNR" if schedule.zero_terminal_snr else "")]


def distilled(name: str, spec: ModelSpec, prediction: str = "eps") -> dict[str, Any]:
    """What changes in the spec of a model that was distilled for this scheduler."""
    sampler, spacing = FEW_STEPS[name]
    scale = 8.0 if spec.guidance_distilled else 1.0  # told to the network, else distilled for good
    defaults = Defaults(sampler=sampler, spacing=spacing, num_inference_steps=4, guidance_scale=scale)
    return {"defaults": defaults, "prediction": "lcm" if (sampler, prediction) == ("lcm", "eps") else prediction}


def _prediction(config: Mapping[str, Any]) -> str:
    given = config.get("prediction_type", "epsilon")
    if given not in PREDICTIONS:
        raise FileError(f"the scheduler's config has prediction_type {given!r}: expected one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[given]


def _betas(config: Mapping[str, Any]) -> ScheduleSpec:
    given = config.get("beta_schedule", "linear")
    if given not in BETAS:
        raise FileError(f"the scheduler's config has beta_schedule {given!r}: expected one of {', '.join(BETAS)}")
    ends = (
        {}
        if given == "squaredcos_cap_v2"
        else {name: config.get(name, value) for name, value in (("beta_start", 1e-4), ("beta_end", 0.02))}
    )
    return ScheduleSpec(
        kind="vp",
        betas=BETAS[given],  # pyright: ignore[reportArgumentType]
        steps=config.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")),
        **ends,
    )


def write(spec: ModelSpec) -> dict[str, Any]:
    """The scheduler_config.json of a model: its process as it was trained, and a sampler near the spec's defaults."""
    schedule = spec.schedule
    if schedule.kind == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": schedule.shift}
    betas = {ours: theirs for theirs, ours in BETAS.items()}[schedule.betas]
    few = next((name for name, row in FEW_STEPS.items() if row == (spec.defaults.sampler, spec.defaults.spacing)), None)
    name = few or ("EulerDiscreteScheduler" if spec.conditioning in ("sdxl", "refiner") else "DDIMScheduler")
    predicts = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    written = {
        "_class_name": name,
        "num_train_timesteps": schedule.steps,
        "beta_schedule": betas,
        **_ends(schedule),
        "prediction_type": predicts.get(spec.prediction, "epsilon"),
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr or spec.defaults.spacing == "trailing" else "leading",
        "steps_offset": 0 if spec.network.kind == "dit" else 1,
    }
    if name != "EulerDiscreteScheduler":
        written |= {"clip_sample": False, "set_alpha_to_one": spec.network.kind == "dit"}
    if schedule.zero_terminal_snr:
        written["rescale_betas_zero_snr"] = True
    return written


def _ends(schedule: ScheduleSpec) -> dict[str, float]:
    if schedule.betas == "cosine":
        return {}
    start, end = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[schedule.betas]
    return {"beta_start": schedule.beta_start or start, "beta_end": schedule.beta_end or end}
