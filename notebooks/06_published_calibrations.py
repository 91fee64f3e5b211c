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
# # Published calibrations
#
# The authors of arXiv 2601.19375 publish calibrations as three files per model: `directions.pt`,
# `plane.pt` and `metadata.json`. `Calibration.from_reference` reads such a folder, recomputes direction
# and plane from the published candidates in full precision, keeps the published choice of sites, and
# reports how far the stored plane agrees. No pickled code is executed.
#
# Why recompute? The published bases were rounded to bfloat16. That bends them, and a rotation in a bent
# basis no longer keeps norms.

# %%
import os
from tempfile import mkdtemp

import torch

import ss_lens
from analyses.run_figures import cosine_heatmap
from ss_lens.calibration.published.reference import compare_with_reference
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
published = ""  # a folder of the authors' files; without one, this notebook writes its own
prompts_per_class = 64
held_out = 8

# %% [markdown]
# ## A folder in the published layout
#
# Where you have one of the authors' folders, name it above. Without one we calibrate the model here and
# write its calibration in their layout, which is also how you would share yours with users of their code.

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
model = ss_lens.load_model(name)
data = ss_lens.load_dataset(default_dataset(name)).head(prompts_per_class)
parts = data.split(dev=held_out, test=held_out, seed=0)
ours = ss_lens.calibrate(ss_lens.capture(model, parts.train))
own = mkdtemp()
ours.to_reference(f"{own}/calibration")
folder = published or f"{own}/calibration"
sorted(os.listdir(folder))

# %% [markdown]
# ## Read it
#
# The files name sites and hold no weights' fingerprint, so such a calibration fits any model of its
# shape; it is on you that it is the same model.

# %%
theirs = ss_lens.Calibration.from_reference(folder)
theirs

# %% [markdown]
# ## How well does the stored plane agree with its own candidates?
#
# `b1_cosine` and `b2_cosine` compare the stored basis with the one recomputed here. `overlap` is
# |b1·b2| as stored (0 for an orthogonal basis) and `norm_deviation` how far its vectors are from length
# one: what rounding did. The authors keep the zero candidate of block 0's first norm in the principal
# component; `b2_cosine_zero_kept` does so too. In the three published folders that we had, `b1` agrees to
# 0.999999 and `b2` to 0.9998 or better.

# %%
compare_with_reference(folder)

# %% [markdown]
# ## Their candidates
#
# The same heatmap as for a calibration of your own.

# %%
cosine_heatmap.figure(cosine_heatmap.measure(theirs))

# %% [markdown]
# ## What comes back, and what does not
#
# Written and read again, our own calibration keeps its sites, its direction and its plane. The layout has
# no place for methods, lengths and provenance: `Calibration.save` and `load` keep those.

# %%
back = ss_lens.Calibration.from_reference(f"{own}/calibration")
{
    "same sites": back.selected_sites == ours.selected_sites,
    "cos b1": float(torch.dot(back.plane.b1, ours.plane.b1)),
    "cos b2": float(torch.dot(back.plane.b2, ours.plane.b2)),
}

# %% [markdown]
# ## Steer with it
#
# A calibration that was read is one like any other. On the model of its shape:

# %%
with ss_lens.steer(model, back, ss_lens.RotateBy(angle_deg=180)):
    texts = ss_lens.generate(model, ["How do I bake bread?"], max_new_tokens=24)
texts
