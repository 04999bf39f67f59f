"""Answer many unlike requests together: each has its own prompt, solver, steps and guidance, and they share every call of the network.

`model.start` makes a `Run` of a request. A run says which point it wants denoised next, and `advance` answers all of them with one call of
the denoiser. Requests join and leave between two calls, as in a server. A picture does not depend on what else is in its batch.
"""

import unnoise
from unnoise.diffusion.sampling import advance

model = unnoise.load("emoji")
requests = [
    model.request("a red apple", seed=7, num_inference_steps=6),
    model.request("a blue heart", seed=8, num_inference_steps=3, sampler="heun"),
    model.request("파란 자동차", seed=9, num_inference_steps=5, sampler="euler_ancestral", guidance_scale=1.0),
    model.request("a black cat", seed=10, num_inference_steps=4, guidance_scale=5.0),
]
jobs = [model.resolve(request) for request in requests]  # refuses here what the model cannot do
runs = [model.start(job) for job in jobs]  # encodes the prompts

calls, running = 0, runs[:2]
while running:
    for state in advance(running, model.denoiser):
        if isinstance(state, Exception):
            raise state  # it is the error of one request: a server reports it, and the others go on
    calls += 1
    late = runs[2:] if calls == 2 else []  # two requests join after the second call
    running = [run for run in running if not run.done] + late
print(len(runs), "requests,", calls, "calls of the denoiser")

for request, job, run in zip(requests, jobs, runs, strict=True):
    picture = model.finish(run.state, job, model.read(job), request).images[0]
    picture.save(f"{job.seeds[0]}.png")
    *_, last = model.answer(request)  # the same request alone
    print(request.prompt, "is equal to the same request alone:", last.result().images[0].tobytes() == picture.tobytes())
