# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Take it with you: a steered model as a file, and a dial on a server
#
# A turn at a norm's output is linear, so the weights that read this output can hold it. The steered model
# becomes a LoRA adapter of rank 2, or a model of its own, and runs without hooks in whatever runs the base.
# Two adapters without an angle are a dial: their two scales set the angle at run time.
#
# The example turns sentiment. An export at an angle that *weakens* refusal is a model that answers what it
# was trained to decline, for everyone who has the file: we ship none, and neither should you.

# %%
import json
import math
import os
from pathlib import Path
from tempfile import mkdtemp
from urllib.request import Request, urlopen

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import ss_lens
from ss_lens.models.sources import DEFAULT_MODEL

logging.disable_progress_bar()

# %% tags=["parameters"]
dataset = "sentiment"
prompts_per_class = 40
angle = 30
compared, new_tokens = 4, 16
served = ""  # the same model as a GGUF file: then llama.cpp's server is started on it (xllamacpp)

# %%
model = ss_lens.load_model(os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL))
data = ss_lens.load_dataset(dataset).head(prompts_per_class)
parts = data.split(dev=1, test=compared, seed=0)
calibration = ss_lens.calibrate(ss_lens.capture(model, parts.train), rule="uniform")
questions = list(parts.test.negative)
folder = Path(mkdtemp())
calibration

# %% [markdown]
# ## One angle, as an adapter
#
# `export` finds every reader of the steered norms, proves that there are no others, writes the adapter, reads
# it back and compares it with `steer(...)` on prompts and answers. `relative` is the largest deviation of a
# logit as a share of the largest logit; above `tolerance` nothing would be left. `steered_relative` is how
# far the steering itself moves the logits.

# %%
turn = ss_lens.RotateBy(angle_deg=angle)
options = {"prompts": questions, "max_new_tokens": new_tokens}
adapter = ss_lens.export(calibration, model, turn, kind="lora", out=folder / "lora", **options)
adapter.parity.T

# %% [markdown]
# What a program reads of it: the operator, the sites, the base and its digest, and the digest of each file.

# %%
told = json.loads((folder / "lora" / "steering.json").read_text())
{key: told[key] for key in ("kind", "operators", "sites", "base", "files")}

# %% [markdown]
# The same comparison again, from the files alone; a file that was changed is refused.

# %%
ss_lens.verify_export(folder / "lora", model, prompts=questions).parity["equal_answers"]

# %% [markdown]
# ## The whole model
#
# The turn folded into the weights, as a folder that plain transformers loads. At 0° it is the base as it is
# in memory here, which PEFT needs below: a registered name is no folder.

# %%
ss_lens.export(calibration, model, turn, kind="merged", out=folder / "merged", **options)
unturned = ss_lens.RotateBy(angle_deg=0)
ss_lens.export(calibration, model, unturned, kind="merged", out=folder / "base", **options)
sorted(path.name for path in (folder / "merged").iterdir())

# %% [markdown]
# ## A dial in PEFT
#
# Two adapters, and the scales cos θ − 1 and sin θ. The last column compares with `steer(...)` at each angle.

# %%
ss_lens.export(calibration, model, ss_lens.RotateBy, kind="dial", out=folder / "dial", **options)
plain = AutoModelForCausalLM.from_pretrained(folder / "base")
dial = PeftModel.from_pretrained(plain, folder / "dial" / "turn_p", adapter_name="turn_p").eval()
dial.load_adapter(folder / "dial" / "turn_j", adapter_name="turn_j")
dial.base_model.set_adapter(["turn_p", "turn_j"])
ids = torch.tensor([model.tokenizer(questions[0])["input_ids"]])

# %%
for degrees in (0, 90, 180, 270):
    theta = math.radians(degrees)
    for module in dial.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("turn_p", math.cos(theta) - 1)
            module.set_scale("turn_j", math.sin(theta))
    with torch.inference_mode(), ss_lens.steer(model, calibration, ss_lens.RotateBy(degrees)):
        expected, got = model(ids), dial(input_ids=ids).logits
    deviation = (got - expected).abs().max() / expected.abs().max()
    print(f"{degrees:3}°  largest deviation {deviation:.1e}")

# %% [markdown]
# ## A dial on llama.cpp's server
#
# The server takes the two scales *per request*. Always with `"cache_prompt": false`: it would use keys and
# values of another angle again. Where `served` names the base as a GGUF file, the next cells run it; the model
# above must then have been loaded from this file. On a server of your own, `docs/examples/turn_dial.py` does the same
# ([the page on llama.cpp](../docs/how-to/serve-llama-cpp.md)).

# %%
if served:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port = served, 0
    adapters = [xllamacpp.CommonAdapterLoraInfo() for _ in range(2)]
    for one, name in zip(adapters, ("turn_p", "turn_j"), strict=True):
        one.path, one.scale = str(folder / "dial" / f"{name}.gguf"), 0.0
    parameters.lora_adapters, parameters.lora_init_without_apply = adapters, True
    server = xllamacpp.Server(parameters)

# %%
for degrees in (0, 90, 180, 270) if served else ():
    theta = math.radians(degrees)
    scales = [{"id": 0, "scale": math.cos(theta) - 1}, {"id": 1, "scale": math.sin(theta)}]
    body = {"messages": [{"role": "user", "content": questions[0]}], "max_tokens": new_tokens}
    body |= {"temperature": 0, "lora": scales, "cache_prompt": False}
    address = f"{server.listening_address}/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address, json.dumps(body).encode(), headers)) as answer:
        print(f"{degrees:3}°  {json.load(answer)['choices'][0]['message']['content']}")

# %% [markdown]
# ## Where else
#
# vLLM takes a `bank`, one adapter per angle, and a request picks its angle as its model. Ollama takes the
# GGUF files. The pages [on PEFT](../docs/how-to/serve-peft.md), [vLLM](../docs/how-to/serve-vllm.md),
# [llama.cpp](../docs/how-to/serve-llama-cpp.md) and [Ollama](../docs/how-to/serve-ollama.md) have the commands.
