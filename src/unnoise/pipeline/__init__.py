"""From a request to pictures, in the order in which a prompt passes through:

request.py        what may be asked, each field once; it holds no tensor and needs no model
job.py            a request for one model: every default filled in, every refusal that needs the model
inputs.py         the pictures and networks of a request, opened
prompts.py        weights, chunks and tags in a prompt
conditionings.py  how text, sizes and labels become the network's condition: one record a kind
encoding.py       the text encoders of a model, and the rows that they make
start.py          noise, plan and rows: a Run, ready to be advanced
stages.py         what stands around the steps: encoding pictures, decoding latents, the safety checker, a refiner
records.py        what a picture carries; lines.py reads a request again from it
model.py          Model: request, answer, generate
loading.py        models by name, file, folder or hub id; controls.py, classifiers.py and adapters.py open the rest
"""
