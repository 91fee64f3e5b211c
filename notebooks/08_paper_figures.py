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
from pathlib import Path

from IPython.display import SVG

import ss_lens
from analyses.__main__ import draw, main
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
# ## For the screen
#
# Each figure comes with the table that it draws and nothing else, which is also what belongs into a
# supplement. These can be hovered over and zoomed into.

# %%
figures = draw(Path(folder))
{title: table.shape for title, (table, _) in figures.items()}

# %%
figures["dial"][1]

# %% [markdown]
# ## For print
#
# The same tables, drawn again for one and for two columns: PDF and SVG with their fonts embedded, curves
# told apart by dashes and markers as well as by colour, no text under six points. No browser is needed.
# This is `python -m analyses RUN --paper`.

# %%
main(Path(folder), paper=True)

# %% [markdown]
# ### The dial, over two columns
#
# Score above, opening mass below. The two kinds of random planes belong on this figure: uniform ones hold
# next to nothing of the activations and do little; those of equal energy lower the score too, and break
# the text. On the default model the controls do as well as the method, and the figure shows it.

# %%
paper = Path(folder) / "figures" / "paper"
SVG(paper / "dial_2col.svg")

# %% [markdown]
# ### Sign agreement, in one column

# %%
SVG(paper / "sign_agreement_1col.svg")

# %% [markdown]
# ### Norms, in one column

# %%
SVG(paper / "norm_growth_1col.svg")

# %% [markdown]
# ## Tables
#
# Beside each figure there is its table for LaTeX (booktabs) and as Markdown, with a caption that says what
# was measured on what.

# %%
print((paper / "dial.tex").read_text("utf-8"))

# %% [markdown]
# Anything else is a DataFrame. Refusal on test with its 95 % Wilson intervals:

# %%
columns = ["angle_deg", "refusal_positive", "refusal_positive_low", "refusal_positive_high"]
print(run.scores[columns].style.format(precision=2).hide(axis="index").to_latex(hrules=True))
