"""The driver, and the one idea: unlike requests are answered together, and nothing depends on who is beside whom."""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from diffusion.oracle import EASY, PROCESSES, NoNoise, ones
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.diffusion.guidance import Guidance, Guided, guidance
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import KEPT, Estimate, Plan, Run, State, advance, initial, plan, sample, stream
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.solvers import SOLVERS, Step
from unnoise.errors import ArgumentError, NonFiniteError, UnknownName
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.runtime.denoise import NetworkDenoiser

SD, FLOW = PROCESSES["sd"], PROCESSES["flow"]


class Counting:
    """Passes on to a denoiser; remembers how many rows each call had."""

    def __init__(self, denoiser):
        self.denoiser, self.rows = denoiser, []

    def __call__(self, x: Tensor, *others) -> Tensor:
        self.rows.append(len(x))
        return self.denoiser(x, *others)


class Signs(nn.Module):
    """Twice the channels: x_0 = x / 2, and a variance of the condition's own sign everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return torch.cat([self.gain * x, cond.need("pooled", "test").view(-1, 1, 1, 1).expand_as(x)], dim=1)


def together(runs: list[Run], denoiser) -> list[list[State]]:
    """Advance all until each is done; the states of each."""
    states: list[list[State]] = [[] for _ in runs]
    while unfinished := [i for i, run in enumerate(runs) if not run.done]:
        for i, state in zip(unfinished, advance([runs[i] for i in unfinished], denoiser), strict=True):
            if state is not None:
                assert isinstance(state, State)
                states[i].append(state)
    return states


# The one idea


def guided_pixel(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """A denoiser whose arithmetic is row by row, so that a batch cannot round differently."""
    assert cond.pooled is not None
    weight = cond.pooled.view(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x * weight + t.view(weight.shape).to(x) / 1000)


def three_requests(schedule: Schedule, shape: tuple[int, ...], cond) -> list[Run]:
    """Different solvers, step counts, guidance, row counts and seeds; one with noise of its own."""
    asked = [
        ("heun", {}, 10, [7], 4.0),  # 19 questions
        ("dpmpp_2m", {}, 14, [1, 2], torch.tensor([1.0, 7.5])),  # 14
        ("ddim", {"eta": 1.0}, 31, [3], 0.0),  # 31
    ]
    runs = []
    for sampler, options, steps, seeds, scale in asked:
        noise = Streams(seeds)
        made = plan(schedule, sampler, steps, **options)
        x = initial(noise.draw(torch.empty(len(seeds), *shape)), made)
        runs.append(Run(x, made, noise, guidance(cond(seeds), cond([0] * len(seeds)), scale)))
    return runs


@pytest.mark.parametrize("name", PROCESSES)
def test_three_requests_together_are_what_each_is_alone(name: str):
    schedule = PROCESSES[name]
    pooled = lambda seeds: Cond(pooled=torch.tensor(seeds)[:, None] / 10)  # noqa: E731
    alone, rows_alone = [], 0
    for i in range(3):
        denoiser = Counting(guided_pixel)
        run = three_requests(schedule, (2, 4, 4), pooled)[i]
        alone.append(list(stream(run, Guided(denoiser, schedule, predictions.x0))))
        rows_alone += sum(denoiser.rows)
    denoiser = Counting(guided_pixel)
    joined = together(three_requests(schedule, (2, 4, 4), pooled), Guided(denoiser, schedule, predictions.x0))
    for mine, both in zip(alone, joined, strict=True):
        assert [s.step for s in mine] == [s.step for s in both]
        assert all(torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0) for a, b in zip(mine, both, strict=True))
    # as many forwards as the longest request asks, 31, for 19 + 14 + 31 questions; and not a row more than alone
    assert len(denoiser.rows) == 31 and sum(denoiser.rows) == rows_alone == 19 * 2 + 14 * (1 + 2) + 31


def networks() -> dict[str, tuple[nn.Module, Schedule, predictions.Prediction]]:
    """Small, random (nothing left at zero), and of three kinds of process and prediction."""
    torch.manual_seed(1)
    dit = DiT(DiTConfig(in_channels=3, patch=2, width=48, depth=2, heads=4, num_classes=10, learn_sigma=False))
    sizes = {"widths": (16, 32), "depths": (0, 1), "blocks": 1, "heads": 4, "groups": 8, "context_width": 0, "num_classes": 10}
    unet = UNet(UNetConfig(in_channels=3, out_channels=3, **sizes))
    for network in (dit, unet):
        for p in network.parameters():
            nn.init.normal_(p, 0, 0.1)
        network.eval()
    return {"dit": (dit, FLOW, predictions.flow), "unet": (unet, SD, predictions.v)}


@pytest.mark.parametrize("name", ["dit", "unet"])
@torch.inference_mode()
def test_three_requests_to_a_network_are_what_each_is_alone(name: str):
    """Matrix products round by their number of rows; a network that always sees two rows gives a picture the same bits in any company."""
    network, schedule, prediction = networks()[name]
    labels = lambda seeds: Cond(labels=torch.tensor(seeds))  # noqa: E731
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    network.register_forward_hook(count)
    denoiser = Guided(NetworkDenoiser(network, schedule, prediction, rows=2), schedule, prediction)
    alone = [list(stream(three_requests(schedule, (3, 8, 8), labels)[i], denoiser)) for i in range(3)]
    calls_alone, calls = calls, 0
    joined = together(three_requests(schedule, (3, 8, 8), labels), denoiser)
    for mine, both in zip(alone, joined, strict=True):
        assert all(torch.equal(a.x, b.x) for a, b in zip(mine, both, strict=True))
    assert calls < calls_alone  # half-filled groups are shared
    assert not torch.equal(alone[0][-1].x, alone[1][-1].x[:1])


def test_the_place_in_the_batch_and_the_order_of_requests_do_not_matter():
    pooled = lambda seeds: Cond(pooled=torch.tensor(seeds)[:, None] / 10)  # noqa: E731
    denoiser = Guided(guided_pixel, FLOW, predictions.x0)
    forwards = together(three_requests(FLOW, (5,), pooled), denoiser)
    backwards = together(three_requests(FLOW, (5,), pooled)[::-1], denoiser)[::-1]
    assert all(torch.equal(a[-1].x, b[-1].x) for a, b in zip(forwards, backwards, strict=True))


def test_a_request_may_join_and_another_leave_on_the_way():
    """What a server does: a new run starts while others are at other steps; one is cancelled by no longer asking it."""
    pooled = lambda seeds: Cond(pooled=torch.tensor(seeds)[:, None] / 10)  # noqa: E731
    denoiser = Guided(guided_pixel, SD, predictions.x0)
    alone = together(three_requests(SD, (5,), pooled), denoiser)
    first, second, third = three_requests(SD, (5,), pooled)
    for _ in range(5):
        advance([first, third], denoiser)
    for _ in range(3):
        advance([second, first], denoiser)  # third is gone for now
    rest = together([third, second], denoiser)  # and first for ever
    assert torch.equal(rest[0][-1].x, alone[2][-1].x) and torch.equal(rest[1][-1].x, alone[1][-1].x)
    assert not first.done


def test_a_plan_is_shared_by_sixteen_threads():
    made = plan(SD, "ddim", 20, eta=1.0)
    found: dict[int, Tensor] = {}
    barrier = threading.Barrier(16)

    def work(place: int) -> None:
        noise = Streams([place % 4])
        x = noise.draw(torch.empty(1, 3))
        barrier.wait()
        *_, last = stream(Run(x, made, noise), lambda x, t: torch.tanh(x))
        found[place] = last.x

    threads = [threading.Thread(target=work, args=(place,)) for place in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for place, x in found.items():
        assert torch.equal(x, found[place % 4])
    assert len({tuple(found[i].flatten().tolist()) for i in range(4)}) == 4


def test_a_plan_does_not_change():
    made = plan(SD, "heun", 5)
    with pytest.raises(FrozenInstanceError):
        made.levels = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        made.levels[0].t = 3.0  # type: ignore[misc]
    assert isinstance(made.levels, tuple)
    x = torch.randn(2, 3)
    first, second = ([state.x for state in stream(Run(x, made, NoNoise()), lambda x, t: x.sin())] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# The driver


def test_states():
    made = plan(FLOW, "heun", 4)
    states = list(stream(Run(ones(), made, NoNoise()), EASY.denoiser(FLOW)))
    assert [(s.step, s.steps, s.t) for s in states] == [(1, 4, 0.75), (2, 4, 0.5), (3, 4, 0.25), (4, 4, 0.0)]
    assert torch.equal(states[-1].x, states[-1].x0)  # on the data, the state is the estimate


def test_leaving_the_loop_cancels():
    denoiser = Counting(EASY.denoiser(SD))
    for state in stream(Run(ones(), plan(SD, "euler", 50), NoNoise()), denoiser):
        if state.step == 3:
            break
    assert len(denoiser.rows) == 3


def test_a_state_is_not_changed_by_later_steps():
    states = [(s, s.x.clone(), s.x0.clone()) for s in stream(Run(ones(2), plan(SD, "dpmpp_2m", 9), NoNoise()), EASY.denoiser(SD))]
    assert all(torch.equal(s.x, x) and torch.equal(s.x0, x0) for s, x, x0 in states)


def test_the_first_state_given_is_not_changed():
    x = torch.randn(2, 3)
    before = x.clone()
    sample(lambda x, t: 0.5 * x, x, schedule=FLOW, steps=3)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_what_is_not_finite_is_named_with_its_step(sampler: str):
    calls = 0

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * (math.nan if calls > 3 * SOLVERS[sampler].evaluations else 0.5)

    row = SOLVERS[sampler]
    step = "[1-4]" if sampler in ("rk45", "dpm_adaptive") else 4 - row.extra  # as many as they need; one more to start
    with pytest.raises(NonFiniteError, match=f"not finite after step {step} of 10"):
        sample(denoiser, torch.ones(1, 1), schedule=SD, sampler=sampler, steps=10)


def test_infinity_is_not_finite_either():
    with pytest.raises(NonFiniteError, match="step 1 of 2"):
        sample(lambda x, t: torch.full_like(x, math.inf), torch.ones(1, 1), schedule=FLOW, steps=2)


def test_eps_from_pure_noise_is_an_error_and_not_a_picture():
    """A table of zero terminal SNR and an eps network: x_0 = (x - sigma eps)/0 at the first step."""
    schedule = PROCESSES["zero_snr"]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.9))

        def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.gain * x

    for prediction, works in (("eps", False), ("v", True), ("x0", True)):
        denoiser = NetworkDenoiser(Network(), schedule, predictions.prediction(prediction))
        asked = {"schedule": schedule, "sampler": "ddim", "steps": 5, "cond": Cond(labels=torch.zeros(1))}
        if works:
            assert bool(torch.isfinite(sample(denoiser, torch.randn(1, 3), **asked)).all())
        else:
            with pytest.raises(NonFiniteError, match="step 1 of 5"):
                sample(denoiser, torch.randn(1, 3), **asked)


def test_old_estimates_are_let_go():
    """A thousand steps do not hold a thousand pictures; a solver may look back on a few."""
    alive: list[weakref.ref] = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        x0 = 0.5 * x
        alive.append(weakref.ref(x0))
        return x0

    seen: list[int] = []

    def lengths(step: Step):
        seen.append(len(step.past))
        x0 = yield step.x, step.here
        return step.toward(x0)

    made = Plan(SD, plan(SD, "euler", 50).levels, lengths, False)
    run = Run(ones(), made, NoNoise())
    while not run.done:
        advance([run], denoiser)
        # one row's slice of an answer keeps the answer: those of the steps kept, and the newest
        assert sum(ref() is not None for ref in alive) <= KEPT + 1
    assert seen[:6] == [0, 1, 2, 3, 4, 4] and max(seen) == KEPT


def test_the_past_is_newest_last():
    seen = []

    def solver(step: Step):
        seen.append([past.level.t for past in step.past])
        x0 = yield step.x, step.here
        return step.toward(x0)

    list(stream(Run(ones(), Plan(FLOW, plan(FLOW, "euler", 4).levels, solver, True), NoNoise()), EASY.denoiser(FLOW)))
    assert seen == [[], [1.0], [1.0, 0.75], [1.0, 0.75, 0.5]]


def test_the_past_holds_the_estimate_where_the_step_started():
    """Of two estimates in a step the first: the second was made elsewhere, and a multistep solver pairs it with `level`."""
    kept = []

    def solver(step: Step):
        kept.extend(past.x0.item() for past in step.past)
        x0 = yield step.x, step.here
        yield step.toward(x0), step.next
        return step.toward(x0)

    answers = iter([1.0, 2.0, 3.0, 4.0])
    run = Run(ones(), Plan(FLOW, plan(FLOW, "euler", 2).levels, solver, True), NoNoise())
    list(stream(run, lambda x, t: torch.full_like(x, next(answers))))
    assert kept == [1.0]


def test_a_step_knows_its_place():
    """index, steps and last, and the levels at other times."""
    seen = []

    def solver(step: Step):
        seen.append((step.index, step.steps, step.last, step.here.t, step.next.t))
        assert step.level(0.3).sigma == pytest.approx(0.3)
        x0 = yield step.x, step.here
        return step.toward(x0)

    list(stream(Run(ones(), Plan(FLOW, plan(FLOW, "euler", 2).levels, solver, True), NoNoise()), EASY.denoiser(FLOW)))
    assert seen == [(0, 2, False, 1.0, 0.5), (1, 2, True, 0.5, 0.0)]


def test_variances_reach_their_own_runs():
    """Two runs in one forward: the learned variance of each row goes to that row's run."""

    def denoiser(x: Tensor, t: Tensor) -> Estimate:
        return Estimate(0 * x, torch.where(x > 0, 1.0, -1.0).to(x))

    noise = [torch.ones(1, 1, dtype=torch.float64)]

    class One:
        def draw(self, like: Tensor) -> Tensor:
            return noise[0].to(like)

    made = plan(SD, "ddpm", times=[500, 400, 0], variance="learned_range")
    high, low = (Run(sign * 1e-9 * ones(), made, One()) for sign in (1, -1))
    states = advance([high, low], denoiser)
    plain = {v: Run(ones() * 0, plan(SD, "ddpm", times=[500, 400, 0], variance=v), One()) for v in ("beta", "posterior")}
    expected = [advance([run], lambda x, t: 0 * x)[0] for run in plain.values()]
    for mine, theirs in zip(states, expected, strict=True):
        assert isinstance(mine, State) and isinstance(theirs, State)
        torch.testing.assert_close(mine.x, theirs.x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("scale", [1.0, 0.0, 3.0])
def test_a_network_of_twice_the_channels_has_learned_its_variance(scale: float, rows: int | None):
    """1 is DDPM's large variance and -1 its small one; guided, it is the condition's own."""
    plain = lambda x, t: 0.5 * x  # noqa: E731
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    asked = {"schedule": SD, "sampler": "ddpm", "steps": 4, "seed": 5}
    large, small = (sample(plain, x, variance=name, **asked) for name in ("beta", "posterior"))
    signs = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    denoiser = Guided(NetworkDenoiser(Signs(), SD, predictions.x0, rows), SD, predictions.x0)
    heard = guidance(Cond(pooled=signs), Cond(pooled=-signs), scale)
    found = sample(denoiser, x, cond=heard, variance="learned_range", **asked)
    expected = torch.where((signs.view(3, 1, 1, 1) > 0) == (scale != 0), large, small)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_dit_that_learns_sigma_draws_with_its_own_variance(scale: float):
    torch.manual_seed(1)
    dit = DiT(DiTConfig(in_channels=3, patch=2, width=32, depth=1, heads=2, num_classes=10, learn_sigma=True)).eval()
    for p in dit.parameters():
        nn.init.normal_(p, 0, 0.1)
    denoiser = Guided(NetworkDenoiser(dit, SD, predictions.v), SD, predictions.v)
    cond = guidance(Cond(labels=torch.tensor([1, 2])), Cond(labels=torch.tensor([10, 10])), scale)
    x = torch.randn(2, 3, 8, 8)
    found = [
        sample(denoiser, x, schedule=SD, sampler="ddpm", steps=5, cond=cond, variance=v) for v in ("learned_range", "beta", "posterior")
    ]
    assert all(picture.shape == x.shape and bool(torch.isfinite(picture).all()) for picture in found)
    assert not any(torch.equal(a, b) for a, b in ((found[0], found[1]), (found[0], found[2]), (found[1], found[2])))


def test_a_run_that_breaks_leaves_its_neighbours_whole():
    """Three runs in one forward, NaN for the second: it gets the error, the others every state that they have alone."""
    make = lambda value: Run(value * ones(), plan(SD, "dpmpp_2m", 5), NoNoise())  # noqa: E731
    halve = lambda x, t: torch.where(x > 1.9, math.nan, 0.5 * x)  # noqa: E731
    alone = [list(stream(make(value), halve)) for value in (1.0, 0.5)]
    first, broken, third = (make(value) for value in (1.0, 2.0, 0.5))
    one, error, three = advance([first, broken, third], halve)
    assert isinstance(error, NonFiniteError) and "after step 1 of 5" in str(error)
    assert isinstance(one, State) and isinstance(three, State)
    for mine, whole in zip(([one], [three]), alone, strict=True):
        assert torch.equal(mine[0].x, whole[0].x)
    rest = together([first, third], halve)
    for mine, whole in zip(rest, alone, strict=True):
        assert len(mine) == 4 and torch.equal(mine[-1].x, whole[-1].x)
    with pytest.raises(NonFiniteError, match="after step 1 of 5"):
        list(stream(make(2.0), halve))


@pytest.mark.parametrize("sampler, options", [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_noise_that_made_x_is_not_drawn_again(sampler: str, options: dict):
    """x from the seeds' streams, then `sample` with the same seeds: as a run that goes on with those streams."""
    asked = plan(SD, sampler, 5, **options)
    noise = Streams([3, 4])
    x = noise.draw(torch.empty(2, 6))
    *_, last = stream(Run(x, asked, noise), lambda x, t: 0.5 * x)
    assert torch.equal(sample(lambda x, t: 0.5 * x, x, schedule=SD, sampler=sampler, steps=5, seed=3, **options), last.x)


def test_sample_draws_image_i_from_seed_plus_i():
    x = torch.randn(3, 4)
    batch = sample(lambda x, t: 0.5 * x, x, schedule=SD, sampler="ddpm", steps=5, seed=10)
    for i in range(3):
        assert torch.equal(batch[i : i + 1], sample(lambda x, t: 0.5 * x, x[i : i + 1], schedule=SD, sampler="ddpm", steps=5, seed=10 + i))


def test_sample_passes_a_condition_and_keeps_no_graph():
    weight = torch.ones(1, requires_grad=True)
    cond = Cond(pooled=torch.tensor([[1.0], [2.0]]))
    found = sample(lambda x, t, c: x * 0 + weight * c.pooled, torch.zeros(2, 1), schedule=FLOW, steps=2, cond=cond)
    assert found.flatten().tolist() == [1, 2] and not found.requires_grad


def test_the_denoiser_is_told_the_time_in_float64():
    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float64 and t.shape == (3,) and t.device == x.device
        return 0.5 * x

    sample(denoiser, torch.randn(3, 2), schedule=SD, spacing="karras", steps=3)


def test_the_initial_state():
    """Variance-preserving processes take the noise as it is; others scale it to their first level."""
    noise = torch.randn(2, 3)
    assert torch.equal(initial(noise, plan(SD, steps=5, spacing="leading")), noise)
    assert torch.equal(initial(noise, plan(FLOW, steps=5)), noise)
    assert torch.equal(initial(noise, plan(PROCESSES["edm"], steps=5)), 80 * noise)


TIMES = {
    "one time": [1.0],
    "rising": [0.1, 0.9],
    "a time twice": [0.9, 0.9, 0.1],
    "not a number": [0.9, math.nan, 0.1],
    "two dimensions": [[0.9, 0.1], [0.8, 0.2]],
    "noisier than the noisy end": [1.5, 0.5, 0.0],
    "infinite": [math.inf, 0.5],
    "cleaner than the data": [0.9, -0.1],
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_impossible_times(times: list):
    with pytest.raises(ArgumentError, match="times"):
        plan(FLOW, "euler", times=times)


def test_given_times_are_used_as_they_are():
    assert [level.t for level in plan(SD, "euler", times=[700.5, 3.25, -1.0]).levels] == [700.5, 3.25, -1.0]
    assert [level.t for level in plan(FLOW, "euler", times=torch.tensor([1.0, 0.25])).levels] == [1.0, 0.25]


def test_wrong_names():
    with pytest.raises(UnknownName, match="did you mean 'dpmpp_2m'"):
        plan(SD, "dpmpp2m")
    with pytest.raises(UnknownName, match="unknown spacing"):
        plan(SD, "euler", 5, "karas")
    with pytest.raises(UnknownName, match="unknown option of sampler 'euler'"):
        sample(lambda x, t: x, torch.zeros(1, 1), schedule=SD, sampler="euler", eta=1.0)


def test_requests_must_agree_on_what_a_condition_has():
    run = lambda cond: Run(torch.zeros(1, 2), plan(SD, "euler", 2), NoNoise(), cond)  # noqa: E731
    labelled, pooled = Cond(labels=torch.zeros(1)), Cond(pooled=torch.zeros(1, 1))
    with pytest.raises(ArgumentError, match="must all have"):
        advance([run(labelled), run(pooled)], lambda x, t, c: x)
    assert len(Guidance.stack([guidance(labelled, labelled)] * 2).scale) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PROCESSES)
def test_on_a_gpu(name: str):
    """The same noise, and times on the state's device: a table is looked up there too."""
    schedule = PROCESSES[name]
    x = torch.randn(2, 3)
    cond = guidance(Cond(pooled=torch.ones(2, 1)), Cond(pooled=torch.zeros(2, 1)), 3.0, rescale=0.5)
    found = []
    for device in ("cpu", "cuda"):
        here = lambda cond, device=device: Cond(pooled=cond.pooled.to(device))  # noqa: E731
        moved = Guidance(here(cond.positive), here(cond.negative), cond.scale, cond.rescale, cond.low, cond.high)
        run = Run(x.to(device), plan(schedule, "ddim", 5, eta=1.0), Streams([1, 2]), moved)
        *_, last = stream(run, Guided(guided_pixel, schedule, predictions.x0))
        found.append(last.x.cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
