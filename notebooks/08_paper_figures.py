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
# # Figures for a paper
#
# One run, one folder, all of its figures. `ss-lens run` calibrates, turns the dial on dev beside its
# controls, chooses an angle for each sense, and answers the test prompts there. Everything below is read
# from that folder and the store, so it can be drawn again in seconds and changed without a model.

# %%
import os

import ss_lens
from analyses.__main__ import draw
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
folder = "runs/figures"
prompts_per_class = 64
angles = (0, 45, 90, 135, 180, 225, 270, 315)
dev, test = 8, 8
draws = 2
new_tokens = 24

# %% [markdown]
# ## The run
#
# Small here: for a paper leave out the sizes, which then are those of `ss-lens run`. A run that is in the
# folder already is read, and one that was stopped resumes.

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
model = ss_lens.load_model(name)
data = ss_lens.load_dataset(default_dataset(name)).head(prompts_per_class)
config = ss_lens.RunConfig(
    angles_deg=angles, dev=dev, test=test, draws=draws, max_new_tokens=new_tokens
)
run = ss_lens.run_main_job(model, data, folder, config)
print(run.verdict)

# %% [markdown]
# ## All figures at once
#
# A table and a figure of each kind. The table is what a figure draws and nothing else, so it is also what
# belongs into a supplement.

# %%
figures = draw(folder)
{title: table.shape for title, (table, _) in figures.items()}

# %% [markdown]
# ## The dial, with its controls
#
# Score above, opening mass below. The two kinds of random planes belong on this figure: uniform ones hold
# next to nothing of the activations and do little; those of equal energy lower the score too, and break
# the text. On the default model the controls do as well as the method, and the figure says so.

# %%
figures["dial"][1]

# %%
figures["sign_agreement"][1]

# %%
figures["cosine_heatmap"][1]

# %%
figures["norm_growth"][1]

# %% [markdown]
# ## A table
#
# Rates with their 95 % Wilson intervals, one row per angle, for LaTeX. A booktabs table without a
# vertical line.

# %%
columns = ["angle_deg", "refusal_positive", "refusal_positive_low", "refusal_positive_high"]
print(run.scores[columns].style.format(precision=2).hide(axis="index").to_latex(hrules=True))
