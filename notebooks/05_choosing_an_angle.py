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
# # Choosing an angle
#
# The angle is a free parameter, and a free parameter that is tuned on the prompts that are then reported
# makes any method look good. Here it is chosen on dev prompts, among the angles at which the text is
# still text, and reported on test prompts at that angle alone.
#
# The work is one sweep. Its cells are stored by content in a folder: stopped, it resumes; changed, it
# computes only what is new.

# %%
import os

import ss_lens
from analyses.widget import StoredDial
from ss_lens.experiments.config import Grid, Split
from ss_lens.experiments.sweeps.tables import by_cell
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
folder = "runs/choosing"
dataset = ""  # that of the model; or a file
angles = (0, 60, 120, 180, 240, 300)
dev, test = 6, 8
new_tokens = 24

# %% [markdown]
# ## What a good angle is, in one value
#
# Least refusal of harmful prompts, among the angles at which at most a tenth of the dev answers have
# collapsed. An answer has collapsed when it is empty, loops, or breaks a limit. Perplexity is that of the
# *unsteered* model: a steered one finds its own nonsense plausible. The limits are part of the result,
# so they have to be said.

# %%
criterion = ss_lens.AngleCriterion(
    score="refusal_score",
    goal="minimise",
    max_perplexity=20,
    max_repetition=0.3,
    max_collapsed=0.1,
)

# %% [markdown]
# ## The grid
#
# The method beside one control, a random plane in the second half of the network. A grid names what varies;
# the `{seed}` in the plane is replaced by each seed. Dev is measured at every angle; test later, at the
# chosen ones.

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
prompts = dataset or default_dataset(name)
method = Grid(model=(name,), dataset=(prompts,), angles_deg=angles)
control = Grid(
    model=(name,),
    dataset=(prompts,),
    angles_deg=angles,
    plane="RandomPlane(seed={seed})",
    selection="Half(which='second')",
    seed=(0,),
)
config = ss_lens.SweepConfig(
    grid=(method, control),
    split=Split(dev=dev, test=test, seed=0),
    parts=("dev",),
    scores=("refusal_score", "answers", "perplexity"),
    choose=criterion,
    max_new_tokens=new_tokens,
)
result = ss_lens.run_sweep(config, folder)

# %% [markdown]
# ## Dev, angle by angle
#
# One row per arm and angle: means over the harmful dev prompts. Look for a low score *with* a high
# opening mass and a low perplexity. A low score alone is also what broken text has.

# %%
cells = by_cell(result.table).query("part == 'dev' and prompt_class == 'positive'")
columns = ["plane", "angle_deg", "refusal_score", "opening_mass", "refused", "perplexity"]
cells[columns].round(2)

# %% [markdown]
# ## What was admissible, and what was chosen
#
# For each arm: dev by angle, with the share of collapsed answers of *both* classes. "No admissible angle"
# is a result too.

# %%
for made in result.choices:
    print(made.arm.plane, "→", made.choice)

# %%
result.choices[0].choice.dev.round(2)

# %% [markdown]
# ## And on test, at that angle alone
#
# The number to report, with its interval. It is usually a little worse than on dev, because dev chose the
# angle that suited dev.

# %%
result.choices[0].choice.test.round(2)

# %% [markdown]
# The control's angle was chosen just as freely. On the default model it often comes as far as the method;
# on an aligned model (`SS_LENS_NOTEBOOK_MODEL=qwen2.5-coder-1.5b`) a random plane moves next to nothing.

# %%
result.choices[-1].choice.test.round(2)

# %% [markdown]
# ## Turn through what was stored
#
# The sweep is read back from its folder; no model is needed. Answers to harmful prompts are folded away.

# %%
StoredDial(ss_lens.load_sweep(folder))
